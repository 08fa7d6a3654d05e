"""References of rules/polyak.py. They take the loss of every step too, of shape (steps,)."""

from __future__ import annotations

import numpy as np

from .averages import at, average


def polyak_sgd(
    gradients, params, values, max_learning_rate=1.0, scaling=1.0, f_min=0.0, eps=0.0, variant="sps"
):
    """Loizou et al. (2021), eq. 3: θ ← θ - s·min((f - f*)/(‖g‖² + ε), γ)·g."""
    updates = []
    for step, (g, value) in enumerate(zip(gradients, values, strict=True), start=1):
        gap = max(value - f_min, 0) if variant == "sps+" else value - f_min
        rate = min(gap / (np.sum(g**2) + eps), max_learning_rate)
        updates.append(-at(scaling, step) * rate * g)
    return np.stack(updates)


def sps(
    gradients, params, values, max_learning_rate=1.0, c=0.5, f_min=0.0, eps=0.0, growth_rate=np.inf
):
    """Loizou et al. (2021), section 2 and, with a growth rate, appendix F.2."""
    last, updates = max_learning_rate, []
    for g, value in zip(gradients, values, strict=True):
        rate = max(value - f_min, 0) / (c * (np.sum(g**2) + eps))
        last = min(rate, max_learning_rate, growth_rate * last)
        updates.append(-last * g)
    return np.stack(updates)


def momo(
    gradients, params, values, learning_rate=1.0, beta=0.9, lower_bound=0.0, weight_decay=0.0,
    adapt_lower_bound=False, bias_correction=False, preconditioner=None,
):  # fmt: skip
    """Schaipp et al. (2024), algorithms 1 and 3, and 2 for the lower bound.

    preconditioner: from the gradient and the step to D; None for 1.
    """
    bound, updates = lower_bound, []
    d, mean, slope = np.zeros_like(params), 0.0, 0.0
    for step, (g, value) in enumerate(zip(gradients, values, strict=True), start=1):
        rate, rho = at(learning_rate, step), 1 - beta**step if bias_correction else 1.0
        b = 0.0 if step == 1 and not bias_correction else beta
        d, mean = average(d, g, b), average(mean, value, b)
        slope = average(slope, np.vdot(g, params), b)
        scale = 1.0 if preconditioner is None else preconditioner(g, step)
        square, shrunk = np.vdot(d, d / scale), 1 + rate * weight_decay
        reached = shrunk * (mean - slope) + np.vdot(d, params)
        if adapt_lower_bound and reached < shrunk * rho * bound:
            bound = max(reached / (2 * shrunk * rho), lower_bound)
        tau = min(rate / rho, max(reached - shrunk * rho * bound, 0) / square)
        if adapt_lower_bound:
            found = mean + np.vdot(d, params) - slope - 0.5 * tau * square
            bound = max(found / rho, lower_bound)
        updates.append((params - tau * d / scale) / shrunk - params)
        params = params + updates[-1]
    return np.stack(updates)


def momo_adam(
    gradients, params, values, learning_rate=1e-2, b1=0.9, b2=0.999, eps=1e-8, lower_bound=0.0,
    weight_decay=0.0, adapt_lower_bound=False,
):  # fmt: skip
    """With D = √(ν/(1-β₂ᵗ)) + ε, and corrected averages."""
    nu = np.zeros_like(params)

    def preconditioner(g, step):
        nonlocal nu
        nu = average(nu, g**2, b2)
        return np.sqrt(nu / (1 - b2**step)) + eps

    options = lower_bound, weight_decay, adapt_lower_bound, True, preconditioner
    return momo(gradients, params, values, learning_rate, b1, *options)
