"""References of rules/cover.py."""

from __future__ import annotations

import numpy as np

from .averages import at, average, square


def sm3(gradients, params, learning_rate, momentum=0.9, *, b2=None, eps=0.0, weight_decay=0.0):
    """Anil et al. (2019), SM3-II, covered by the indices of each axis, and its momentum:

    ν(i) = min over r with i in S_r of μ(r) + g(i)²;  μ(r) = max over i in S_r of ν(i)
    m ← β₁m + (1-β₁)g/√ν, 0/0 = 0;  θ ← θ - ηm

    b2: ν(i) = β₂ min μ(r) + (1-β₂)g(i)².
    """
    shape = np.shape(params)
    sums = {(axis, index): 0.0 for axis, size in enumerate(shape) for index in range(size)}
    sums = sums or {(0, 0): 0.0}  # One number is covered by itself.
    m, nu = np.zeros_like(gradients[0]), np.zeros(shape)
    updates = []
    for step, g in enumerate(gradients, start=1):
        for place in np.ndindex(shape):
            least = min(sums[each] for each in enumerate(place or (0,)))
            share = square(g[place])
            nu[place] = least + share if b2 is None else average(least, share, b2)
        sums = dict.fromkeys(sums, 0.0)
        for place in np.ndindex(shape):
            for each in enumerate(place or (0,)):
                sums[each] = max(sums[each], nu[place])
        root = np.sqrt(nu + eps)
        direction = np.divide(g, root, out=np.zeros_like(g), where=root > 0)
        m = average(m, direction, momentum)
        update = -at(learning_rate, step) * (m + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)
