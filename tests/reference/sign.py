"""References of rules/sign.py."""

from __future__ import annotations

import numpy as np

from .averages import at, average


def lion(gradients, params, learning_rate, b1=0.9, b2=0.99, weight_decay=1e-3):
    """Chen et al. (2023), algorithm 2: c = β₁m + (1-β₁)g;  θ ← θ - η(sign(c) + λθ);  m ← β₂m + (1-β₂)g."""
    m = np.zeros_like(gradients[0])
    updates = []
    for step, g in enumerate(gradients, start=1):
        direction = np.sign(average(m, g, at(b1, step)))
        m = average(m, g, at(b2, step))
        update = -at(learning_rate, step) * (direction + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)


def sign_sgd(gradients, params, learning_rate, weight_decay=0.0):
    """Bernstein et al. (2018), algorithm 1: θ ← θ - η sign(g)."""
    return signum(gradients, params, learning_rate, beta=0.0, weight_decay=weight_decay)


def signum(gradients, params, learning_rate, beta=0.9, weight_decay=0.0):
    """Bernstein et al. (2018), algorithm 2: m ← βm + (1-β)g;  θ ← θ - η(sign(m) + λθ)."""
    m = np.zeros_like(gradients[0])
    updates = []
    for step, g in enumerate(gradients, start=1):
        m = average(m, g, at(beta, step))
        update = -at(learning_rate, step) * (np.sign(m) + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)
