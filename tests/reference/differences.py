"""References of rules/differences.py."""

from __future__ import annotations

import numpy as np

from .adam import adam
from .averages import at, average, square


def adan(
    gradients,
    params,
    learning_rate,
    b1=0.98,
    b2=0.92,
    b3=0.99,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=0.0,
    *,
    proximal=True,
):
    """Xie et al. (2022), algorithm 1, with the paper's β as 1 - β here, and bias corrections as their code:

    m ← β₁m + (1-β₁)g;  v ← β₂v + (1-β₂)(g - g₋₁);  n ← β₃n + (1-β₃)(g + β₂(g - g₋₁))²
    θ ← (θ - η(m̂ + β₂v̂)/(√n̂ + ε))/(1 + ηλ)

    proximal: whether weight decay is so, or θ ← (1 - ηλ)θ - η(…).
    """
    m, v, last = np.zeros_like(gradients[0]), np.zeros_like(gradients[0]), gradients[0]
    n = np.zeros(np.shape(params))
    updates = []
    for step, g in enumerate(gradients, start=1):
        m = average(m, g, b1)
        v = average(v, g - last, b2)
        n = average(n, square(g + b2 * (g - last)), b3)
        last = g
        m_hat, v_hat, n_hat = (x / (1 - b**step) for x, b in ((m, b1), (v, b2), (n, b3)))
        direction = (m_hat + b2 * v_hat) / (np.sqrt(n_hat + eps_root) + eps)
        eta, decay = at(learning_rate, step), at(weight_decay, step)
        if proximal:
            new = (params - eta * direction) / (1 + eta * decay)
        else:
            new = (1 - eta * decay) * params - eta * direction
        updates.append(new - params)
        params = new
    return np.stack(updates)


def mars(
    gradients,
    params,
    learning_rate,
    b1=0.95,
    b2=0.99,
    eps=1e-8,
    gamma=0.025,
    weight_decay=0.0,
    *,
    form="adam",
    from_zero=False,
):
    """Yuan et al. (2024), the approximate form:

    c = g + γ β₁/(1-β₁) (g - g₋₁);  c ← c/‖c‖ where ‖c‖ > 1;  m ← β₁m + (1-β₁)c;  v ← β₂v + (1-β₂)c²
    θ ← θ - η(m̂/(√v̂ + ε) + λθ), or θ ← θ - η(sign(m) + λθ)

    from_zero: g₋₁ = 0 at first, as their code has it.
    """
    last = np.zeros_like(gradients[0]) if from_zero else gradients[0]
    corrected = []
    for g in gradients:
        c = g + gamma * b1 / (1 - b1) * (g - last)
        norm = np.sqrt(np.sum(square(c)))
        corrected.append(c / max(norm, 1.0))
        last = g
    if form == "adam":
        return adam(
            np.stack(corrected), params, learning_rate, b1, b2, eps, weight_decay=weight_decay
        )
    m, updates = np.zeros_like(gradients[0]), []
    for step, c in enumerate(corrected, start=1):
        m = average(m, c, b1)
        update = -at(learning_rate, step) * (np.sign(m) + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)


def optimistic_gradient_descent(
    gradients, params, learning_rate, alpha=1.0, beta=1.0, weight_decay=0.0
):
    """Mokhtari et al. (2019): θ ← θ - η((α + β)g - βg₋₁), g₋₁ = g at first."""
    last, updates = gradients[0], []
    for step, g in enumerate(gradients, start=1):
        direction = (at(alpha, step) + at(beta, step)) * g - at(beta, step) * last
        update = -at(learning_rate, step) * (direction + at(weight_decay, step) * params)
        params, last = params + update, g
        updates.append(update)
    return np.stack(updates)


def optimistic_adam(
    gradients,
    params,
    learning_rate,
    optimism=None,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    *,
    nesterov=False,
    weight_decay=0.0,
):
    """Daskalakis et al. (2018), algorithm 1: θ ← θ - 2ηu + ηu₋₁ of Adam's u; here u₋₁ = u at first."""
    optimism = learning_rate if optimism is None else optimism
    directions = -adam(gradients, params, 1.0, b1, b2, eps, eps_root, nesterov=nesterov)
    last, updates = directions[0], []
    for step, u in enumerate(directions, start=1):
        eta, o = at(learning_rate, step), at(optimism, step)
        update = -(eta + o) * u + o * last - eta * at(weight_decay, step) * params
        params, last = params + update, u
        updates.append(update)
    return np.stack(updates)


