"""What XLA makes of an update: no copies, no more temporaries than optax, sharded like its parameters."""

from __future__ import annotations

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import CASES, FIRST, REPRESENTATIVES, sees_matrices, takes_only_matrices
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj

KINDS_OF_MESHES = list(jax.sharding.AxisType)[:2]
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
    "many small arrays": [(8, 16), (16,), (16, 4), (4,), ()] * 8,
    "many middle arrays": [(3500,)] * 20,
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


@pytest.mark.parametrize(
    ("name", "settings", "tree"),
    [
        # In the default run each tree once, and each optimizer once.
        pytest.param(*each, tree, marks=[] if tree == default or i == 4 else [pytest.mark.slow])
        for i, (each, default) in enumerate(zip(COMPARED, itertools.cycle(TREES)))
        for tree in TREES
    ],
)
@jax.numpy_dtype_promotion("standard")  # optax mixes dtypes.
def test_temporaries_are_no_larger_than_those_of_optax(name, settings, tree):
    ours = temporaries(getattr(aj, name)(0.1, **settings), TREES[tree])
    theirs = temporaries(getattr(optax, name)(0.1, **settings), TREES[tree])
    # The counter and the corrections are a few scalars, each in 64 aligned bytes.
    assert ours <= theirs + 512


def test_what_is_compiled_grows_with_the_number_of_arrays_and_not_with_its_square():
    """What is measured of the whole tree is not computed again for each of its arrays."""
    tx = aj.clip_by_global_norm(1.0)

    def size(arrays):
        tree = [jnp.ones(3)] * arrays
        return len(jax.jit(tx.update).lower(tree, tx.init(tree)).compile().as_text())

    assert size(60) < 2.5 * size(30)


def kernels(text):
    """How many different kernels are in the HLO of a program: names apart, which compilers look past."""
    text = re.sub(r", (?:metadata|backend_config)=\{[^\n]*", "", text)
    found = set()
    for body in re.findall(r"^%\w*fused_computation\S* (\(.*?^\})", text, re.MULTILINE | re.DOTALL):
        names = {}
        body = re.sub(r"%?\b[\w.\-]+: ", "", body)  # Of parameters, in the signature.
        found.add(re.sub(r"%[\w.\-]+", lambda x: names.setdefault(x[0], str(len(names))), body))  # noqa: B023
    return len(found)


