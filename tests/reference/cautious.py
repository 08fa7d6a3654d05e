"""References of rules/cautious.py, and of the kinds of weight decay in rules/scaling.py.

Each stands around Adam, or Lion, and is written out with it.
"""

from __future__ import annotations

import numpy as np

from .averages import at, average, square


def adam_directions(gradients, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba (2015), algorithm 1: m̂/(√v̂ + ε) of every step."""
    m, v, directions = np.zeros_like(gradients[0]), np.zeros(gradients[0].shape), []
    for step, g in enumerate(gradients, start=1):
        m, v = average(m, g, b1), average(v, square(g), b2)
        directions.append(m / (1 - b1**step) / (np.sqrt(v / (1 - b2**step)) + eps))
    return np.stack(directions)


def lion_directions(gradients, b1=0.9, b2=0.99):
    """Chen et al. (2023), algorithm 2: the signs of every step."""
    m, directions = np.zeros_like(gradients[0]), []
    for g in gradients:
        directions.append(np.sign(average(m, g, b1)))
        m = average(m, g, b2)
    return np.stack(directions)


def masked_as_in_the_paper(u, g):
    """Liang et al. (2024), algorithm 2: φ = 1[u∘g >= 0], and d/(‖φ‖₀ + 1) times u∘φ."""
    phi = u * g >= 0
    return u * phi * (u.size / (phi.sum() + 1))


def masked_as_in_the_code(u, g):
    """C-AdamW of the authors: mask = u·g > 0, divided by its mean, which is 1e-3 at least."""
    mask = (u * g > 0).astype(float)
    return u * (mask / max(mask.mean(), 1e-3))


def signed_by_the_gradient(u, g):
    """Cao, Li & Song (2024), Grams: sign(g)∘|u|."""
    return np.sign(g) * np.abs(u)


def descended(directions, params, learning_rate, weight_decay=0.0, kind=None):
    """The updates of some directions, with a kind of weight decay.

    None: θ ← θ - η(u + λθ), Loshchilov & Hutter (2019). "cautious": θ ← θ - η(u + λ·1[u∘θ >= 0]∘θ), Chen et
    al. (2025). "independent": θ ← θ - ηu - λθ. "proximal": θ ← (θ - ηu)/(1 + ηλ), Zhuang et al. (2022).
    """
    updates = []
    for step, u in enumerate(directions, start=1):
        rate = at(learning_rate, step)
        if kind == "cautious":
            new = params - rate * (u + weight_decay * (u * params >= 0) * params)
        elif kind == "independent":
            new = params - rate * u - weight_decay * params
        elif kind == "proximal":
            new = (params - rate * u) / (1 + rate * weight_decay)
        else:
            new = params - rate * (u + weight_decay * params)
        updates.append(new - params)
        params = new
    return np.stack(updates)