def optimistic_adam_v2(
    gradients,
    params,
    learning_rate,
    *,
    alpha=1.0,
    beta=1.0,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    nesterov=False,
    weight_decay=0.0,
):
    """The same with two weights, as in optax: θ ← θ - η((α + β)u - βu₋₁)."""
    directions = -adam(gradients, params, 1.0, b1, b2, eps, eps_root, nesterov=nesterov)
    return optimistic_gradient_descent(directions, params, learning_rate, alpha, beta, weight_decay)


# What the updates would be if no two terms cancelled, of the parameters that each step sees


def size_of_adan(gradients, params, learning_rate, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, eps_root=0.0,
                 weight_decay=0.0, *, proximal=True):  # fmt: skip
    m, v, last = 0.0, 0.0, np.zeros_like(gradients[0])
    n, sizes = 0.0, []
    for step, g in enumerate(gradients, start=1):
        change, length = (0 * g, 0.0) if step == 1 else (g - last, np.abs(g) + np.abs(last))
        m, v = average(m, np.abs(g), b1), average(v, length, b2)
        n = average(n, square(g + b2 * change), b3)
        last = g
        m_hat, v_hat, n_hat = (x / (1 - b**step) for x, b in ((m, b1), (v, b2), (n, b3)))
        sizes.append((m_hat + b2 * v_hat) / (np.sqrt(n_hat + eps_root) + eps))
    return _with_decay(sizes, params, learning_rate, weight_decay)


def size_of_mars(gradients, params, learning_rate, b1=0.95, b2=0.99, eps=1e-8, gamma=0.025,
                 weight_decay=0.0, *, form="adam", from_zero=False):  # fmt: skip
    last = np.zeros_like(gradients[0]) if from_zero else gradients[0]
    weight = gamma * b1 / (1 - b1)
    m, v, sizes = 0.0, 0.0, []
    for step, g in enumerate(gradients, start=1):
        c = g + weight * (g - last)
        longest = max(np.sqrt(np.sum(square(c))), 1.0)
        length = np.abs(g) + weight * (np.abs(g) + np.abs(last))
        m, v = average(m, length / longest, b1), average(v, square(c / longest), b2)
        last = g
        root = np.sqrt(v / (1 - b2**step)) + eps
        sizes.append(np.ones(g.shape) if form == "lion" else m / (1 - b1**step) / root)
    return _with_decay(sizes, params, learning_rate, weight_decay)


def size_of_optimistic_gradient_descent(
    gradients, params, learning_rate, alpha=1.0, beta=1.0, weight_decay=0.0
):
    sizes = np.abs(gradients)
    before = np.concatenate([sizes[:1], sizes[:-1]])
    return _with_decay((alpha + beta) * sizes + beta * before, params, learning_rate, weight_decay)


def size_of_optimistic_adam(gradients, params, learning_rate, optimism=None, b1=0.9, b2=0.999, eps=1e-8,
                            eps_root=0.0, *, nesterov=False, weight_decay=0.0):  # fmt: skip
    rates = np.broadcast_to(learning_rate, len(gradients))
    share = 1.0 if optimism is None else optimism / rates[:, None]
    return size_of_optimistic_adam_v2(
        gradients, params, learning_rate, beta=share, b1=b1, b2=b2, eps=eps, eps_root=eps_root,
        nesterov=nesterov, weight_decay=weight_decay,
    )  # fmt: skip


def size_of_optimistic_adam_v2(gradients, params, learning_rate, *, alpha=1.0, beta=1.0, b1=0.9, b2=0.999,
                               eps=1e-8, eps_root=0.0, nesterov=False, weight_decay=0.0):  # fmt: skip
    settings = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root, "nesterov": nesterov}
    directions = adam(np.abs(gradients), np.zeros(gradients[0].shape), 1.0, **settings)
    return size_of_optimistic_gradient_descent(
        directions, params, learning_rate, alpha, beta, weight_decay
    )


def _with_decay(sizes, params, learning_rate, weight_decay):
    rates, decays = (
        np.broadcast_to(x, len(params)).reshape(-1, *[1] * (params.ndim - 1))
        for x in (learning_rate, weight_decay)
    )
    return rates * (np.stack(list(sizes)) + decays * np.abs(params))
