"""What XLA makes of an update: no copies, no more temporaries than optax, sharded like its parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import CASES
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adaptive_jax as aj

COMPARED = [
    ("sgd", {"momentum": 0.9}),
    ("adagrad", {}),
    ("rmsprop", {}),
    ("rmsprop", {"centered": True, "momentum": 0.9}),
    ("adam", {}),
    ("adamw", {}),
    ("nadam", {}),
    ("amsgrad", {}),
]
TREES = {
    "one large array": [(1 << 20,)],
    "many small arrays": [(8, 16), (16,), (16, 4), (4,), ()] * 20,
    "many middle arrays": [(3500,)] * 50,
}


def temporaries(tx, shapes):
    """Bytes that XLA sets aside for a whole step with donated parameters and state."""
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def step(params, state, updates):
        updates, state = tx.update(updates, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(("name", "settings"), COMPARED)
@jax.numpy_dtype_promotion("standard")  # optax mixes dtypes.
def test_temporaries_are_no_larger_than_those_of_optax(name, settings, tree):
    ours = temporaries(getattr(aj, name)(0.1, **settings), TREES[tree])
    theirs = temporaries(getattr(optax, name)(0.1, **settings), TREES[tree])
    # The counter and the corrections are a few scalars, each in 64 aligned bytes.
    assert ours <= theirs + 512


def test_what_is_compiled_grows_with_the_number_of_arrays_and_not_with_its_square():
    """A statistic of the whole tree is not computed again for each of its arrays."""
    tx = aj.clip_by_global_norm(1.0)

    def size(arrays):
        tree = [jnp.ones(3)] * arrays
        return len(jax.jit(tx.update).lower(tree, tx.init(tree)).compile().as_text())

    assert size(60) < 2.5 * size(30)


def test_a_second_trace_of_an_update_reuses_the_first():
    from adaptive_jax import _transform

    params = [jnp.ones((3, index % 2 + 1)) for index in range(20)]
    tx = aj.adam(0.1)
    state = tx.init(params)
    jax.jit(lambda *args: tx.update(*args)).trace(params, state, params)
    before = _transform._update_array._cache_size(), _transform._update_tree._cache_size()
    jaxpr = jax.jit(lambda *args: tx.update(*args)).trace(params, state, params).jaxpr
    assert (_transform._update_array._cache_size(), _transform._update_tree._cache_size()) == before
    # 20 arrays of two shapes: two functions, each traced once.
    calls = [
        eqn
        for eqn in jaxpr.eqns[0].params["jaxpr"].eqns
        if eqn.params.get("name") == "_update_array"
    ]
    assert len(calls) == 20
    assert len({id(eqn.params["jaxpr"]) for eqn in calls}) == 2


@pytest.mark.parametrize("case", CASES)
def test_the_state_is_sharded_like_its_parameters(case):
    factory, settings = CASES[case]
    tx = factory(**settings)
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    split = NamedSharding(mesh, PartitionSpec("x"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = {
        "w": jax.device_put(jnp.arange(1.0, 33.0).reshape(8, 4), split),
        "b": jax.device_put(jnp.ones(3), everywhere),
    }
    here = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), params)
    step = jax.jit(tx.update)
    updates, state = step(params, tx.init(params), params)
    expected, expected_state = tx.update(here, tx.init(here), here)
    for path, leaf in jax.tree_util.tree_leaves_with_path((updates, state)):
        if path[-1] == jax.tree_util.DictKey("w"):
            assert leaf.sharding.is_equivalent_to(split, leaf.ndim), path
    for x, y in zip(
        jax.tree.leaves((updates, state)), jax.tree.leaves((expected, expected_state)), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop"])
def test_inside_shard_map(name):
    tx = getattr(aj, name)(0.1)
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    params = jnp.arange(1.0, 9.0)
    update = jax.shard_map(
        lambda params: tx.update(params, tx.init(params))[0],
        mesh=mesh,
        in_specs=PartitionSpec("x"),
        out_specs=PartitionSpec("x"),
    )
    expected, _ = tx.update(params, tx.init(params))
    np.testing.assert_allclose(jax.jit(update)(params), expected, rtol=1e-6)


def test_no_leaked_tracers():
    params = {"w": jnp.ones(3)}
    with jax.checking_leaks():
        for tx in (
            aj.adam(optax.constant_schedule(0.1)),
            aj.chain(aj.clip_by_global_norm(1.0), aj.sgd(0.1)),
        ):
            jax.jit(tx.update)(params, tx.init(params), params)
