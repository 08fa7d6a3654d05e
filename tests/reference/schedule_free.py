"""References of rules/schedule_free.py."""

from __future__ import annotations

import numpy as np

from .averages import at, average, square


def schedule_free(gradients, params, learning_rate, direction, b1, warmup_steps, r, power):
    """Defazio et al. (2024): z ← z - γd;  x ← (1-c)x + cz;  y ← (1-β)z + βx, of which y is trained.

    c = w/Σw with w = tʳ·max(γ)^p. direction: from the gradient, y and the step to d.
    """
    x = z = y = params
    total, largest, updates = 0.0, 0.0, []
    for step, g in enumerate(gradients, start=1):
        rate = at(learning_rate, step) * min(1.0, step / warmup_steps if warmup_steps else 1.0)
        largest = max(largest, rate)
        weight = step**r * largest**power
        total += weight
        z = z - rate * direction(g, y, step)
        x = x + (weight / total if total else 0.0) * (z - x)
        updates.append((1 - b1) * z + b1 * x - y)
        y = y + updates[-1]
    return np.stack(updates), x


def schedule_free_sgd(
    gradients, params, learning_rate=1.0, warmup_steps=None, b1=0.9, weight_decay=0.0,
    weight_lr_power=2.0, r=0.0,
):  # fmt: skip
    """With d = g + λy."""

    def direction(g, y, step):
        return g + weight_decay * y

    rest = b1, warmup_steps, r, weight_lr_power
    return schedule_free(gradients, params, learning_rate, direction, *rest)[0]


def schedule_free_adamw(
    gradients, params, learning_rate=0.0025, warmup_steps=None, b1=0.9, b2=0.999, eps=1e-8,
    weight_decay=0.0, weight_lr_power=2.0, r=0.0,
):  # fmt: skip
    """With d = g/(√ν̂ + ε) + λy, where ν̂ = ν/(1-β₂ᵗ) and ν ← β₂ν + (1-β₂)g²."""
    nu = np.zeros_like(gradients[0])

    def direction(g, y, step):
        nonlocal nu
        nu = average(nu, square(g), b2)
        return g / (np.sqrt(nu / (1 - b2**step)) + eps) + weight_decay * y

    rest = b1, warmup_steps, r, weight_lr_power
    return schedule_free(gradients, params, learning_rate, direction, *rest)[0]
