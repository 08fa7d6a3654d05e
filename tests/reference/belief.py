"""References of rules/belief.py."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from .averages import at, average, square


def adabelief(
    gradients,
    params,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-16,
    eps_root=1e-16,
    *,
    nesterov=False,
    rectify=False,
    weight_decay=0.0,
):
    """Zhuang et al. (2020), algorithm 2:

    m ← β₁m + (1-β₁)g;  s ← β₂s + (1-β₂)(g - m)² + ε
    θ ← θ - η m̂/(√ŝ + ε)

    eps_root: the first ε, where it is another one.
    nesterov: m̂ as in NAdam, β₁m/(1-β₁ᵗ⁺¹) + (1-β₁)g/(1-β₁ᵗ).
    rectify: times Liu et al.'s (2020) r(t) once ρ(t) >= 5, m̂ alone before: the authors' package.
    """
    m, s = np.zeros_like(gradients[0]), np.zeros(np.shape(params))
    updates = []
    for step, g in enumerate(gradients, start=1):
        m = average(m, g, b1)
        s = average(s, square(g - m), b2) + eps_root
        m_hat = m / (1 - b1**step)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (step + 1)) + (1 - b1) * g / (1 - b1**step)
        direction = m_hat / (np.sqrt(s / (1 - b2**step)) + eps)
        if rectify:
            b = Fraction(b2)  # Exactly: numbers near 2000 cancel.
            limit = 2 / (1 - b) - 1
            length = limit - 2 * step * b**step / (1 - b**step)
            r = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
            direction = np.sqrt(float(r)) * direction if length >= 5 else m_hat
        update = -at(learning_rate, step) * (direction + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)


def yogi(
    gradients,
    params,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-3,
    *,
    eps_root=0.0,
    initial_accumulator_value=1e-6,
    bias_correction=False,
    weight_decay=0.0,
):
    """Zaheer et al. (2018), algorithm 2:

    m ← β₁m + (1-β₁)g;  v ← v - (1-β₂) sign(v - g²) g²;  θ ← θ - η m/(√v + ε)

    bias_correction: optax's m/(1-β₁ᵗ) and v/(1-β₂ᵗ), here of an m that starts at 0.
    """
    m = np.zeros_like(gradients[0])
    v = np.full(np.shape(params), initial_accumulator_value)
    updates = []
    for step, g in enumerate(gradients, start=1):
        m = average(m, g, b1)
        v = v - (1 - b2) * np.sign(v - square(g)) * square(g)
        m_hat, v_hat = m, v
        if bias_correction:
            m_hat, v_hat = m / (1 - b1**step), v / (1 - b2**step)
        direction = m_hat / (np.sqrt(v_hat + eps_root) + eps)
        update = -at(learning_rate, step) * (direction + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)
