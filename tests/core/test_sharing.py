"""Matrices whose state is divided: each device works on some of them, which it has whole."""

from __future__ import annotations

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj
from adaptive_jax._core.tiles.backends import Interpreted

COLLECTIVES = r" (all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute)(?:-start)?\("


def slow(*values, **named):
    return pytest.param(*values, marks=pytest.mark.slow, **named)


def matrices(count, shape=(16, 24), seed=0):
    numbers = np.random.default_rng(seed)
    return {f"w{i}": numbers.normal(size=shape).astype(np.float32) for i in range(count)}


def placed(tree, mesh, *spec):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))


def collectives(compiled):
    return collections.Counter(re.findall(COLLECTIVES, compiled.as_text()))


def loss(params, gradients):
    """One whose gradients are given, so that these are the same however arrays are divided."""
    return sum(jnp.sum(params[name] * gradients[name]) for name in params)


def trained(tx, place, shard=None, count=6):
    """The state after three steps in one program, which left every array where it was and wrote over it."""
    state = aj.TrainState.create(jax.tree.map(place, matrices(count)), tx, shard=shard)
    step = aj.train_step(loss, metrics=("loss",))
    for seed in range(1, 4):
        before = state
        state, _ = step(state, jax.tree.map(place, matrices(count, seed=seed)))
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
            assert getattr(old, "sharding", None) == getattr(new, "sharding", None)
        assert all(x.is_deleted() for x in jax.tree.leaves((before.params, before.opt_state)))
    assert step._jitted._cache_size() == 1
    return state


def test_each_of_eight_devices_orthogonalises_five_of_36_matrices(make_mesh):
    mesh, tx = make_mesh(8), aj.muon(0.02)
    params, step = matrices(36, (32, 48)), aj.train_step(loss, metrics=("loss",))
    one = jax.tree.map(jnp.asarray, matrices(1, (32, 48)))
    alone = step.lower(aj.TrainState.create(one, tx), one).compile()
    there = placed(params, mesh)
    state = aj.TrainState.create(there, tx, shard="x")
    shared = step.lower(state, there).compile()
    assert shared.cost_analysis()["flops"] <= 0.2 * 36 * alone.cost_analysis()["flops"]
    # Gradients and momentum there and back, and all parameters to all devices.
    assert collectives(shared) == {"all-to-all": 4, "all-gather": 36}


def test_rows_of_fsdp_are_gathered_for_no_step_of_newton_and_schulz(make_mesh):
    mesh, tx = make_mesh(8), aj.muon(0.02, weight_decay=0.1)
    rows = placed(matrices(8), mesh, "x")
    state = aj.TrainState.create(rows, tx)
    compiled = aj.train_step(loss, metrics=()).lower(state, rows).compile()
    assert collectives(compiled) == {"all-to-all": 5}  # The parameters too, for their decay.


METHODS = {
    "muon": aj.muon(0.02, weight_decay=0.1, ns_steps=2),
    "ratio": aj.muon(0.02, scale="ratio", ns_steps=6),
    "normuon": aj.muon(0.02, normuon=True),
    "int8": aj.muon(0.02, storage=aj.Blocks(min_size=0)),
    "bfloat16": aj.muon(0.02, storage=aj.BFloat16(min_size=0)),
    "soap": aj.soap(0.02, refresh_every=2, spread_refresh=True),
    "shampoo": aj.shampoo(0.02, refresh_every=2),
    "psgd_kron": aj.psgd_kron(0.02, preconditioner_update_probability=0.5),
    "compensated": aj.compensate(aj.muon(0.02)),
    "clipped": aj.chain(aj.clip_by_global_norm(1.0), aj.muon(0.02)),
    "accumulated": aj.multi_steps(aj.muon(0.02), 2),
}


