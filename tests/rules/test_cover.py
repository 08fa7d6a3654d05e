"""SM3 on arrays with several axes, which the references of all optimizers see as vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptive_jax as aj
from tests import reference


def updates_and_state(tx, gradients, params):
    state, updates = tx.init(params), []
    for gradient in gradients:
        update, state = jax.jit(tx.update)(gradient, state, params)
        params = params + update
        updates.append(update)
    return np.stack(updates), state


@pytest.mark.parametrize("shape", [(), (3, 4), (2, 3, 2), (2, 2, 1, 3, 2)], ids=str)
def test_a_sum_for_each_index_of_each_axis(shape):
    gradients = np.random.default_rng(0).normal(size=(6, *shape))
    gradients[2] = 0
    with jax.enable_x64(True):
        updates, state = updates_and_state(
            aj.sm3(0.1), jnp.asarray(gradients), jnp.ones(shape, jnp.float64)
        )
    np.testing.assert_allclose(
        updates, reference.sm3(gradients, np.ones(shape), 0.1), rtol=1e-12, atol=1e-15
    )
    kept = [getattr(state[0], f"axis_{axis}") for axis in range(5)]
    assert [x.shape for x in kept if x is not None] == ([(n,) for n in shape] if shape else [()])


def test_axes_from_the_fifth_on_share_their_sums():
    shape = (2, 1, 2, 2, 3, 2)
    gradients = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    updates, state = updates_and_state(aj.sm3(0.1), jnp.asarray(gradients), jnp.ones(shape))
    merged = gradients.reshape(4, *shape[:4], -1)
    expected = reference.sm3(merged.astype(np.float64), np.ones(merged.shape[1:]), 0.1)
    np.testing.assert_allclose(updates, expected.reshape(updates.shape), rtol=2e-6, atol=1e-9)
    assert state[0].axis_4.shape == (3, 2)


def test_it_keeps_rows_and_columns_beside_the_momentum():
    tx = aj.sm3(0.1)
    assert aj.state_bytes(tx, jnp.ones((300, 200))).total == 4 * (300 * 200 + 300 + 200)
