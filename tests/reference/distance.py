"""References of rules/distance.py."""

from __future__ import annotations

import numpy as np

from .averages import at


def dog(
    gradients, params, learning_rate=1.0, init_step=("heuristic", 1e-6), eps=1e-8, weight_decay=0.0
):
    """Ivgi et al. (2023): η = max‖θ-θ₀‖/√(Σ‖g‖² + ε), with an L2 penalty."""
    start, (kind, first), total, updates = params, init_step, eps, []
    distance = {"heuristic": first * (1 + np.linalg.norm(params)), "distance": first}.get(kind, 0.0)
    for step, g in enumerate(gradients, start=1):
        g = g + weight_decay * params
        distance = max(distance, np.linalg.norm(params - start))
        total += np.sum(g**2)
        rate = first if kind == "learning_rate" and step == 1 else distance / np.sqrt(total)
        updates.append(-at(learning_rate, step) * rate * g)
        params = params + updates[-1]
    return np.stack(updates)


l_dog = dog  # Of one array they are the same; the test gives it each array alone.


def dowg(gradients, params, learning_rate=1.0, init_estim_sq_dist=None, eps=1e-4, weight_decay=0.0):
    """Khaled et al. (2023), algorithm 1: η = r²/√v with v ← v + r²‖g‖², r = max‖θ-θ₀‖."""
    start, total, updates = params, 0.0, []
    squared = eps if init_estim_sq_dist is None else init_estim_sq_dist
    for step, g in enumerate(gradients, start=1):
        g = g + weight_decay * params
        squared = max(squared, np.sum((params - start) ** 2))
        total += squared * np.sum(g**2)
        updates.append(-at(learning_rate, step) * squared / (np.sqrt(total) + eps) * g)
        params = params + updates[-1]
    return np.stack(updates)
