"""References of rules/momentum.py."""

from __future__ import annotations

import numpy as np

from .averages import at, heavy_ball


def sgd(
    gradients,
    params,
    learning_rate,
    momentum=None,
    nesterov=False,
    *,
    dampening=0.0,
    dampen_first=True,
    velocity="gradients",
    weight_decay=0.0,
):
    """Gradient descent; momentum as in Polyak (1964).

    velocity="gradients": v ← γv + (1-τ)g,   θ ← θ - ηv
    velocity="steps":     v ← γv + (1-τ)ηg,  θ ← θ - v
    with τ the dampening; τ = γ makes v a moving average. Without dampen_first, τ = 0 in step 1.
    """
    v = np.zeros_like(gradients[0])
    updates = []
    for step, g in enumerate(gradients, start=1):
        eta = at(learning_rate, step)
        if momentum is None:
            distance = eta * g
        else:
            if dampen_first or step > 1:
                g = (1 - at(dampening, step)) * g
            if velocity == "gradients":
                v, direction = heavy_ball(v, g, at(momentum, step), nesterov)
                distance = eta * direction
            else:
                v, distance = heavy_ball(v, eta * g, at(momentum, step), nesterov)
        update = -(distance + eta * at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)
