"""A state lies at first where a step leaves it: what a bare loop calls is compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import CASES, FIRST, takes_only_matrices
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

import adaptive_jax as aj

SPECS = [("x",), *(pytest.param(spec, marks=pytest.mark.slow) for spec in [(), ("x", None)])]
"""As JAX writes those of a result, on one kind of mesh, and as it does not, on the other."""


def together(optimizers):
    """One around all sorts of wrappers, with an array for each optimizer, and these."""
    groups = [(f"^{name}$", name) for name in optimizers]
    tx = aj.multi_steps(aj.partition(optimizers, groups), 2)
    params = {name: np.full((8, 256), 1 + i, np.float32) for i, name in enumerate(optimizers)}
    return aj.compensate(aj.skip_nonfinite(tx)), params


SOME = {
    "scheduled": aj.adam(aj.schedules.cosine_decay_schedule(0.1, 9), b1=lambda count: 0.9),
    "int8": aj.adam(0.1, storage={"mu": "int8", "nu": "factored"}),
    "averaged": aj.chain(
        optax.trace(0.9), optax.scale_by_schedule(lambda _: -0.1), aj.average(0.9)
    ),
    "mechanic": aj.mechanize(aj.lion(1.0)),
    "switched": aj.switch(aj.prodigy(), aj.sgd(1.0, 0.9), when=aj.Swats()),
    "blended": aj.blend({"a": (aj.dog(), 0.5), "b": (aj.sgd(0.1, 0.9), 0.5)}),
}


def placed(tree, mesh, spec):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))


def check_compiled_once(tx, params):
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(2):
        _, new = update(params, state, params)
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(new), strict=True
        ):
            assert x.sharding == y.sharding, jax.tree_util.keystr(path)
        state = new
    assert update._cache_size() == 1


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_an_update_is_compiled_once(spec, make_mesh):
    tx, params = together(SOME)
    params["int8"] = params["int8"].astype(jnp.bfloat16)
    check_compiled_once(tx, placed(params, make_mesh(8), spec))


@pytest.mark.slow
def test_whatever_the_optimizer():
    made = {name: CASES[name][0](**CASES[name][1]) for name in FIRST}
    found = {f"o{i}": tx for i, tx in enumerate(made.values()) if not takes_only_matrices(tx)}
    tx, params = together(found)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    check_compiled_once(tx, placed(params, mesh, ("x",)))


def test_a_mesh_of_one_device(make_mesh):
    check_compiled_once(aj.adam(0.1), placed(jnp.ones((8, 2)), make_mesh(1), ("x",)))


def test_without_a_mesh_nothing_is_moved(make_mesh):
    tx, params = aj.skip_nonfinite(aj.adam(0.1)), jnp.ones((8, 2))
    leaves = jax.tree.leaves(tx.init(params))
    assert all(isinstance(x.sharding, SingleDeviceSharding) and not x.committed for x in leaves)
    there = placed(params, make_mesh(8), ("x",))
    shapes = jax.eval_shape(tx.init, there)
    assert jax.tree.structure(shapes) == jax.tree.structure(tx.init(there))
    assert not any("device_put" in str(x) for x in jax.make_jaxpr(tx.init)(there).eqns)


def test_what_another_library_keeps_is_not_copied_for_the_sake_of_how_it_is_written(make_mesh):
    mesh = make_mesh(8)
    kept = placed(jnp.ones((8, 2)), mesh, ("x",))
    theirs = optax.GradientTransformation(
        lambda params: (kept, jax.random.key(0), 3),
        lambda updates, state, params=None: (updates, state),
    )
    array, key, number = aj.chain(theirs).init(kept)[0]
    first, second = (x.addressable_shards[0].data.unsafe_buffer_pointer() for x in (array, kept))
    assert first == second
    assert key.sharding.num_devices == 8
    assert number == 3
