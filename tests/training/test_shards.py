"""Optimizer state that is split over devices: the same steps, and every array where it was."""

import collections
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import adaptive_jax as aj

SHAPES = {"w": (192, 256), "odd": (7, 2048), "b": (256,), "v": (256, 5), "scale": ()}
BATCH = np.random.default_rng(0).normal(size=(32, 192)).astype(np.float32)


def loss(params, batch):
    hidden = jnp.tanh(
        batch.astype(params["w"].dtype) @ params["w"] + jnp.mean(params["odd"]) + params["b"][None]
    )
    return jnp.mean((hidden @ params["v"]) ** 2) * params["scale"]


@pytest.fixture
def on_mesh(make_mesh):
    """Puts a tree onto eight devices, split over the axis "x" or not at all."""
    mesh = make_mesh(8)
    return lambda tree, *spec: jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))


def parameters(dtype=jnp.float32):
    numbers = np.random.default_rng(1)
    return {name: jnp.asarray(numbers.normal(size=x), dtype) for name, x in SHAPES.items()}


def places(tree):
    return jax.tree.map(lambda x: x.sharding, tree)


def trained(tx, on_mesh, shard, steps=3, dtype=jnp.float32, **options):
    """The state after some steps, which left every array where it was, and wrote over all of it."""
    state = aj.TrainState.create(on_mesh(parameters(dtype)), tx, shard=shard)
    step, batch = aj.train_step(loss, **options), on_mesh(BATCH, "x")
    for _ in range(steps):
        before = state
        state, _ = step(state, batch)
        assert places(state.params) == places(before.params)
        assert places(state.opt_state) == places(before.opt_state)
        written = jax.tree.leaves((before.params, before.opt_state))
        assert all(x.is_deleted() for x in written)
    assert step._jitted._cache_size() == 1
    return state


def share(state):
    """The part of all elements of a state that one device holds."""
    leaves = jax.tree.leaves(state)
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
    return held / sum(x.size for x in leaves)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("tx", "options"),
    [
        (aj.adamw(0.01, weight_decay=0.1), {}),
        (aj.adam(0.01, storage="int8"), {"accumulate": 4}),
        slow(aj.adam(0.01, storage="bfloat16"), {"accumulate": 2}),
        slow(aj.chain(aj.clip_by_global_norm(1e3), aj.lion(0.01)), {}),
        slow(aj.multi_steps(aj.adam(0.01), 2), {}),
        slow(
            aj.partition({"a": aj.adam(0.01), "b": aj.sgd(0.1, 0.9)}, [("^w$", "a"), (".*", "b")]),
            {},
        ),
        slow(optax.sgd(0.01, 0.9), {"metrics": ["loss"]}),
    ],
    ids=["adamw", "int8", "bfloat16", "chain", "multi_steps", "partition", "optax"],
)
def test_steps_are_those_of_whole_state_and_every_array_stays(tx, options, on_mesh):
    whole = trained(tx, on_mesh, None, **options)
    split = trained(tx, on_mesh, "x", **options)
    assert share(whole.opt_state) == 1
    assert share(split.opt_state) < 0.15
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path((whole.params, whole.opt_state)),
        jax.tree.leaves((split.params, split.opt_state)),
        strict=True,
    ):
        x, y = np.asarray(x), np.asarray(y)
        assert x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)


