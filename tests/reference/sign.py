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
