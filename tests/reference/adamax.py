"""References of rules/adamax.py."""

from __future__ import annotations

from functools import partial

import numpy as np

from .averages import at, average, square


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


adamaxw = partial(adamax, weight_decay=1e-4)
