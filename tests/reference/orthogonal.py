"""References of rules/orthogonal.py. Matrices are out × in there, as papers have them: W = paramsᵀ."""

from __future__ import annotations

import numpy as np

from .averages import at, average

QUINTIC = [(3.4445, -4.7750, 2.0315)]
# Amsel et al. (2025), algorithm 1: the list as printed, divided by 1.01, 1.01³ and 1.01⁵ but for the last.
PRINTED = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
]
POLAR_EXPRESS = [(a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in PRINTED]
POLAR_EXPRESS += [(1.875, -1.25, 0.375)] * 20
# modded-nanogpt, f411b3d3: polar_express_coeffs.
SPEEDRUN = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def polynomials(name, steps):
    """The coefficients of each step, and by how much more than its norm a matrix is divided."""
    if name == "polar_express":
        return POLAR_EXPRESS[:steps], 1.01
    if name == "speedrun":
        return SPEEDRUN[:steps], 1.02
    given = QUINTIC if name == "quintic" else np.atleast_2d(name).tolist()
    return [given[min(step, len(given) - 1)] for step in range(steps)], 1.0


def orthogonalized(g, name="quintic", steps=5, eps=1e-7):
    """Jordan et al. (2024): zeropower_via_newtonschulz5, one matrix."""
    chosen, safety = polynomials(name, steps)
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (safety * (np.linalg.norm(x) + eps))
    for a, b, c in chosen:
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def of_singular_values(g, name="quintic", steps=5, eps=1e-7):
    """The same by a singular value decomposition: the polynomials of numbers."""
    chosen, safety = polynomials(name, steps)
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    s = s / (safety * (np.linalg.norm(s) + eps))
    for a, b, c in chosen:
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


def muon(
    gradients, params, learning_rate, ns_coeffs="quintic", ns_steps=5, b1=0.95, eps=1e-7,
    weight_decay=0.0, nesterov=True, scale="spectral", normuon=False, b2=0.95,
):  # fmt: skip
    """Jordan et al. (2024): B ← μB + (1-μ)G, U = (1-μ)G + μB, W ← (1-ηλ)W - η·√max(1, m/n)·NS5(U).

    NorMuon, Li et al. (2025), algorithm 1: v ← β₂v + (1-β₂)·mean of O² of each row, O ← O/(√v + 1e-10), as
    long as before.
    """
    weights = params.reshape(-1, *params.shape[-2:]).transpose(0, 2, 1)
    of_steps = gradients.reshape(len(gradients), *weights.transpose(0, 2, 1).shape)
    m, n = weights.shape[1:]
    factor = {
        "spectral": np.sqrt(max(1, m / n)),
        "ratio": np.sqrt(m / n),
        "rms": 0.2 * np.sqrt(max(m, n)),
    }[scale]
    buffers, v, updates = np.zeros_like(weights), np.zeros((*weights.shape[:2], 1)), []
    for step, each in enumerate(of_steps, start=1):
        update = np.zeros_like(weights)
        for i, g in enumerate(each.transpose(0, 2, 1)):
            buffers[i] = average(buffers[i], g, at(b1, step))
            u = average(g, buffers[i], 1 - at(b1, step)) if nesterov else buffers[i]
            o = orthogonalized(u, ns_coeffs, ns_steps, eps)
            if normuon:
                v[i] = average(v[i], np.mean(o**2, axis=1, keepdims=True), b2)
                scaled = o / (np.sqrt(v[i]) + 1e-10)
                o = scaled * (np.linalg.norm(o) / np.linalg.norm(scaled))
            update[i] = -at(learning_rate, step) * (
                factor * o + at(weight_decay, step) * weights[i]
            )
        weights = weights + update
        updates.append(update.transpose(0, 2, 1).reshape(params.shape))
    return np.stack(updates)
