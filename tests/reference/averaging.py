"""References of rules/averaging.py: of the parameters after each step, the average after the last."""

from __future__ import annotations

import numpy as np


def average(first, params, decay=0.999, bias_correction=True, warmup=False):
    """Σ weights · θ, with the weights written out."""
    steps = len(params)
    rates = [min(decay, (1 + t) / (10 + t)) if warmup else decay for t in range(1, steps + 1)]
    if bias_correction and warmup:  # What is corrected is the constant rate.
        kept = [1 - max((1 - decay) / (1 - decay**t), 9 / (10 + t)) for t in range(1, steps + 1)]
        rates, bias_correction = kept, False
    weights = [(1 - rates[t]) * np.prod(rates[t + 1 :]) for t in range(steps)]
    if bias_correction:
        return np.tensordot(weights, params, 1) / sum(weights)
    return np.tensordot(weights, params, 1) + np.prod(rates) * first


def polynomial_average(first, params, gamma=8.0):
    """Shamir and Zhang (2013), section 4: of whole γ, weights that are products of t+1, …, t+γ."""
    weights = [np.prod([t + i for i in range(int(gamma))]) for t in range(1, len(params) + 1)]
    return np.average(params, axis=0, weights=weights)


def tail_average(first, params, start=0):
    """The plain mean."""
    return np.mean(params[int(start) :], axis=0) if len(params) > start else params[-1]


def latest_average(first, params, count=5, every=100):
    """Kaddour (2022): the mean of the last checkpoints."""
    return np.mean(params[::every][-count:], axis=0)
