"""References of rules/rms.py."""

from __future__ import annotations

import numpy as np

from .averages import at, average, heavy_ball, square


def adadelta(gradients, params, learning_rate=None, rho=0.9, eps=1e-6, weight_decay=0.0):
    """Zeiler (2012), algorithm 1:

    E[g²] ← ρE[g²] + (1-ρ)g²
    Δ = √(E[Δ²] + ε)/√(E[g²] + ε) · g
    E[Δ²] ← ρE[Δ²] + (1-ρ)Δ²
    θ ← θ - ηΔ

    The paper has no learning rate, η = 1, and the minus sign in Δ.
    """
    mean_square_gradient = np.zeros(np.shape(params))
    mean_square_delta = np.zeros(np.shape(params))
    updates = []
    for step, g in enumerate(gradients, start=1):
        r, e = at(rho, step), at(eps, step)
        mean_square_gradient = average(mean_square_gradient, square(g), r)
        delta = np.sqrt(mean_square_delta + e) / np.sqrt(mean_square_gradient + e) * g
        mean_square_delta = average(mean_square_delta, square(delta), r)
        eta = 1.0 if learning_rate is None else at(learning_rate, step)
        update = -eta * (delta + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)


def rmsprop(
    gradients,
    params,
    learning_rate,
    decay=0.9,
    eps=1e-8,
    initial_scale=0.0,
    eps_in_sqrt=True,
    centered=False,
    momentum=None,
    nesterov=False,
    bias_correction=False,
    *,
    velocity="steps",
    weight_decay=0.0,
):
    """Tieleman and Hinton (2012); centered, with momentum: Graves (2013), eqs. 38-41.

    ν ← βν + (1-β)g²;  θ ← θ - ηg/√(ν + ε)  or  θ - ηg/(√ν + ε)

    centered: the variance ν - μ² in the place of ν, μ the moving average of g.
    velocity="steps": momentum sums what has been multiplied by η; "gradients": what has not.
    """
    mu = np.zeros_like(gradients[0])
    nu = np.full(np.shape(params), initial_scale)
    correction = 0.0
    v = np.zeros_like(gradients[0])
    updates = []
    for step, g in enumerate(gradients, start=1):
        b, e, eta = at(decay, step), at(eps, step), at(learning_rate, step)
        mu = average(mu, g, b)
        nu = average(nu, square(g), b)
        correction = average(correction, 1.0, b) if bias_correction else 1.0
        second_moment = nu / correction
        if centered:
            # A variance, so only rounding makes it negative.
            second_moment = np.maximum(second_moment - square(mu / correction), 0.0)
        denominator = np.sqrt(second_moment + e) if eps_in_sqrt else np.sqrt(second_moment) + e
        direction = g / denominator
        if momentum is None:
            distance = eta * direction
        elif velocity == "steps":
            v, distance = heavy_ball(v, eta * direction, at(momentum, step), nesterov)
        else:
            v, direction = heavy_ball(v, direction, at(momentum, step), nesterov)
            distance = eta * direction
        update = -(distance + eta * at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)
