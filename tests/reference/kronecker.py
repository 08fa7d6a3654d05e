"""References of rules/kronecker.py."""

from __future__ import annotations

import numpy as np

from .averages import at, average


def each_matrix(function):
    """The same of arrays with more axes, (steps, …, m, n), one matrix after the other."""

    def of_all(gradients, params, *args, **kwargs):
        if params.ndim <= 2:
            return function(gradients, params, *args, **kwargs)
        updates = [of_all(gradients[:, i], params[i], *args, **kwargs) for i in range(len(params))]
        return np.stack(updates, axis=1)

    return of_all


def moved(directions, params, learning_rate, weight_decay):
    """θ ← θ - η(d + λθ) for a generator of directions: what each step adds."""
    updates = []
    for step, direction in enumerate(directions, start=1):
        update = -at(learning_rate, step) * (direction + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)


def power(matrix, exponent):
    """A^p of a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(values**exponent) @ vectors.T


@each_matrix
def shampoo_of_the_paper(gradients, params, learning_rate, eps=1e-4):
    """Gupta, Koren & Singer (2018), algorithm 1: L₀ = εI, R₀ = εI; L ← L + GGᵀ, R ← R + GᵀG;
    W ← W - ηL^(-1/4)GR^(-1/4)."""

    def directions():
        m, n = params.shape
        left, right = eps * np.eye(m), eps * np.eye(n)
        for g in gradients:
            left, right = left + g @ g.T, right + g.T @ g
            yield power(left, -1 / 4) @ g @ power(right, -1 / 4)

    return moved(directions(), params, learning_rate, 0.0)


@each_matrix
def shampoo(
    gradients,
    params,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    exponent=-1 / 4,
    average=True,
    graft="adam",
    graft_eps=1e-8,
    eps_relative=True,
    max_size=1024,
    refresh_every=10,
    weight_decay=0.0,
):
    """What people run of it, after Anil et al. (2020) and Meta's code: averages of L and R and of the
    gradient, each over the sum of its weights; roots that are refreshed every so many steps; blocks,
    each as long as the step of another method, which also takes what is no matrix."""

    def block(gradients):
        m, n = gradients.shape[1:]
        left, right, roots = np.zeros((m, m)), np.zeros((n, n)), None
        mu, nu = np.zeros((m, n)), np.zeros((m, n))
        for step, g in enumerate(gradients, start=1):
            mu = b1 * mu + (1 - b1) * g
            momentum = mu / (1 - b1**step)
            if average:
                left = b2 * left + (1 - b2) * g @ g.T
                right = b2 * right + (1 - b2) * g.T @ g
            else:
                left, right = left + g @ g.T, right + g.T @ g
            if (step - 1) % refresh_every == 0:
                weight = 1 - b2**step if average else 1
                roots = []
                for factor in (left / weight, right / weight):
                    added = eps * np.linalg.norm(factor, 2) if eps_relative else eps
                    roots.append(power(factor + added * np.eye(len(factor)), exponent))
            direction = roots[0] @ momentum @ roots[1]
            nu, like = step_of(graft or ("adam" if average else "adagrad"), momentum, g, nu, step)
            if graft is not None:
                direction = direction * np.linalg.norm(like) / np.linalg.norm(direction)
            yield direction, like

    def step_of(method, momentum, g, nu, step):
        if method == "sgd":
            return nu, momentum
        nu = nu + g**2 if method == "adagrad" else b2 * nu + (1 - b2) * g**2
        of_adam = nu / (1 - b2**step) if method == "adam" else nu
        return nu, momentum / (np.sqrt(of_adam) + graft_eps)

    def directions():
        if params.ndim < 2:
            shape = params.shape
            for _, like in block(gradients.reshape(len(gradients), -1, 1)):
                yield like.reshape(shape)
            return
        cuts = [np.array_split(np.arange(size), -(-size // max_size)) for size in params.shape]
        places = [np.ix_(rows, columns) for rows in cuts[0] for columns in cuts[1]]
        blocks = [block(np.stack([g[place] for g in gradients])) for place in places]
        for each in zip(*blocks, strict=True):
            whole = np.zeros(params.shape)
            for place, (direction, _) in zip(places, each, strict=True):
                whole[place] = direction
            yield whole

    return moved(directions(), params, learning_rate, weight_decay)


@each_matrix
def kl_shampoo(gradients, params, learning_rate, b1=0.9, b2=0.999, eps=1e-6):
    """Lin et al. (2025): L ← βL + (1-β)GR⁻¹Gᵀ/n, R ← βR + (1-β)GᵀL⁻¹G/m, W ← W - ηL^(-1/2)MR^(-1/2).

    L and R are divided by the sums of their weights; at first they are sI, where s is the root mean
    square of the first gradient.
    """

    def directions():
        m, n = params.shape
        left, right, mu = np.zeros((m, m)), np.zeros((n, n)), np.zeros((m, n))
        size = np.sqrt(np.mean(gradients[0] ** 2))
        inverse = [np.eye(m) / size, np.eye(n) / size]
        for step, g in enumerate(gradients, start=1):
            mu = average(mu, g, b1)
            left = average(left, g @ inverse[1] @ g.T / n, b2)
            right = average(right, g.T @ inverse[0] @ g / m, b2)
            factors = [x / (1 - b2**step) for x in (left, right)]
            factors = [x + eps * np.linalg.norm(x, 2) * np.eye(len(x)) for x in factors]
            inverse = [np.linalg.inv(x) for x in factors]
            roots = [power(x, -1 / 2) for x in factors]
            yield roots[0] @ mu @ roots[1] / (1 - b1**step)

    return moved(directions(), params, learning_rate, 0.0)


@each_matrix
def soap(
    gradients,
    params,
    learning_rate,
    b1=0.95,
    b2=0.95,
    eps=1e-8,
    b3=None,
    bias_correction=True,
    skip_first=False,
    kl=False,
    kl_eps=1e-6,
    max_size=10_000,
    refresh_every=10,
    one_sided=False,
    weight_decay=0.01,
):
    """Vyas et al. (2024), algorithm 3, as their code computes it: the first moment in the eigenvectors,
    out of them and back in when they change; the second one with its rows and columns in their order.

    With skip_first the first step makes the eigenvectors, and nothing else; without, it is taken in
    them, where its gradient has zeros that rounding must not hide.
    """
    b3 = b2 if b3 is None else b3

    def directions():
        shape = params.shape
        has = [len(shape) == 2 and size <= max_size for size in shape]
        if one_sided and len(shape) == 2:
            has = [has[0] and shape[0] <= shape[1], has[1] and shape[1] < shape[0]]
        bases = [np.eye(size) for size in shape] if len(shape) == 2 else []
        factors = [np.zeros((size, size)) for size in shape] if len(shape) == 2 else []

        def turned(x):
            return bases[0].T @ x @ bases[1] if bases else x

        def back(x):
            return bases[0] @ x @ bases[1].T if bases else x

        mu, nu, t = np.zeros(shape), np.zeros(shape), 0
        for step, g in enumerate(gradients, start=1):
            new = []
            if bases:
                seen = whitened(g, factors, bases, step) if kl and all(has) else (g, g)
                squares = seen[0] @ seen[0].T, seen[1].T @ seen[1]
                new = [average(*each, b3) for each in zip(factors, squares, strict=True)]
            if step == 1:
                for axis in range(len(bases)):
                    if has[axis]:
                        bases[axis] = np.linalg.eigh(new[axis])[1][:, ::-1]
                if skip_first:
                    factors = new
                    yield np.zeros(shape)
                    continue
            t += 1
            rotated = turned(g)
            if step == 1 and any(has):  # What is 0 but for rounding.
                rotated[np.abs(rotated) < 1e-12 * np.max(np.abs(rotated))] = 0
            mu, nu = average(mu, rotated, b1), average(nu, rotated**2, b2)
            ratio = mu / (np.sqrt(nu) + eps)
            if bias_correction:
                ratio = ratio * np.sqrt(1 - b2**t) / (1 - b1**t)
            yield back(ratio)
            mu, factors = back(mu), new
            if t % refresh_every == 0:
                for axis in range(len(bases)):
                    if has[axis]:
                        basis, factor = bases[axis], factors[axis]
                        order = np.argsort(-np.diag(basis.T @ factor @ basis))
                        nu = np.take(nu, order, axis)
                        bases[axis] = np.linalg.qr(factor @ basis[:, order])[0]
            mu = turned(mu)

    def whitened(g, factors, bases, step):
        """KL-SOAP: each factor sees the gradient times the root of the other one's inverse."""
        m, n = g.shape
        if step == 1:
            g = g / np.sqrt(np.sqrt(np.mean(g**2)))
            return g / np.sqrt(n), g / np.sqrt(m)
        halves = []
        for factor, basis in zip(factors, bases, strict=True):
            values = np.diag(basis.T @ factor @ basis) / (1 - b3 ** (step - 1))
            halves.append(basis / np.sqrt(values + kl_eps * values.max()))
        return g @ halves[1] / np.sqrt(n), halves[0].T @ g / np.sqrt(m)

    return moved(directions(), params, learning_rate, weight_decay)