@pytest.mark.parametrize("storage", ["int8", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_kernels_that_round_are_the_same_for_all_arrays_of_one_shape(storage):
    """Nothing that is known of one array alone, such as its place, is written into what is compiled."""
    tx = aj.adam(0.1, storage=storage)

    def compiled(arrays):
        tree = [jnp.ones((8, 512))] * arrays
        return kernels(jax.jit(tx.update).lower(tree, tx.init(tree), tree).compile().as_text())

    assert 4 < compiled(3) == compiled(6)


def test_a_second_trace_of_an_update_reuses_the_first():
    from adaptive_jax._core.slots import update_array
    from adaptive_jax._core.update import update_tree

    params = [jnp.ones((3, index % 2 + 1)) for index in range(20)]
    tx = aj.adam(0.1)
    state = tx.init(params)
    jax.jit(lambda *args: tx.update(*args)).trace(params, state, params)
    before = update_array._cache_size(), update_tree._cache_size()
    jaxpr = jax.jit(lambda *args: tx.update(*args)).trace(params, state, params).jaxpr
    assert (update_array._cache_size(), update_tree._cache_size()) == before
    # 20 arrays of two shapes: two functions, each traced once.
    calls = [
        eqn
        for eqn in jaxpr.eqns[0].params["jaxpr"].eqns
        if eqn.params.get("name") == "update_array"
    ]
    assert len(calls) == 20
    assert len({id(eqn.params["jaxpr"]) for eqn in calls}) == 2


@pytest.mark.parametrize(
    ("case", "make_mesh"),
    [
        *itertools.product(REPRESENTATIVES, KINDS_OF_MESHES),
        # Every rule on one of the two kinds.
        *(
            pytest.param(case, kind, marks=pytest.mark.slow)
            for case, kind in zip(FIRST, itertools.cycle(KINDS_OF_MESHES))
            if case not in REPRESENTATIVES
        ),
    ],
    indirect=["make_mesh"],
)
def test_the_state_is_sharded_like_its_parameters(case, make_mesh):
    factory, settings = CASES[case]
    tx = factory(**settings)
    mesh = make_mesh(4)
    split = NamedSharding(mesh, PartitionSpec("x"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = {
        "w": jax.device_put(jax.random.normal(jax.random.key(0), (8, 4)), split),
        "b": jax.device_put(jnp.ones((1, 3) if takes_only_matrices(tx) else 3), everywhere),
    }
    here = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), params)
    step = jax.jit(tx.update)
    updates, state = step(params, tx.init(params), params)
    expected, expected_state = tx.update(here, tx.init(here), here)
    for path, leaf in jax.tree_util.tree_leaves_with_path((updates, state)):
        if path[-1] == jax.tree_util.DictKey("w") and leaf.shape == (8, 4):
            assert leaf.sharding.is_equivalent_to(split, leaf.ndim), path
    for x, y in zip(
        jax.tree.leaves((updates, state)), jax.tree.leaves((expected, expected_state)), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6 * sees_matrices(tx))


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop"])
def test_inside_shard_map(name, make_mesh):
    tx = getattr(aj, name)(0.1)
    mesh = make_mesh(4)
    params = jax.device_put(jnp.arange(1.0, 9.0), NamedSharding(mesh, PartitionSpec("x")))
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


def in_one_program(tx, gradients, state, params):
    return jax.jit(lambda *trees: tx.update(*trees))(gradients, state, params)


@pytest.mark.parametrize(
    "tx",
    [
        aj.sgd(0.1, momentum=0.9),
        aj.adam(optax.linear_schedule(0.1, 0.0, 10), b1=optax.linear_schedule(0.9, 0.5, 10)),
        aj.adamw(0.1, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
        pytest.param(aj.adam(0.1, storage=aj.Blocks(min_size=0)), marks=pytest.mark.slow),
        aj.nadam(0.1, momentum_decay=0.004, storage=aj.BFloat16(min_size=0)),
        aj.clip_by_global_norm(0.5),
        aj.clip_by_norm(0.5),
    ],
    ids=["sgd", "schedules", "mask", "int8", "scalars", "measured", "layerwise"],
)
def test_many_arrays_outside_of_jit_take_the_step_of_one_program(tx, monkeypatch):
    """To rounding: XLA may compute the last elements of an array otherwise in another program."""
    monkeypatch.setattr(aj._core.pieces, "_MOST_ARRAYS", 4)
    monkeypatch.setattr(aj._core.pieces, "_PIECE", 2)
    key = jax.random.key(0)
    params = {
        "kernels": list(jax.random.normal(key, (8, 3, 5))),
        "biases": list(jax.random.normal(key, (8, 5))),
        "low": list(jax.random.normal(key, (6, 4), jnp.bfloat16)),
        "absent": None,
    }
    params["kernels"][3] = None
    gradients = jax.tree.map(jnp.cos, params)
    gradients["biases"][5] = None
    state = expected_state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(gradients, state, params)
        expected, expected_state = in_one_program(tx, gradients, expected_state, params)
        ours, theirs = (updates, state), (expected, expected_state)
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for our, their in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert our.dtype == their.dtype
            unit = 1 if our.dtype.kind in "iu" else 0  # Of a code.
            our, their = (np.asarray(x, np.float64) for x in (our, their))
            np.testing.assert_allclose(our, their, rtol=1e-6, atol=unit)


def test_a_thousand_equal_arrays_outside_of_jit_are_one_small_program(compiled):
    params = [jnp.ones(3) for _ in range(1000)]
    state = aj.adam(0.1).init(params)
    del compiled[:]
    for learning_rate in (0.1, 0.2, 0.2):
        # The gradients are the parameters themselves: one array in two places.
        updates, state = aj.adam(learning_rate).update(params, state, params)
    assert [name for name in compiled if "update" in name] == ["jit(update_tree)"]
    assert len(updates) == 1000
    np.testing.assert_allclose([x[0] for x in updates], -0.2, rtol=1e-6)


def test_arrays_of_many_shapes_outside_of_jit_are_one_program(compiled, monkeypatch):
    monkeypatch.setattr(aj._core.pieces, "_MOST_ARRAYS", 4)
    params = [jnp.ones(size) for size in range(1, 7)]
    tx = aj.sgd(0.1, momentum=0.9)
    state = tx.init(params)
    del compiled[:]
    tx.update(params, state)
    assert compiled == ["jit(update_tree)"]


def test_mistakes_with_many_arrays_are_named_by_the_path_in_the_whole_tree(monkeypatch):
    monkeypatch.setattr(aj._core.pieces, "_MOST_ARRAYS", 4)
    params = {"w": [jnp.ones(3)] * 9}
    tx = aj.adam(0.1)
    gradients = {"w": [jnp.ones(3)] * 7 + [jnp.ones(4), jnp.ones(3)]}
    with pytest.raises(ValueError, match=r"gradients\['w'\]\[7\] is float32\[4\]"):
        tx.update(gradients, tx.init(params), params)
