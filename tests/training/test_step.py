"""The training step, against loops written by hand with optax."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_network import BATCH, PARAMS, assert_close, by_hand, create, mean_squared_error, run

import adaptive_jax as aj


def test_it_is_the_loop_written_by_hand():
    """In the last bit: 1 - b is exact inside of the step too."""
    batches = [jax.tree.map(lambda x, i=i: jnp.roll(x, i, 0), BATCH) for i in range(20)]
    tx = aj.chain(aj.clip_by_global_norm(0.1), aj.adamw(0.01, weight_decay=0.1))
    params, opt_state, losses = by_hand(tx, mean_squared_error, PARAMS, batches)
    step = aj.train_step(mean_squared_error)
    state, metrics = run(step, aj.TrainState.create(PARAMS, tx), batches)
    assert_close(state.params, params, 1e-7)
    assert_close(state.opt_state, opt_state, 1e-7)
    np.testing.assert_allclose([m["loss"] for m in metrics], losses, rtol=1e-6)
    theirs = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.01, weight_decay=0.1))
    with jax.numpy_dtype_promotion("standard"):
        expected, _, _ = by_hand(theirs, mean_squared_error, PARAMS, batches)
        step = aj.train_step(mean_squared_error, metrics=("loss",))
        state, _ = run(step, aj.TrainState.create(PARAMS, theirs), batches)
    assert_close(state.params, expected)
    assert_close(params, expected, 1e-4)


def test_a_new_learning_rate_compiles_nothing_and_nothing_else_compiles_twice():
    step = aj.train_step(mean_squared_error)
    state = aj.TrainState.create(PARAMS, aj.adam(0.01))
    for rate in (0.01, 0.02, 0.03):
        state = state.replace(tx=aj.adam(rate))
        state, metrics = step(state, BATCH)
        state, metrics = step(state, BATCH)
        assert float(metrics["learning_rate"]) == pytest.approx(rate)
    assert step._jitted._cache_size() == 1
    assert repr(state.tx).startswith("adam(learning_rate=0.03, b1=0.9, b2=0.999")
    assert state.step == 6


rng = np.random.default_rng(1)
WIDE = {
    "hidden": jnp.asarray(rng.normal(size=(8, 16)) / 3, jnp.float32),
    "bias": jnp.zeros((1, 16)),
    "output": jnp.asarray(rng.normal(size=(16, 1)) / 4, jnp.float32),
}


WIDE_BATCH = {
    "inputs": jnp.asarray(rng.normal(size=(32, 8)), jnp.float32),
    "targets": jnp.ones((32, 1)),
}


PLACEMENTS = {
    "replicated": {"hidden": (), "bias": (), "output": ()},
    "sharded like FSDP": {"hidden": ("data",), "bias": (None, "data"), "output": ("data",)},
}


def on_eight_devices(placement, mesh):
    if "sharded" in placement and jax.sharding.AxisType.Explicit in mesh.axis_types:
        pytest.skip(
            "On an explicit mesh the network itself must say where its weights are gathered."
        )
    shardings = {
        name: NamedSharding(mesh, PartitionSpec(*axes))
        for name, axes in PLACEMENTS[placement].items()
    }
    params = jax.device_put(WIDE, shardings)
    return shardings, params, jax.device_put(WIDE_BATCH, NamedSharding(mesh, PartitionSpec("data")))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_data_parallel(placement, parts, make_mesh):
    """As on one device; the optimizer's state lies where its parameters do, and stays there."""
    shardings, params, batch = on_eight_devices(placement, make_mesh(8, "data"))
    step = aj.train_step(mean_squared_error, accumulate=parts)
    alone, _ = run(
        aj.train_step(mean_squared_error),
        aj.TrainState.create(WIDE, aj.adam(0.01)),
        [WIDE_BATCH] * 3,
    )
    state = aj.TrainState.create(params, aj.adam(0.01))
    for tree in (state.params, state.opt_state[0].mu):
        for name, sharding in shardings.items():
            assert tree[name].sharding.is_equivalent_to(sharding, tree[name].ndim), name
    state, _ = run(step, state, [batch] * 3)
    for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu):
        for name, sharding in shardings.items():
            assert tree[name].sharding.is_equivalent_to(sharding, tree[name].ndim), name
    assert_close(state.params, alone.params)
    assert step._jitted._cache_size() == 1