KINDS = list(jax.sharding.AxisType)[:2]
RUNS = [
    *(("muon", kind, "zero") for kind in KINDS),
    *(
        # Each method once, and all kinds of meshes with both ways of dividing among them.
        slow(name, KINDS[i % 2], ("zero", "fsdp")[i // 2 % 2])
        for i, name in enumerate(METHODS)
    ),
]


@pytest.mark.parametrize(("name", "kind", "mode"), RUNS)
def test_the_steps_are_those_of_one_device(name, kind, mode):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    spec, shard = ((), "x") if mode == "zero" else (("x",), None)
    tx = METHODS[name]
    alone = trained(tx, jnp.asarray)
    shared = trained(tx, lambda x: placed(x, mesh, *spec), shard)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path((alone.params, alone.opt_state)),
        jax.tree.leaves((shared.params, shared.opt_state)),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    "spec",
    [[("a", "b")], slow(["a", "b"]), slow([None, ("b", "a")]), slow(["b"])],
    ids=str,
)
def test_a_mesh_of_two_axes_whose_types_have_them(spec):
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    tx, params = aj.scale_by_muon(ns_steps=2), matrices(5, (16, 8))
    expected, expected_state = jax.jit(tx.update)(params, tx.init(params))
    there = placed(params, mesh, *spec)
    compiled = jax.jit(tx.update).lower(there, tx.init(there)).compile()
    assert collectives(compiled).keys() == {"all-to-all"}
    updates, state = compiled(there, tx.init(there))
    for x, y in zip(
        jax.tree.leaves((updates, state)), jax.tree.leaves((expected, expected_state)), strict=True
    ):
        assert x.sharding.is_equivalent_to(there["w0"].sharding, 2)
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


def is_shared(tx, params):
    return "all_to_all" in jax.jit(tx.update).lower(params, tx.init(params), params).as_text()


def test_what_is_left_to_the_compiler():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    muon = aj.scale_by_muon(ns_steps=1)
    assert is_shared(muon, placed(matrices(4), mesh, "x"))
    few, whole = placed(matrices(3), mesh, "x"), placed(matrices(8), mesh)
    layers = placed(matrices(8, (8, 4, 4)), mesh, "x")
    for params in (few, whole, layers, jax.tree.map(jnp.asarray, matrices(8))):
        assert not is_shared(muon, params)
    # Nothing is multiplied.
    assert not is_shared(aj.centralize(), placed(matrices(8), mesh, "x"))


@pytest.mark.slow
def test_derivatives_go_through_the_exchange():
    def length(b1, params):
        tx = aj.scale_by_muon(ns_steps=1, b1=b1)
        updates, _ = tx.update(params, tx.init(params))
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(updates))

    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    params = matrices(4, (8, 4))
    slope = jax.jit(jax.grad(length, argnums=(0, 1)))
    there = slope(0.9, placed(params, mesh, "x"))
    here = slope(0.9, params)
    for x, y in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [8, slow(2)], ids=["shared out", "left to the compiler"])
def test_with_tiles_matrices_are_updated_as_a_whole(count, make_mesh):
    """To rounding, and added to parameters in low precision with what is kept of theirs."""
    mesh = make_mesh(8)
    tx = aj.compensate(aj.chain(aj.scale_by_muon(ns_steps=1), aj.scale_by_learning_rate(0.1)))
    found = []
    for tiles in (Interpreted(), False):
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), matrices(count, (16, 256)))
        state = aj.TrainState.create(placed(params, mesh), tx, shard="x")
        step = aj.train_step(in_float32, metrics=(), tiles=tiles)
        for seed in (1, 2):
            state, _ = step(state, placed(matrices(count, (16, 256), seed), mesh))
        mu = optax.tree.get(state.opt_state, "mu")
        found.append((aj.exact_params(state.params, state.opt_state), mu))
    for x, y in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-6, atol=1e-7)


def in_float32(params, gradients):
    return sum(
        jnp.sum(x.astype(jnp.float32) * gradients[name]).astype(jnp.float32)
        for name, x in params.items()
    )


@pytest.mark.filterwarnings("ignore:tiles=")
def test_a_matrix_in_low_precision_on_one_device_with_tiles():
    tx = aj.compensate(aj.transform(aj.rules.Muon(ns_steps=1), aj.LearningRate(0.1)))
    found = []
    for tiles in (Interpreted(), False):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), matrices(1, (16, 256)))
        state = aj.TrainState.create(params, tx)
        step = aj.train_step(in_float32, metrics=(), tiles=tiles)
        state, _ = step(state, matrices(1, (16, 256), 1))
        found.append((state.params, state.opt_state))
    for x, y in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_a_bare_loop_whose_state_is_divided_and_nothing_else(make_mesh):
    """On an explicit mesh the product of matrices that are divided would be refused."""
    mesh, tx, params = make_mesh(8), aj.scale_by_muon(ns_steps=1), matrices(5)
    expected, _ = tx.update(params, tx.init(params))
    there = placed(params, mesh)
    state = jax.jit(tx.init, out_shardings=aj.state_shardings(tx, there, "x"))(there)
    updates, _ = jax.jit(tx.update)(there, state)
    for x, y in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
