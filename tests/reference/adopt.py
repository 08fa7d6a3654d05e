"""References of rules/adopt.py."""

from __future__ import annotations

import numpy as np

from .averages import at, average


def adopt(
    gradients,
    params,
    learning_rate,
    b1=0.9,
    b2=0.9999,
    eps=1e-6,
    *,
    nesterov=False,
    use_clipping=True,
    clip_exponent=0.25,
    weight_decay=0.0,
):
    """Taniguchi et al. (2024), algorithm 2, of which the first gradient is v₀ = g² and no step:

    n = clip(g/max(√v, ε), ±t^¼) of t = 1, 2, … from there on;  m ← β₁m + (1-β₁)n;  θ ← θ - ηm;
    v ← β₂v + (1-β₂)g²
    """
    m = np.zeros_like(gradients[0])
    v = gradients[0] ** 2
    updates = []
    for t, g in enumerate(gradients):
        direction = np.zeros_like(g)
        if t > 0:
            n = g / np.maximum(np.sqrt(v), eps)
            if use_clipping:
                n = np.clip(n, -(t**clip_exponent), t**clip_exponent)
            m = average(m, n, b1)
            v = average(v, g**2, b2)
            direction = average(m, n, b1) if nesterov else m
        update = -at(learning_rate, t + 1) * (direction + at(weight_decay, t + 1) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)


def size_of_adopt(gradients, params, learning_rate, *args, weight_decay=0.0, **settings):
    """Half again as large: with β₂ = 0.9999, v forgets none of the roundings of 200 steps."""
    nothing = np.zeros_like(params[0])
    size = np.abs(adopt(np.abs(gradients), nothing, learning_rate, *args, **settings))
    decay = np.broadcast_to(learning_rate, len(gradients)) * np.broadcast_to(
        weight_decay, len(gradients)
    )
    return 1.5 * size + decay[:, None] * np.abs(params)
