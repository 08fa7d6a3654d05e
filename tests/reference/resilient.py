"""References of rules/resilient.py."""

from __future__ import annotations

import numpy as np

from .averages import at


def rprop(
    gradients,
    params,
    learning_rate,
    eta_minus=0.5,
    eta_plus=1.2,
    min_step_size=1e-6,
    max_step_size=50.0,
    *,
    weight_decay=0.0,
):
    """Igel and Hüsken (2003), iRprop⁻, after Riedmiller and Braun (1993), element by element:

    g₋₁g > 0: Δ ← min(Δη₊, Δ_max);  g₋₁g < 0: Δ ← max(Δη₋, Δ_min), g ← 0;  θ ← θ - sign(g)Δ
    """
    size = np.full(np.shape(params), float(learning_rate))
    last = np.zeros_like(gradients[0])
    updates = []
    for step, g in enumerate(gradients, start=1):
        g = np.array(g)
        for place in np.ndindex(g.shape):
            if last[place] * g[place] > 0:
                size[place] = min(size[place] * eta_plus, max_step_size)
            elif last[place] * g[place] < 0:
                size[place] = max(size[place] * eta_minus, min_step_size)
                g[place] = 0
        last = g
        update = -np.sign(g) * size - learning_rate * at(weight_decay, step) * params
        params = params + update
        updates.append(update)
    return np.stack(updates)


def size_of_rprop(gradients, params, learning_rate, *, weight_decay=0.0, **settings):
    """A step size is a product of factors, each of which is rounded, as is the product after each."""
    updates = rprop(gradients, np.zeros_like(params[0]), learning_rate, **settings)
    roundings = np.maximum(np.arange(len(updates)) / 25, 1)[:, None]
    return roundings * np.abs(updates) + learning_rate * weight_decay * np.abs(params)