def test_factored_state_is_the_same_to_rounding(on_mesh):
    tx = aj.adam(0.01, storage={"mu": "bfloat16", "nu": "factored"})
    whole, split = (trained(tx, on_mesh, shard) for shard in (None, "x"))
    for x, y in zip(jax.tree.leaves(whole.params), jax.tree.leaves(split.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_corrections_are_split_too(on_mesh):
    tx = aj.compensate(aj.adam(0.01, storage="int8"), "int8")
    whole, split = (trained(tx, on_mesh, shard, dtype=jnp.bfloat16) for shard in (None, "x"))
    assert share(split.opt_state.correction) < 0.15
    for x, y in zip(jax.tree.leaves(whole.params), jax.tree.leaves(split.params), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_bare_loop_makes_its_state_in_shards(on_mesh):
    tx, params = aj.adam(0.01, storage="int8"), on_mesh(parameters())
    expected = aj.state_shardings(tx, params, "x")
    state = jax.jit(tx.init, out_shardings=expected)(params)
    for x, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)
    assert share(state) < 0.15


def test_parameters_that_are_split_over_the_axis_keep_their_state_as_it_is(on_mesh):
    params = {"w": on_mesh(jnp.ones((8, 16)), None, "x"), "v": on_mesh(jnp.ones((3, 16)))}
    mu = aj.state_shardings(aj.adam(0.1), params, "x")[0].mu
    assert [*mu["w"].spec] == [None, "x"]
    assert [*mu["v"].spec] == [None, "x"]


def test_two_axes_of_a_mesh():
    mesh = jax.make_mesh((2, 2, 2), ("replica", "data", "model"))
    split = NamedSharding(mesh, PartitionSpec(None, "model"))
    params = {"w": jax.ShapeDtypeStruct((12, 8), jnp.float32, sharding=split)}
    mu = aj.state_shardings(aj.adam(0.1), params, ("replica", "data"))[0].mu
    assert mu["w"].spec == PartitionSpec(("replica", "data"), "model")
    params = {"w": jax.ShapeDtypeStruct((3, 8), jnp.float32, sharding=split)}
    mu = aj.state_shardings(aj.adam(0.1), params, ("replica", "data"))[0].mu
    assert mu["w"].spec == PartitionSpec(None, ("model", "replica", "data"))


GPT = {
    "embedding": (50_257, 768),
    "positions": (1024, 768),
    **{f"attention{i}": (768, 2304) for i in range(12)},
    **{f"output{i}": (768, 768) for i in range(12)},
    **{f"up{i}": (768, 3072) for i in range(12)},
    **{f"down{i}": (3072, 768) for i in range(12)},
    **{f"bias{i}": (3072,) for i in range(24)},
}


@pytest.mark.parametrize(
    ("storage", "limit"),
    [
        (None, 1.0),
        ("bfloat16", 1.0),
        ({"mu": "bfloat16", "nu": "factored"}, 1.02),
        ("int8", 1.1),
        ({"mu": "int8", "nu": "int16"}, 1.1),
    ],
    ids=str,
)
def test_eight_devices_hold_an_eighth_each(storage, limit):
    mesh = jax.make_mesh((8,), ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=everywhere)
        for name, shape in GPT.items()
    }
    found = aj.describe(aj.adam(1e-3, storage=storage), params, shard="data")
    assert found.total / 8 <= found.on_each_device <= limit * found.total / 8 + 4
    assert (
        f"on each device  {found.on_each_device:,}"
        in " ".join(f"{found}".split(" ")).replace("   ", " ")
        or f"{found.on_each_device:,}" in f"{found}"
    )
    whole = aj.describe(aj.adam(1e-3, storage=storage), params)
    assert whole.on_each_device == whole.total == found.total


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ("dta", ValueError, "the mesh of the parameters has no axis 'dta': it has 'x'"),
        (("x", "x"), ValueError, "the axis 'x' of the mesh is named twice"),
        ((), ValueError, "no axis is named to split the state over"),
        ((3,), TypeError, "3 is no name of an axis of the mesh"),
    ],
)
def test_axes_that_are_not_there(axes, error, message, on_mesh):
    with pytest.raises(error, match=message):
        aj.TrainState.create(on_mesh(parameters()), aj.adam(0.1), shard=axes)