@jax.numpy_dtype_promotion("standard")  # For optax.
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_no_communication_beside_that_of_the_gradient(placement, make_mesh):
    """The optimizer, the scalars and the loss add none to the step written by hand."""
    _, params, batch = on_eight_devices(placement, make_mesh(8, "data"))
    tx = optax.adam(0.01)

    def by_hand(params, opt_state, batch):
        loss, gradients = jax.value_and_grad(mean_squared_error)(params, batch)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def communication(lowered):
        operations = (
            "all-reduce",
            "all-gather",
            "reduce-scatter",
            "all-to-all",
            "collective-permute",
        )
        text = lowered.compile().as_text()
        return {
            name: text.count(f" {name}(") + text.count(f" {name}-start(") for name in operations
        }

    theirs = jax.jit(by_hand, donate_argnums=(0, 1)).lower(params, tx.init(params), batch)
    state = aj.TrainState.create(params, aj.adam(0.01))
    ours = aj.train_step(mean_squared_error).lower(state, batch)
    assert communication(ours) == communication(theirs)
    assert sum(communication(ours).values()) > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: aj.train_step(mean_squared_error, metrics=("norm",)),
            "metrics='norm' is not known",
        ),
        (lambda: aj.train_step(mean_squared_error, metrics="loss"), "is a string"),
        (lambda: aj.train_step(mean_squared_error, rounding="up"), "rounding='up'"),
        (lambda: aj.train_step(mean_squared_error, accumulate=0), "accumulate=0"),
        (lambda: aj.train_step(3), "loss_fn=3"),
        (lambda: aj.train_step(mean_squared_error, loss_scale=0.0), "loss_scale=0.0"),
        (
            lambda: aj.TrainState.create(PARAMS, aj.sgd(1.0), loss_scale=aj.LossScale(-1.0)),
            "scale=-1.0",
        ),
        (
            lambda: aj.train_step(mean_squared_error, loss_scale=np.float32(-1.0)),
            r"loss_scale=np.float32\(-1.0\) must be",
        ),
        (
            lambda: aj.TrainState.create(PARAMS, aj.sgd(1.0), loss_scale=aj.LossScale(factor=1.0)),
            "factor=1.0 in .* must be above 1",
        ),
        (lambda: aj.train_step(mean_squared_error)(PARAMS, BATCH), "takes a TrainState, got"),
        (lambda: aj.TrainState.create({"w": jnp.arange(3)}, aj.sgd(1.0)), r"\['w'\] is int32\[3\]"),
        (lambda: aj.TrainState.create(PARAMS, 0.1), "takes optax gradient transformations"),
        (lambda: aj.TrainState.create(PARAMS, aj.sgd(1.0), rng=0), "rng=0 is no random key"),
        (lambda: aj.fit(aj.train_step(mean_squared_error), create(), [BATCH]), r"call fit\(state,"),
        (lambda: aj.fit(create(), aj.train_step(mean_squared_error), 3), "batches=3 must be an it"),
    ],
    ids=range(15),
)
def test_bad_arguments(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_compiled_step_is_called_like_the_step():
    step = aj.train_step(mean_squared_error)
    expected, metrics = run(step, create(), [BATCH] * 2)
    lowered = step.lower(create(), BATCH)
    compiled = lowered.compile()
    state, got = run(compiled, create(), [BATCH] * 2)
    jax.tree.map(np.testing.assert_array_equal, (state.params, got), (expected.params, metrics))
    assert compiled.memory_analysis().temp_size_in_bytes >= 0
    assert "tanh" in lowered.as_text()
    assert "tanh" in compiled.as_text()
    # A new rate is data, another optimizer is not.
    slower, _ = compiled(create().replace(tx=aj.adam(1e-3)), BATCH)
    assert repr(slower.tx).startswith("adam(learning_rate=0.001")
    with pytest.raises(
        TypeError, match=r"compiled for another optimizer than adamw\(.*compile it again"
    ):
        compiled(create().replace(tx=aj.adamw(1e-3)), BATCH)
    used = create()
    compiled(used, BATCH)
    with pytest.raises(ValueError, match="used up by a step before"):
        compiled(used, BATCH)


def test_pickle_of_a_step_says_what_to_do():
    step = aj.train_step(mean_squared_error)
    with pytest.raises(
        TypeError, match=r"mean_squared_error is compiled.*make it again with train_st"
    ):
        pickle.dumps(step)
    assert copy.deepcopy({"step": step})["step"] is step
    state, _ = step(create(), BATCH)
    again = pickle.loads(pickle.dumps(jax.device_get(state)))
    expected, _ = step(state, BATCH)
    state, _ = step(again, BATCH)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)


@pytest.mark.slow  # The same bits of a sum, as it compiles for users.
@pytest.mark.parametrize("explicit", [False, True])
def test_a_step_on_a_mesh_in_force(explicit):
    """The optimizer's numbers go where the mesh is, and back to one device with the next state."""
    kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    tx, step = aj.adam(0.1), aj.train_step(lambda p, batch: jnp.sum(jnp.square(p)) * batch)
    alone, expected = run(step, aj.TrainState.create(jnp.ones((8, 4)), tx), [1.0] * 2)
    with jax.set_mesh(mesh):
        params = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, PartitionSpec("data")))
        state, metrics = run(step, aj.TrainState.create(params, tx), [1.0] * 2)
    assert state.params.sharding.is_equivalent_to(params.sharding, 2)
    jax.tree.map(np.testing.assert_array_equal, (state.params, metrics), (alone.params, expected))
    again, _ = step(alone, 1.0)
    state, _ = step(state, 1.0)
    np.testing.assert_array_equal(state.params, again.params)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aj.train_step(lambda p, b: 0.0, compute_dtype=int), "compute_dtype=<class 'int'>"),
        (lambda: aj.train_step(lambda p, b: 0.0, compute_dtype="bf16"), "such as jnp.bfloat16"),
        (
            lambda: aj.TrainState.create(jnp.ones(2), aj.sgd(0.1), loss_scale=128.0),
            r"aj.LossScale\(128.0\)",
        ),
        (
            lambda: aj.TrainState.create(jnp.ones(2), aj.sgd(0.1)).replace(lr=0.1),
            r"no 'lr': it has step, .*replace\(tx=",
        ),
        (
            lambda: aj.TrainState.create(jnp.ones(2), (optax.EmptyState(),)),
            r"got \(EmptyState\(\),\) of type tuple\.$",
        ),
        (lambda: aj.monitor(aj.global_norm), r'\{"norm": aj.global_norm\}'),
        (lambda: aj.multi_steps(8, aj.sgd(0.1)), "multi_steps takes optax .* got 8"),
    ],
)
def test_options_that_are_none_are_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_a_step_within_a_jit_that_closes_over_the_state_leaks_nothing():
    step = aj.train_step(lambda params, batch: jnp.sum(params * batch))
    state = aj.TrainState.create(jnp.ones(2), aj.sgd(0.1))
    jax.make_jaxpr(lambda batch: step(state, batch))(jnp.zeros(2))
    state, metrics = step(state, jnp.zeros(2))
    assert metrics["skipped"] == 0
