"""What of an optimizer goes to the device, and how often."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_network import BATCH, PARAMS, create, mean_squared_error

import adaptive_jax as aj


def test_nothing_goes_to_the_device_unasked():
    step = aj.train_step(mean_squared_error)
    state, _ = step(create(), BATCH)
    with jax.transfer_guard("disallow"):
        state, _ = step(state, BATCH)
        state, metrics = step(state.replace(tx=aj.adam(1e-3)), BATCH)
        state, metrics = step(state, BATCH)
    assert float(metrics["learning_rate"]) == pytest.approx(1e-3)


def test_an_optimizer_on_the_device_is_not_sent_again():
    @jax.jit
    def step(tx, params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    tx = aj.adam(0.1)
    state = tx.init(PARAMS)
    expected = step(tx, PARAMS, state)
    tx = jax.device_put(tx)
    step(tx, PARAMS, state)
    with jax.transfer_guard("disallow"):
        got = step(tx, PARAMS, state)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_on_several_devices_the_numbers_of_the_optimizer_are_sent_once(make_mesh):
    everywhere = NamedSharding(make_mesh(8), PartitionSpec())
    state = aj.TrainState.create(jax.device_put(jnp.ones(8), everywhere), aj.adam(0.1))
    step = aj.train_step(lambda params, batch: jnp.sum(params**2))
    state, _ = step(state, None)
    with jax.transfer_guard("disallow"):
        state, _ = step(state, None)
