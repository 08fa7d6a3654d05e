"""References of rules/regularisation.py."""

from __future__ import annotations

import numpy as np

from .averages import at


def ftrl(
    gradients,
    params,
    learning_rate,
    beta=1.0,
    l1=0.0,
    l2=0.0,
    initial_accumulator_value=0.0,
    *,
    weight_decay=0.0,
):
    """McMahan et al. (2013), algorithm 1, with per-coordinate rates; z is η times theirs:

    θ = 0 where |z| <= λ₁, else -((β + √n)/α + λ₂)⁻¹(z - sign(z)λ₁)
    σ = (√(n + g²) - √n)/α;  z ← z + g - σθ;  n ← n + g²

    At first z is such that θ is what the parameters are: 0 for 0, as there.
    weight_decay: decoupled: what z must be for the next θ to be ηλθ less.
    """

    def curvature(n, step):
        return at(beta, step) + np.sqrt(n) + at(learning_rate, step) * at(l2, step)

    params = np.asarray(params, np.float64)
    n = np.full(params.shape, initial_accumulator_value)
    z = -params * curvature(n, 1) - at(learning_rate, 1) * at(l1, 1) * np.sign(params)
    updates = []
    for step, g in enumerate(gradients, start=1):
        alpha, threshold = at(learning_rate, step), at(learning_rate, step) * at(l1, step)
        z = z + alpha * g - (np.sqrt(n + g**2) - np.sqrt(n)) * params
        n = n + g**2
        z = z + alpha * at(weight_decay, step) * curvature(n, step) * params
        with np.errstate(invalid="ignore", divide="ignore"):
            answer = -(z - np.sign(z) * threshold) / curvature(n, step)
        new = np.where((np.abs(z) <= threshold) | (z == 0), 0.0, answer)
        updates.append(new - params)
        params = new
    return np.stack(updates)
