"""References of rules/factored.py."""

from __future__ import annotations

import numpy as np

from .averages import at, average, square


def rms(x):
    """√(Σ|x|²/n)."""
    return np.sqrt(np.mean(square(x)))


def adafactor(
    gradients,
    params,
    learning_rate=None,
    min_dim_size_to_factor=128,
    decay_rate=0.8,
    decay_offset=0,
    multiply_by_parameter_scale=True,
    clipping_threshold=1.0,
    momentum=None,
    eps=1e-30,
    factored=True,
    *,
    min_scale=1e-3,
    velocity="steps",
    factored_axes="largest",
    decay_cap=None,
    weight_decay=0.0,
):
    """Shazeer and Stern (2018), algorithms 4 to 6, in their notation:

    ρₜ = min(10⁻², 1/√t);  αₜ = max(ε₂, RMS(θ))ρₜ;  β̂₂ₜ = 1 - t^(-0.8)
    Rₜ = β̂₂ₜR + (1 - β̂₂ₜ)(G² + ε₁1ₙ1ₘᵀ)1ₘ,  Cₜ = β̂₂ₜC + (1 - β̂₂ₜ)1ₙᵀ(G² + ε₁1ₙ1ₘᵀ),  V̂ₜ = RₜCₜ/1ₙᵀRₜ
    Uₜ = G/√V̂ₜ;  Ûₜ = U/max(1, RMS(U)/d);  θ ← θ - αₜÛₜ

    Sums of rows and columns, as there, of the last two axes or of the two longest; a vector keeps V itself.
    momentum: the average of the steps, as in the authors' code, or of what is multiplied by ρ last.
    """
    params = np.asarray(params)
    shape = params.shape
    axes = list(range(len(shape)))
    if factored_axes == "largest":
        axes.sort(key=lambda axis: shape[axis])  # Of equals, the last are taken.
    n, m = axes[-2:] if len(shape) > 1 else (0, 0)
    is_factored = factored and n != m and min(shape[n], shape[m]) >= min_dim_size_to_factor
    r, c, v, average_step = 0.0, 0.0, 0.0, 0.0
    updates = []
    for step, g in enumerate(gradients, start=1):
        t = max(1, step - decay_offset)
        beta = 1 - t ** -at(decay_rate, step)
        if decay_cap is not None:
            beta = min(beta, decay_cap)
        g2 = square(g) + at(eps, step)
        if is_factored:
            r = average(r, g2.sum(m, keepdims=True), beta)
            c = average(c, g2.sum(n, keepdims=True), beta)
            v = r * c / r.sum(n, keepdims=True)
        else:
            v = average(v, g2, beta)
        u = g / np.sqrt(v)
        if clipping_threshold is not None:
            u = u / max(1, rms(u) / at(clipping_threshold, step))
        rho = min(1e-2, 1 / np.sqrt(step)) if learning_rate is None else at(learning_rate, step)
        if multiply_by_parameter_scale:
            u = max(at(min_scale, step), rms(params)) * u
        if momentum is None:
            distance = rho * u
        elif velocity == "steps":
            distance = average_step = average(average_step, rho * u, at(momentum, step))
        else:
            average_step = average(average_step, u, at(momentum, step))
            distance = rho * average_step
        update = -(distance + rho * at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)
