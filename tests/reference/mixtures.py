"""References of rules/mixtures.py."""

from __future__ import annotations

import numpy as np

from .averages import at, average, square


def ademamix(
    gradients,
    params,
    learning_rate,
    b1=0.9,
    b2=0.999,
    b3=0.9999,
    alpha=5.0,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=0.0,
    *,
    b3_warmup=None,
    alpha_warmup=None,
):
    """Pagliardini, Ablin and Grangier (2024):

    m₁ ← β₁m₁ + (1-β₁)g;  m₂ ← β₃(t)m₂ + (1-β₃(t))g;  ν ← β₂ν + (1-β₂)g²
    θ ← θ - η((m̂₁ + α(t)m₂)/(√ν̂ + ε) + λθ)

    α(t) = min(tα/T, α);  β₃(t) = min(exp(ln β₁ ln β₃/((1 - t/T) ln β₃ + (t/T) ln β₁)), β₃)
    """
    m1, m2 = np.zeros_like(gradients[0]), np.zeros_like(gradients[0])
    nu = np.zeros(np.shape(params))
    updates = []
    for step, g in enumerate(gradients, start=1):
        slow, weight = at(b3, step), at(alpha, step)
        if b3_warmup is not None and step < b3_warmup:
            r = step / b3_warmup
            slow = np.exp(np.log(b1) * np.log(slow) / ((1 - r) * np.log(slow) + r * np.log(b1)))
        if alpha_warmup is not None:
            weight = min(step * weight / alpha_warmup, weight)
        m1, m2 = average(m1, g, b1), average(m2, g, slow)
        nu = average(nu, square(g), b2)
        mean = m1 / (1 - b1**step) + weight * m2
        direction = mean / (np.sqrt(nu / (1 - b2**step) + eps_root) + eps)
        update = -at(learning_rate, step) * (direction + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)


def simplified_ademamix(
    gradients,
    params,
    learning_rate,
    b1=0.99,
    b2=0.95,
    alpha=0.0,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=0.0,
):
    """Morwani et al. (2025): m ← β₁m + g;  ν ← β₂ν + (1-β₂)g²;  θ ← θ - η((m + αg)/(√ν̂ + ε) + λθ)."""
    m, nu = np.zeros_like(gradients[0]), np.zeros(np.shape(params))
    updates = []
    for step, g in enumerate(gradients, start=1):
        m = at(b1, step) * m + g
        nu = average(nu, square(g), b2)
        root = np.sqrt(nu / (1 - b2**step) + eps_root) + eps
        direction = (m + at(alpha, step) * g) / root
        update = -at(learning_rate, step) * (direction + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)
