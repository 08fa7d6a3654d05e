"""References of rules/curvature.py.

Each takes `diagonals` as well, the estimates ĥ of the diagonal of the Hessian in all steps, and `has`,
whether there is one in each. Where none are given they are |g| in every step: for
tests that know of gradients alone.
"""

from __future__ import annotations

import numpy as np

from .averages import at, average


def estimates(gradients, diagonals, has):
    diagonals = np.abs(gradients) if diagonals is None else diagonals
    return zip(diagonals, np.ones(len(gradients), bool) if has is None else has, strict=True)


def sophia(
    gradients,
    params,
    learning_rate,
    b1=0.965,
    b2=0.99,
    eps=1e-12,
    weight_decay=0.1,
    gamma=0.01,
    clip_threshold=1.0,
    eps_in_max=True,
    diagonals=None,
    has=None,
):
    """Liu et al. (2024), algorithm 3: θ ← θ - ηλθ;  θ ← θ - η·clip(m/max(γh, ε), 1).

    With eps_in_max=False the authors' SophiaG: sign(m)·min(|m|/(γh + ε), 1).
    """
    m, h, updates = np.zeros_like(gradients[0]), np.zeros_like(gradients[0]), []
    every = zip(gradients, estimates(gradients, diagonals, has), strict=True)
    for step, (g, (new, is_there)) in enumerate(every, start=1):
        m = average(m, g, at(b1, step))
        if is_there:
            h = average(h, new, at(b2, step))
        if eps_in_max:
            u = np.clip(m / np.maximum(gamma * h, eps), -clip_threshold, clip_threshold)
        else:
            u = np.sign(m) * np.minimum(np.abs(m) / (gamma * h + eps), clip_threshold)
        update = -at(learning_rate, step) * (u + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)


def adahessian(
    gradients,
    params,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-4,
    weight_decay=0.0,
    hessian_power=1.0,
    average_axes=None,
    average_sizes=False,
    diagonals=None,
    has=None,
):
    """Yao et al. (2021), algorithm 1: v is the average of D∘D, and D the diagonal averaged in blocks.

    Its correction is of the steps that had an estimate. average_sizes: the mean of |D|, as in the authors'
    code. θ ← θ - η(m̂/((√v̂)^k + ε) + λθ).
    """
    m, v, weight, updates = np.zeros_like(gradients[0]), np.zeros_like(gradients[0]), 0.0, []
    every = zip(gradients, estimates(gradients, diagonals, has), strict=True)
    for step, (g, (new, is_there)) in enumerate(every, start=1):
        m = average(m, g, at(b1, step))
        if is_there:
            axes = dict(average_axes or ()).get(new.ndim)
            if axes:
                block = np.abs(new) if average_sizes else new
                new = np.broadcast_to(block.mean(axes, keepdims=True), new.shape)
            v, weight = average(v, new**2, at(b2, step)), average(weight, 1.0, at(b2, step))
        root = np.sqrt(v / (weight or 1.0)) ** hessian_power
        u = m / (1 - b1**step) / (root + eps)
        update = -at(learning_rate, step) * (u + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)
