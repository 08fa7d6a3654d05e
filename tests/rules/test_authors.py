"""The losses that the authors' own code has, ten steps of it: PyTorch, float32, on a CPU.

They minimise ½ΣA∘W² with A = [[1, 2, 3], [4, 5, 6]] from W = [[1, -2, ½], [0.3, 1, -1]], where it is
10.555.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptive_jax as aj

A = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
START = np.array([[1, -2, 0.5], [0.3, 1, -1]], np.float32)

LOSSES = {
    "adan": (
        "github.com/sail-sg/Adan, 2c65bea",
        functools.partial(aj.adan, 0.1),
        [8.789999, 7.250514, 5.91806, 4.777532, 3.811358,
         3.003423, 2.340186, 1.809718, 1.400833, 1.102227],
    ),
    "adan with weight decay": (
        "github.com/sail-sg/Adan, 2c65bea",
        functools.partial(aj.adan, 0.1, weight_decay=0.5),
        [7.972789, 5.916077, 4.297182, 3.046554, 2.101685,
         1.408392, 0.920154, 0.596533, 0.401889, 0.304566],
    ),
    "ademamix": (
        "github.com/apple/ml-ademamix, c3d73c0",
        functools.partial(aj.ademamix, 0.1, alpha=2.0),
        [8.789668, 7.240965, 5.907286, 4.778041, 3.832577,
         3.046572, 2.399952, 1.877804, 1.467717, 1.157864],
    ),
    "ademamix with warm-ups and weight decay": (
        "github.com/apple/ml-ademamix, c3d73c0",
        functools.partial(
            aj.ademamix, 0.1, b3=0.99, weight_decay=0.1, b3_warmup=8, alpha_warmup=6
        ),
        [8.534442, 6.681335, 5.016862, 3.585291, 2.428325,
         1.589313, 1.130849, 1.012265, 1.17704, 1.547996],
    ),
    "adopt": (
        "github.com/iShohei220/adopt, 6468572",
        functools.partial(aj.adopt, 0.1),
        [10.555, 10.369051, 10.023538, 9.548164, 8.973701,
         8.330116, 7.645132, 6.943234, 6.245082, 5.567284],
    ),
    "mars": (
        "github.com/AGI-Arena/MARS, 4831e28",
        functools.partial(aj.mars, 0.1, from_zero=True),
        [8.789999, 7.237162, 5.892242, 4.74322, 3.767435,
         2.945554, 2.265762, 1.719862, 1.305928, 1.022617],
    ),
    "mars-lion": (
        "github.com/AGI-Arena/MARS, 4831e28",
        functools.partial(aj.mars, 0.1, form="lion", from_zero=True),
        [8.789999, 7.235, 5.889999, 4.754999, 3.829999,
         2.954999, 2.289999, 1.834999, 1.329999, 1.034999],
    ),
}  # fmt: skip
"""From a name to the code and its commit, what makes the optimizer here, and the losses after each step."""


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_the_authors(name):
    _, make, expected = LOSSES[name]
    tx = make()

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(A * params, state, params)
        params = params + updates
        return (params, state), jnp.sum(A * params**2) / 2

    _, losses = jax.lax.scan(step, (jnp.asarray(START), tx.init(jnp.asarray(START))), length=10)
    # Both are in float32: where decay and gradient shrink W together, both are off by a few roundings.
    np.testing.assert_allclose(losses, expected, rtol=4e-6 if "adan with" in name else 2e-6)