def test_parameters_on_no_mesh_and_what_to_do():
    params = {"w": jnp.ones((8, 16))}
    with pytest.raises(
        ValueError, match=r"params\['w'\] is .*, on no mesh: .*jax.device_put\(params"
    ) as caught:
        aj.TrainState.create(params, aj.adam(0.1), shard="data")
    advice = str(caught.value).rpartition("first, ")[2].rstrip(".")
    params = eval(
        advice,
        {
            "jax": jax,
            "params": params,
            "NamedSharding": NamedSharding,
            "PartitionSpec": PartitionSpec,
        },
    )
    state = aj.TrainState.create(params, aj.adam(0.1), shard="data")
    assert not isinstance(state.opt_state[0].mu["w"].sharding, SingleDeviceSharding)
    with pytest.raises(ValueError, match="there is no parameter"):
        aj.state_shardings(aj.adam(0.1), {}, "data")


EXCHANGES = (
    r"= \(?(.*?)\)? "
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def exchanged(state, batch, **options):
    """How many operations of each kind exchange numbers in a step, and how many numbers come of each."""
    step = aj.train_step(loss, metrics=(), **options)
    text = step.lower(state, batch).compile().as_text()
    counts, sizes = collections.Counter(), collections.Counter()
    for shapes, kind in re.findall(EXCHANGES, text):
        counts[kind] += 1
        for shape in re.findall(r"f32\[([\d,]*)\]", shapes):
            sizes[kind] += math.prod(map(int, filter(None, shape.split(","))))
    return counts, sizes


def test_gradients_are_exchanged_once_and_parameters_once(on_mesh):
    """On CPUs XLA writes a reduce-scatter as an all-reduce, of which each device takes its part."""
    params, batch = on_mesh(parameters()), on_mesh(BATCH, "x")
    tx = aj.adam(0.01)
    whole, split = (aj.TrainState.create(params, tx, shard=shard) for shard in (None, "x"))
    _, of_whole = exchanged(whole, batch)
    kinds, of_split = exchanged(split, batch)
    size = sum(x.size for x in jax.tree.leaves(params))
    assert kinds.keys() <= {"all-reduce", "reduce-scatter", "all-gather"}
    assert of_split["all-reduce"] + 8 * of_split["reduce-scatter"] <= of_whole["all-reduce"]
    assert of_whole["all-reduce"] <= size + 16  # The loss too.
    assert of_split["all-gather"] <= size
    accumulated, of_accumulated = exchanged(split, batch, accumulate=4)
    assert accumulated.total() <= kinds.total()
    assert of_accumulated.total() <= of_split.total()


OF_ALL_ARRAYS = {
    "prodigy": aj.prodigy(),
    "dadapt_adamw": aj.dadapt_adamw(),
    "dog": aj.dog(),
    "momo_adam": aj.momo_adam(),
    # The largest number first, so that no square overflows.
    "clip_by_global_norm": aj.chain(aj.clip_by_global_norm(1.0), aj.sgd(0.1, 0.9)),
}
MOST = {"clip_by_global_norm": 2}
SUMS = [
    ("prodigy", None),
    slow("prodigy", "x"),
    *(slow(name, shard) for name in list(OF_ALL_ARRAYS)[1:] for shard in (None, "x")),
]


@pytest.mark.parametrize(("name", "shard"), SUMS)
def test_sums_over_all_arrays_are_exchanged_at_once(name, shard, on_mesh):
    """However many arrays there are: each device has sums of its part of every one of them."""
    numbers = {f"w{i}": jnp.ones((16, 8 + 8 * (i % 3))) for i in range(7)}
    there = on_mesh(numbers) if shard else on_mesh(numbers, "x")
    state = aj.TrainState.create(there, OF_ALL_ARRAYS[name], shard=shard)

    def linear(params, gradients):
        return sum(jnp.sum(params[key] * gradients[key]) for key in params)

    text = aj.train_step(linear, metrics=()).lower(state, there).compile().as_text()
    kinds = collections.Counter(kind for _, kind in re.findall(EXCHANGES, text))
    gathered = {"all-gather": len(numbers)} if shard else {}  # The parameters, at the end.
    assert kinds == {"all-reduce": MOST.get(name, 1)} | gathered
