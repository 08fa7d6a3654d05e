"""References of rules/adam.py."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import numpy as np

from .averages import at, average, square


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
