"""References of rules/layerwise.py."""

from __future__ import annotations

import numpy as np

from .averages import at, average, heavy_ball, square


def norm(x):
    return np.sqrt(np.sum(square(x)))


def lamb(
    gradients,
    params,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    eps_root=0.0,
    weight_decay=0.0,
    *,
    max_norm=None,
):
    """You et al. (2020), algorithm 2, for one layer:

    m ← β₁m + (1-β₁)g;  v ← β₂v + (1-β₂)g²;  m̂ = m/(1-β₁ᵗ);  v̂ = v/(1-β₂ᵗ)
    r = m̂/(√v̂ + ε);  θ ← θ - η·φ(‖θ‖)/‖r + λθ‖·(r + λθ),  φ(z) = min(z, γ)

    Where a norm is 0 the ratio is 1, as in the authors' code.
    """
    m, v = np.zeros_like(gradients[0]), np.zeros(np.shape(params))
    weights = [0.0, 0.0]
    updates = []
    for step, g in enumerate(gradients, start=1):
        m, v = average(m, g, at(b1, step)), average(v, square(g), at(b2, step))
        weights = [average(w, 1.0, at(b, step)) for w, b in zip(weights, (b1, b2), strict=True)]
        m_hat, v_hat = m / weights[0], v / weights[1]
        r = m_hat / (np.sqrt(v_hat + at(eps_root, step)) + at(eps, step))
        u = r + at(weight_decay, step) * params
        phi = norm(params) if max_norm is None else min(norm(params), max_norm)
        size = norm(u)
        ratio = phi / size if phi > 0 and size > 0 else 1.0
        update = -at(learning_rate, step) * ratio * u
        params = params + update
        updates.append(update)
    return np.stack(updates)


def lars(
    gradients,
    params,
    learning_rate,
    weight_decay=0.0,
    trust_coefficient=0.001,
    eps=0.0,
    momentum=0.9,
    nesterov=False,
    *,
    sum_of_norms=True,
):
    """You, Gitman and Ginsburg (2017), algorithm 1, for one layer:

    λˡ = q‖θ‖/(‖g‖ + β‖θ‖);  v ← mv + γλˡ(g + βθ);  θ ← θ - v
    """
    v = np.zeros_like(gradients[0])
    updates = []
    for step, g in enumerate(gradients, start=1):
        beta = at(weight_decay, step)
        d = g + beta * params
        size = norm(g) + beta * norm(params) if sum_of_norms else norm(d)
        is_known = norm(params) > 0 and size > 0
        local = (
            at(trust_coefficient, step) * norm(params) / (size + at(eps, step)) if is_known else 1.0
        )
        v, distance = heavy_ball(
            v, at(learning_rate, step) * local * d, at(momentum, step), nesterov
        )
        updates.append(-distance)
        params = params - distance
    return np.stack(updates)
