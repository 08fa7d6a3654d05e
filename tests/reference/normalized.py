"""References of rules/normalized.py."""

from __future__ import annotations

import numpy as np

from .averages import at, average, square


def novograd(
    gradients,
    params,
    learning_rate,
    b1=0.9,
    b2=0.25,
    eps=1e-6,
    eps_root=0.0,
    weight_decay=0.0,
    *,
    grad_averaging=False,
):
    """Ginsburg et al. (2019), algorithm 1, the whole array one layer:

    v₁ = ‖g₁‖²;  v ← β₂v + (1-β₂)‖g‖²;  m₁ = g₁/(√v₁ + ε) + λθ;  m ← β₁m + (g/(√v + ε) + λθ);  θ ← θ - ηm

    grad_averaging: m ← β₁m + (1-β₁)(…).
    """
    m, v = np.zeros_like(gradients[0]), np.sum(square(gradients[0]))
    updates = []
    for step, g in enumerate(gradients, start=1):
        v = average(v, np.sum(square(g)), b2)
        new = g / (np.sqrt(v + eps_root) + eps) + at(weight_decay, step) * params
        m = average(m, new, b1) if grad_averaging else b1 * m + new
        update = -at(learning_rate, step) * m
        params = params + update
        updates.append(update)
    return np.stack(updates)


def fromage(gradients, params, learning_rate, min_norm=1e-6, *, weight_decay=0.0):
    """Bernstein et al. (2020), algorithm 1: θ ← (θ - η ‖θ‖/‖g‖ g)/√(1 + η²), norms at least min_norm.

    The change of θ is written without θ/√(1 + η²) - θ, which cancels.
    """
    updates = []
    for step, g in enumerate(gradients, start=1):
        eta = at(learning_rate, step)
        of_param, of_grad = (max(np.sqrt(np.sum(square(x))), min_norm) for x in (params, g))
        root = np.sqrt(1 + eta**2)
        update = -eta * of_param / of_grad * g / root - eta**2 / (root * (1 + root)) * params
        update = update - eta * at(weight_decay, step) * params
        params = params + update
        updates.append(update)
    return np.stack(updates)


# What the updates would be if no two terms cancelled, of the parameters that each step sees


def size_of_novograd(gradients, params, learning_rate, b1=0.9, b2=0.25, eps=1e-6, eps_root=0.0,
                     weight_decay=0.0, *, grad_averaging=False):  # fmt: skip
    m, v = np.zeros(gradients[0].shape), np.sum(square(gradients[0]))
    sizes = []
    for step, g in enumerate(gradients, start=1):
        v = average(v, np.sum(square(g)), b2)
        new = np.abs(g) / (np.sqrt(v + eps_root) + eps) + weight_decay * np.abs(params[step - 1])
        m = average(m, new, b1) if grad_averaging else b1 * m + new
        sizes.append(at(learning_rate, step) * m)
    return np.stack(sizes)


def size_of_fromage(gradients, params, learning_rate, min_norm=1e-6, *, weight_decay=0.0):
    sizes = []
    for step, (g, param) in enumerate(zip(gradients, params, strict=True), start=1):
        eta = at(learning_rate, step)
        of_param, of_grad = (max(np.sqrt(np.sum(square(x))), min_norm) for x in (param, g))
        shrinkage = 1 - 1 / np.sqrt(1 + eta**2) + eta * at(weight_decay, step)
        sizes.append(eta * of_param / of_grad * np.abs(g) + shrinkage * np.abs(param))
    return np.stack(sizes)
