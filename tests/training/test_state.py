"""What a run is, and what it is made of."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from small_network import (
    BATCH,
    FIT_STEP,
    PARAMS,
    assert_close,
    by_hand,
    create,
    mean_squared_error,
    run,
)

import adaptive_jax as aj


def test_the_users_arrays_stay():
    params = jax.tree.map(jnp.copy, PARAMS)
    state = aj.TrainState.create(params, aj.adam(0.01))
    new, _ = aj.train_step(mean_squared_error)(state, BATCH)
    assert np.isfinite(params["hidden"]).all()
    assert state.params["hidden"].is_deleted()
    handed_over = aj.TrainState.create(params, aj.adam(0.01), copy=False)
    assert handed_over.params is params
    assert not new.params["hidden"].is_deleted()


def test_a_vmapped_state_is_a_sweep():
    rates = jnp.array([0.001, 0.01, 0.1])
    states = jax.vmap(lambda rate: aj.TrainState.create(PARAMS, aj.adam(rate)))(rates)
    step = aj.train_step(mean_squared_error)
    many = jax.jit(jax.vmap(step, in_axes=(0, None)), donate_argnums=0)
    for _ in range(3):
        states, metrics = many(states, BATCH)
    assert metrics["loss"].shape == (3,)
    for index, rate in enumerate(rates):
        params, _, _ = by_hand(aj.adam(float(rate)), mean_squared_error, PARAMS, [BATCH] * 3)
        assert_close(jax.tree.map(lambda x, i=index: x[i], states.params), params, 1e-4)
    # Nothing of the trace stays in the step.
    state, _ = step(aj.TrainState.create(PARAMS, aj.adam(0.1)), BATCH)
    assert np.isfinite(state.params["bias"]).all()


def test_a_state_is_a_pytree():
    state = create()
    leaves, treedef = jax.tree.flatten(state)
    again = treedef.unflatten(leaves)
    assert isinstance(again, aj.TrainState)
    assert dataclasses.asdict(again).keys() == dataclasses.asdict(state).keys()
    assert len(leaves) == len(set(map(id, leaves)))


def test_an_optimizer_that_was_not_called():
    with pytest.raises(TypeError, match=r"Call it: adam\("):
        aj.TrainState.create(jnp.ones(3), aj.adam)


def test_a_state_shows_shapes_and_its_optimizer():
    state = aj.TrainState.create({"w": jnp.ones((2, 3))}, aj.sgd(0.1), rng=jax.random.key(0))
    shown = "TrainState(step=int32[], params={'w': float32[2, 3]}, "
    shown += "opt_state=(EmptyState(), EmptyState()), "
    assert repr(state).startswith(shown + "tx=sgd(learning_rate=0.1), rng=key<fry>[]")
    assert repr(jax.tree.map(lambda x: None, state)).startswith("TrainState(")


KEEPING = {
    "prodigy": lambda: optax.contrib.prodigy(),
    "dog": lambda: optax.contrib.dog(),
    "cocob": lambda: optax.contrib.cocob(),
    "mechanize": lambda: optax.contrib.mechanize(optax.sgd(0.1)),
    "in a chain": lambda: aj.chain(optax.contrib.dog(), aj.scale_by_learning_rate(0.1)),
    "twice": lambda: optax.GradientTransformation(
        lambda params: (params, params, jnp.zeros(())),
        lambda updates, state, params=None: (updates, (state[0], updates, state[2] + 1)),
    ),
}


@pytest.mark.parametrize(("name", "copy"), [*((name, True) for name in KEEPING), ("twice", False)])
def test_an_optimizer_whose_state_holds_the_parameters(name, copy):
    """A step writes over both: the state has copies."""
    tx, step = KEEPING[name](), aj.train_step(mean_squared_error, metrics=("loss",))
    with jax.numpy_dtype_promotion("standard"):
        params, opt_state, _ = by_hand(tx, mean_squared_error, PARAMS, [BATCH] * 3)
        start = PARAMS if copy else jax.tree.map(jnp.copy, PARAMS)
        state, _ = run(step, aj.TrainState.create(start, tx, copy=copy), [BATCH] * 3)
    assert_close(state.params, params, 1e-5)
    assert_close(state.opt_state, opt_state, 1e-5)
    assert np.isfinite(PARAMS["bias"]).all()


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_state_that_holds_sharded_parameters(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put(jnp.arange(16.0), sharding)
    tx = KEEPING["twice"]()
    state = aj.TrainState.create(params, tx)
    assert all(x.sharding == sharding for x in state.opt_state[:2])
    step = aj.train_step(lambda params, batch: jnp.sum(params**2), metrics=("loss",))
    state, _ = step(state, 0.0)
    np.testing.assert_array_equal(state.opt_state[0], np.arange(16.0))


def test_a_number_that_an_optimizer_keeps_stays_the_users():
    rate = jnp.array(0.1)
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.inject_hyperparams(optax.sgd)(learning_rate=rate)
        for _ in range(2):
            state, _ = FIT_STEP(aj.TrainState.create(PARAMS, tx), BATCH)
    assert rate == state.opt_state.hyperparams["learning_rate"]


def test_shapes_in_the_place_of_arrays():
    shapes = jax.eval_shape(lambda: PARAMS)
    for arguments in ({"params": shapes}, {"params": PARAMS, "model_state": shapes}):
        with pytest.raises(
            TypeError, match=r"\['bias'\] is the shape of an array, float32\[1, 8\]"
        ):
            aj.TrainState.create(tx=aj.adam(0.1), **arguments)
    # As the error says.
    state = jax.eval_shape(lambda params: aj.TrainState.create(params, aj.adam(0.1)), shapes)
    assert repr(state.opt_state) == repr(jax.eval_shape(lambda: create().opt_state))
    FIT_STEP.lower(state.replace(tx=aj.adam(0.1)), BATCH)


def test_parameters_to_evaluate_with():
    """They cost nothing where they are those that are trained."""
    state = create()
    assert not jax.make_jaxpr(lambda state: state.eval_params())(state).eqns
    jax.tree.map(np.testing.assert_array_equal, state.eval_params(), PARAMS)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    step = aj.train_step(lambda params, batch: sum(map(jnp.sum, jax.tree.leaves(params))))
    state, _ = step(aj.TrainState.create(low, aj.compensate(aj.sgd(1e-3))), None)
    jax.tree.map(np.testing.assert_array_equal, state.eval_params(), state.exact_params())
