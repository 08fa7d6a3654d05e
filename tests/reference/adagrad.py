"""References of rules/adagrad.py."""

from __future__ import annotations

import numpy as np

from .averages import at, square


def adagrad(
    gradients,
    params,
    learning_rate,
    initial_accumulator_value=0.1,
    eps=1e-7,
    *,
    eps_in_sqrt=True,
    weight_decay=0.0,
):
    """Duchi, Hazan and Singer (2011): G ← G + g²,  θ ← θ - ηg/√(G + ε)  or  θ - ηg/(√G + ε)."""
    total = np.full(np.shape(params), initial_accumulator_value)
    updates = []
    for step, g in enumerate(gradients, start=1):
        total = total + square(g)
        e = at(eps, step)
        denominator = np.sqrt(total + e) if eps_in_sqrt else np.sqrt(total) + e
        update = -at(learning_rate, step) * (g / denominator + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)
