"""References of rules/parameter_free.py."""

from __future__ import annotations

import numpy as np

from .averages import at, average


def prodigy(
    gradients, params, learning_rate=1.0, betas=(0.9, 0.999), beta3=None, eps=1e-8, estim_lr0=1e-6,
    estim_lr_coef=1.0, weight_decay=0.0, safeguard_warmup=False, bias_correction=False,
    growth_rate=np.inf,
):  # fmt: skip
    """Mishchenko and Defazio (2024), algorithm 4, in the form of the authors' code, which divides by d₀."""
    (b1, b2), d, d_max, start = betas, estim_lr0, estim_lr0, params
    b3 = np.sqrt(b2) if beta3 is None else beta3
    m, v, s, numerator, updates = *np.zeros((3, *params.shape)), 0.0, []
    for step, g in enumerate(gradients, start=1):
        correction = np.sqrt(1 - b2**step) / (1 - b1**step) if bias_correction else 1.0
        rate = d * at(learning_rate, step) * correction
        numerator = b3 * numerator + d / estim_lr0 * rate * np.vdot(g, start - params)
        m, v = b1 * m + (1 - b1) * d * g, b2 * v + (1 - b2) * (d * g) ** 2
        s = b3 * s + d / estim_lr0 * (d if safeguard_warmup else rate) * g
        found = estim_lr_coef * numerator / np.abs(s).sum()
        if d == estim_lr0:
            d = max(d, found)
        d_max = max(d_max, found)
        d = min(d_max, d * growth_rate)
        updates.append(-weight_decay * rate * params - rate * m / (np.sqrt(v) + d * eps))
        params = params + updates[-1]
    return np.stack(updates)


def dadapt_adamw(
    gradients, params, learning_rate=1.0, betas=(0.9, 0.999), eps=1e-8, estim_lr0=1e-6,
    weight_decay=0.0, bias_correction=False, growth_rate=np.inf,
):  # fmt: skip
    """Defazio and Mishchenko (2023), algorithm 5, with decoupled weight decay."""
    (b1, b2), d, b = betas, estim_lr0, np.sqrt(betas[1])
    m, v, s, numerator, updates = *np.zeros((3, *params.shape)), 0.0, []
    for step, g in enumerate(gradients, start=1):
        correction = np.sqrt(1 - b2**step) / (1 - b1**step) if bias_correction else 1.0
        rate = d * at(learning_rate, step) * correction
        numerator = average(numerator, rate * np.vdot(g, s / (np.sqrt(v) + eps)), b)
        m, v, s = average(m, rate * g, b1), average(v, g**2, b2), average(s, rate * g, b)
        d = max(d, min(numerator / ((1 - b) * np.abs(s).sum()), d * growth_rate))
        updates.append(-weight_decay * rate * params - m / (np.sqrt(v) + eps))
        params = params + updates[-1]
    return np.stack(updates)
