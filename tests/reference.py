"""The optimizers as their papers print them: NumPy, float64, one array, one loop over the steps.

These functions exist to be compared with, so they share no code with the library and prefer the
formula of the paper to speed and to numerical finesse. Each takes

    gradients: array of shape (steps, ...), real or complex, the gradient of every step
    params: array of shape (...), the parameters before the first step

and returns an array of shape (steps, ...): what every step adds to the parameters. Weight decay
sees the parameters as the earlier updates left them.

A hyperparameter is a number or a sequence with one value per step. Steps count from 1. Every weight
decay is the decoupled one of Loshchilov and Hutter (2019): it joins the step, not the gradient. The
square of a complex gradient is |g|².
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import numpy as np


def __getattr__(name):
    raise AttributeError(
        f"tests/reference.py has no {name}: write it from its paper, with the arguments and defaults of "
        f"aj.{name}, weight_decay among them."
    )


def at(hyperparameter, step):
    """The value of a hyperparameter in the given step."""
    return hyperparameter if np.ndim(hyperparameter) == 0 else hyperparameter[step - 1]


def square(x):
    return np.abs(x) ** 2


def average(old, new, decay):
    """Exponential moving average: decay · old + (1 - decay) · new.

    The average of ones, started at zero, is the bias correction: 1 - b^t for a constant b and
    1 - b(1)·b(2)···b(t) in general, here without the cancellation in 1 - b^t.
    """
    return decay * old + (1 - decay) * new


def heavy_ball(velocity, increment, momentum, nesterov):
    """One step of momentum: the new velocity, and the distance to go.

    v ← γv + increment. Nesterov goes one step further, γv + increment with the new v: Sutskever et
    al. (2013), eqs. 3-4, in terms of the parameters that their gradient is taken at.
    """
    velocity = momentum * velocity + increment
    return velocity, momentum * velocity + increment if nesterov else velocity


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


def adagrad(
    gradients,
    params,
    learning_rate,
    initial_accumulator_value=0.1,
    eps=1e-7,
    *,
    eps_in_sqrt=True,
    weight_decay=0.0,
):
    """Duchi, Hazan and Singer (2011): G ← G + g²,  θ ← θ - ηg/√(G + ε)  or  θ - ηg/(√G + ε)."""
    total = np.full(np.shape(params), initial_accumulator_value)
    updates = []
    for step, g in enumerate(gradients, start=1):
        total = total + square(g)
        e = at(eps, step)
        denominator = np.sqrt(total + e) if eps_in_sqrt else np.sqrt(total) + e
        update = -at(learning_rate, step) * (g / denominator + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)


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


def adam(
    gradients,
    params,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    *,
    nesterov=False,
    bias_correction=True,
    eps_hat=False,
    weight_decay=0.0,
):
    """Kingma and Ba (2015), algorithm 1:

    μ ← β₁μ + (1-β₁)g;  μ̂ = μ/(1-β₁ᵗ)
    ν ← β₂ν + (1-β₂)g²;  ν̂ = ν/(1-β₂ᵗ)
    θ ← θ - ημ̂/(√ν̂ + ε)

    eps_root: √(ν̂ + ε_root) in the place of √ν̂.
    eps_hat: the order of computation at the end of the paper's section 2,
      θ ← θ - η√(1-β₂ᵗ)/(1-β₁ᵗ) · μ/(√ν + ε̂).
    nesterov: Dozat (2016), algorithm 2, without a further factor β₂ of ν̂,
      μ̂ = β₁μ/(1-β₁ᵗ⁺¹) + (1-β₁)g/(1-β₁ᵗ), the present β₁ in the place of the next.
    """
    mu = np.zeros_like(gradients[0])
    nu = np.zeros(np.shape(params))
    correction1 = correction2 = 0.0
    updates = []
    for step, g in enumerate(gradients, start=1):
        beta1, beta2 = at(b1, step), at(b2, step)
        mu = average(mu, g, beta1)
        nu = average(nu, square(g), beta2)
        correction1 = average(correction1, 1.0, beta1) if bias_correction else 1.0
        correction2 = average(correction2, 1.0, beta2) if bias_correction else 1.0
        if nesterov:
            next_correction1 = average(correction1, 1.0, beta1)
            mu_hat = beta1 * mu / next_correction1 + (1 - beta1) * g / correction1
        else:
            mu_hat = mu / correction1
        if eps_hat:
            denominator = (np.sqrt(nu + at(eps_root, step)) + at(eps, step)) / np.sqrt(correction2)
        else:
            denominator = np.sqrt(nu / correction2 + at(eps_root, step)) + at(eps, step)
        direction = mu_hat / denominator
        update = -at(learning_rate, step) * (direction + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)


adamw = partial(adam, weight_decay=1e-4)
nadam = partial(adam, nesterov=True)
nadamw = partial(adam, nesterov=True, weight_decay=1e-4)


def amsgrad(
    gradients,
    params,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    bias_correction_mu=True,
    bias_correction_nu=True,
    *,
    maximum_of="corrected",
    eps_hat=False,
    weight_decay=0.0,
):
    """Reddi, Kale and Kumar (2018), algorithm 2: Adam over the largest ν so far.

    The paper corrects no bias. Here the maximum is taken of the corrected ν̂, or of the raw ν and
    then corrected with the present 1-β₂ᵗ. eps_hat is Adam's, of the raw maximum.
    """
    mu = np.zeros_like(gradients[0])
    nu = np.zeros(np.shape(params))
    nu_max = np.zeros(np.shape(params))
    correction1 = correction2 = 0.0
    updates = []
    for step, g in enumerate(gradients, start=1):
        beta1, beta2 = at(b1, step), at(b2, step)
        mu = average(mu, g, beta1)
        nu = average(nu, square(g), beta2)
        correction1 = average(correction1, 1.0, beta1) if bias_correction_mu else 1.0
        correction2 = average(correction2, 1.0, beta2) if bias_correction_nu else 1.0
        if maximum_of == "corrected":
            nu_max = np.maximum(nu_max, nu / correction2)
            nu_hat = nu_max
        else:
            nu_max = np.maximum(nu_max, nu)
            nu_hat = nu_max / correction2
        if eps_hat:
            assert maximum_of == "raw", "eps_hat is defined for the raw maximum alone"
            denominator = np.sqrt(nu_max + at(eps_root, step)) + at(eps, step)
            denominator = denominator / np.sqrt(correction2)
        else:
            denominator = np.sqrt(nu_hat + at(eps_root, step)) + at(eps, step)
        direction = mu / correction1 / denominator
        update = -at(learning_rate, step) * (direction + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)


def nadam_with_schedule(
    gradients,
    params,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    *,
    momentum_decay,
    eps_hat=False,
    weight_decay=0.0,
):
    """Dozat (2016), algorithm 2, without a further factor β₂ of ν̂:

    β₁(t) = β₁(1 - ½·0.96^(ψt));  μ̂ = β₁(t+1)μ/(1-Π(t+1)) + (1-β₁(t))g/(1-Π(t))
    """
    mu = np.zeros_like(gradients[0])
    nu = np.zeros(np.shape(params))
    product, correction2 = 1.0, 0.0
    updates = []
    for step, g in enumerate(gradients, start=1):
        beta1, beta2 = at(b1, step), at(b2, step)
        mu = average(mu, g, beta1)
        nu = average(nu, square(g), beta2)
        correction2 = average(correction2, 1.0, beta2)
        now, then = (beta1 * (1 - 0.5 * 0.96 ** (momentum_decay * t)) for t in (step, step + 1))
        product *= now
        mu_hat = then * mu / (1 - product * then) + (1 - now) * g / (1 - product)
        if eps_hat:
            denominator = (np.sqrt(nu) + at(eps, step)) / np.sqrt(correction2)
        else:
            denominator = np.sqrt(nu / correction2) + at(eps, step)
        update = -at(learning_rate, step) * (mu_hat / denominator + weight_decay * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)


def radam(
    gradients,
    params,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    threshold=5.0,
    *,
    nesterov=False,
    eps_hat=False,
    weight_decay=0.0,
):
    """Liu et al. (2020), algorithm 2: Adam times r(t) once ρ(t) >= the threshold, μ̂ before."""
    settings = {"b1": b1, "nesterov": nesterov}
    adaptive = adam(
        gradients, params, 1.0, b2=b2, eps=eps, eps_root=eps_root, eps_hat=eps_hat, **settings
    )
    plain = adam(gradients, params, 1.0, b2=0.0, eps=1.0, eps_root=0.0, **settings)
    # With b2 = 0 and ε = 1, Adam divides by |g| + 1.
    plain = plain * (np.abs(gradients) + 1)
    updates = []
    for step in range(1, len(gradients) + 1):
        b = Fraction(b2)  # Exactly: two numbers near 2000, or near 2,000,000, cancel.
        limit = 2 / (1 - b) - 1
        length = limit - 2 * step * b**step / (1 - b**step)
        direction = plain[step - 1]
        if length >= threshold:
            r = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
            direction = np.sqrt(float(r)) * adaptive[step - 1]
        update = at(learning_rate, step) * (direction - weight_decay * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)


def adamax(
    gradients,
    params,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    *,
    eps_in_max=True,
    weight_decay=0.0,
):
    """Kingma and Ba (2015), algorithm 2: θ ← θ - η/(1-β₁ᵗ) · μ/u, u ← max(β₂u, |g| + ε).

    The paper has no ε, which keeps u from 0. Without eps_in_max, u + ε in the place of u.
    """
    mu = np.zeros_like(gradients[0])
    u = np.zeros(np.shape(params))
    correction1 = 0.0
    updates = []
    for step, g in enumerate(gradients, start=1):
        beta1 = at(b1, step)
        mu = average(mu, g, beta1)
        correction1 = average(correction1, 1.0, beta1)
        e = at(eps, step)
        u = np.maximum(at(b2, step) * u, np.abs(g) + (e if eps_in_max else 0.0))
        direction = mu / correction1 / (u if eps_in_max else u + e)
        update = -at(learning_rate, step) * (direction + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)


def lion(gradients, params, learning_rate, b1=0.9, b2=0.99, weight_decay=1e-3):
    """Chen et al. (2023), algorithm 2: c = β₁m + (1-β₁)g;  θ ← θ - η(sign(c) + λθ);  m ← β₂m + (1-β₂)g."""
    m = np.zeros_like(gradients[0])
    updates = []
    for step, g in enumerate(gradients, start=1):
        direction = np.sign(average(m, g, at(b1, step)))
        m = average(m, g, at(b2, step))
        update = -at(learning_rate, step) * (direction + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)
