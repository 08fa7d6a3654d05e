"""References of rules/hypergradient.py."""

from __future__ import annotations

import numpy as np


def sgd_hd(
    gradients,
    params,
    learning_rate=1e-3,
    hypergradient_rate=0.02,
    multiplicative=True,
    weight_decay=0.0,
):
    """Baydin et al. (2018), algorithm 4, and its multiplicative form."""
    rate, last, updates = learning_rate, np.zeros_like(params), []
    for g in gradients:
        h = -np.sum(g * last)  # The derivative of the loss by the last rate.
        if multiplicative:
            sizes = np.linalg.norm(g) * np.linalg.norm(last)
            rate = rate * (1 - hypergradient_rate * h / sizes) if sizes else rate
        else:
            rate = max(rate - hypergradient_rate * h, 0.0)
        last = g + weight_decay * params
        updates.append(-rate * last)
        params = params + updates[-1]
    return np.stack(updates)


def adam_hd(
    gradients,
    params,
    learning_rate=1e-3,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    hypergradient_rate=0.02,
    b1_rate=None,
    weight_decay=0.0,
):
    """Baydin et al. (2018), algorithm 6, in its multiplicative form, and the same for 1 - β₁.

    The derivative of the direction by β₁ is that of a complex step; in the first step there is none.
    """

    def direction(mu, nu, g, product, b1, step):
        mean = (b1 * mu + (1 - b1) * g) / (1 - product * b1)
        return mean / (np.sqrt((b2 * nu + (1 - b2) * g**2) / (1 - b2**step)) + eps)

    def agreement(g, x):
        sizes = np.linalg.norm(g) * np.linalg.norm(x)
        return np.sum(g * x) / sizes if sizes else 0.0

    rate, product, updates = learning_rate, 1.0, []
    mu, nu, last, by_b1 = np.zeros((4, *params.shape))
    for step, g in enumerate(gradients, start=1):
        rate = rate * (1 + hypergradient_rate * agreement(g, last))
        b1 = 1 - np.clip((1 - b1) * (1 - (b1_rate or 0) * agreement(g, by_b1)), 1e-4, 1)
        last = direction(mu, nu, g, product, b1, step)
        if step > 1:
            by_b1 = direction(mu, nu, g, product, b1 + 1e-30j, step).imag / 1e-30
        mu, nu, product = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g**2, product * b1
        updates.append(-rate * (last + weight_decay * params))
        params = params + updates[-1]
    return np.stack(updates)
