"""States that a step wrote over, and arrays that are in one twice."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from small_network import create

import adaptive_jax as aj


def test_a_state_that_was_used_up_says_so():
    state = aj.TrainState.create(jnp.ones(3), aj.sgd(0.1))
    step = aj.train_step(lambda params, batch: jnp.sum(params * batch))
    step(state, 1.0)
    with pytest.raises(ValueError, match=r"used up by a step before.*the state that it returned"):
        step(state, 1.0)


def mu_for_nu(state):
    moments, rest = state.opt_state
    return state.replace(opt_state=(moments._replace(mu=moments.nu), rest))


def tied():
    weight = jnp.ones((4, 4))
    return aj.TrainState.create({"embed": weight, "out": weight}, aj.adam(0.1), copy=False)


def weights(params, batch):
    return sum(jnp.sum(x) for x in jax.tree.leaves((params, batch)))


@pytest.mark.parametrize(
    ("make", "paths"),
    [
        (
            lambda state: (state.replace(model_state={"ema": state.params}), None),
            r"state.params\['bias'\] and state.model_state\['ema'\]\['bias'\] are one",
        ),
        (
            lambda state: (tied(), None),
            r"\['embed'\] and state.params\['out'\] are .*float32\[4, 4\]",
        ),
        (
            lambda state: (mu_for_nu(state), None),
            r"opt_state\[0\].mu.* and state.opt_state\[0\].nu",
        ),
        (lambda state: (state, [state.params["bias"]]), r"state.params\['bias'\] and batch\[0\]"),
        (
            lambda state: (
                state.replace(model_state=jax.device_put(state.step, jax.devices()[0])),
                None,
            ),
            "state.step and state.model_state are one",
        ),
    ],
    ids=["ema", "tied", "mu for nu", "batch", "another view"],
)
def test_an_array_that_is_in_the_state_twice(make, paths):
    """Named before anything is donated, and mended by the copy that the error asks for."""
    state, batch = make(create())
    step = aj.train_step(weights)
    for _ in range(2):
        with pytest.raises(ValueError, match=paths + r".*jnp.copy.*The state is as it was"):
            step(state, batch)
    arrays = dataclasses.replace(state, tx=None)
    assert not any(x.is_deleted() for x in jax.tree.leaves(arrays))
    state = dataclasses.replace(jax.tree.map(jnp.copy, arrays), tx=state.tx)
    assert step(state, batch)[0].step == 1


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_sharded_array_that_is_in_the_state_twice(axis_type):
    """Where XLA would end the process: so it is not asked. Nor is a state that a step has made."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    params = jax.device_put(jnp.arange(16.0), NamedSharding(mesh, PartitionSpec("data")))
    step = aj.train_step(weights)
    state = aj.TrainState.create(params, aj.adam(0.1))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"state\.params and state\.model_state are one array"):
            step(state.replace(model_state=state.params), None)
        with pytest.raises(ValueError, match=r"state\.params and batch are one array"):
            step(state.replace(step=state.step), state.params)
        state, _ = step(state, None)
    rate = jnp.array(0.1)  # The optimizer is only read: it may have an array twice.
    state = state.replace(tx=aj.adam(rate, eps=rate))
    state, _ = step(state.replace(rng=jax.random.key(0)), [rate, rate])
    assert state.step == 3


def test_on_several_devices_an_array_of_the_batch_is_looked_for_in_every_step(make_mesh):
    """XLA would end the process. A key of the state is only read: the batch may have it too."""
    everywhere = NamedSharding(make_mesh(8), PartitionSpec())
    params = jax.device_put(jnp.ones(8), everywhere)
    state = aj.TrainState.create(params, aj.adam(0.1), rng=jax.random.key(0))
    step = aj.train_step(lambda params, batch: jnp.sum((params - batch[0]) ** 2))
    for _ in range(2):
        state, _ = step(state, (params, state.rng))
    with pytest.raises(ValueError, match=r"state.params and batch\[0\] are one array"):
        step(state, (state.params, None))
