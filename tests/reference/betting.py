"""References of rules/betting.py."""

from __future__ import annotations

import numpy as np

from .averages import at


def cocob(gradients, params, learning_rate=1.0, alpha=100.0, eps=1e-8, weight_decay=0.0):
    """Orabona and Tommasi (2017), algorithm 2, and a share of the way where η is not 1."""
    start, updates = params, []
    largest, sizes, reward, total = np.full_like(params, eps), *np.zeros((3, *params.shape))
    for step, g in enumerate(gradients, start=1):
        g = g + weight_decay * params
        largest = np.maximum(largest, np.abs(g))
        sizes = sizes + np.abs(g)
        reward = np.maximum(reward - g * (params - start), 0)
        total = total - g
        bet = total / (largest * np.maximum(sizes + largest, alpha * largest)) * (largest + reward)
        updates.append(at(learning_rate, step) * (start + bet - params))
        params = params + updates[-1]
    return np.stack(updates)


def mechanize(
    gradients, params, learning_rate, weight_decay=1e-2, eps=1e-8, s_init=1e-8, num_betas=6
):
    """Cutkosky et al. (2023), algorithm 1, around gradient descent."""
    start, delta, betas, updates = (
        params,
        np.zeros_like(params),
        1 - 0.1 ** np.arange(1.0, num_betas + 1),
        [],
    )
    s, r, v, m = *np.zeros((3, num_betas)), np.full(num_betas, 1e-6)
    for step, g in enumerate(gradients, start=1):
        decay = weight_decay * s.sum() * np.linalg.norm(g) / (np.linalg.norm(params) + eps) * params
        h = np.vdot(g + decay, delta)
        delta = delta - at(learning_rate, step) * g
        m, v = np.maximum(betas * m, np.abs(h)), betas**2 * v + h**2
        r = np.maximum(betas * r - s * h, 0)
        s = (s_init / num_betas * m + r) / (np.sqrt(v) + eps)
        updates.append(start + s.sum() * delta - params)
        params = params + updates[-1]
    return np.stack(updates)
