"""The tile lift: in one kernel, rules and storages give the bits that they give for whole arrays."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import CASES, FIRST, OF_ALL_ARRAYS, REPRESENTATIVES, sees_matrices
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj
from adaptive_jax._core.tiles.backends import Interpreted
from adaptive_jax._core.tiles.equations import Equations
from adaptive_jax._core.tiles.legal import done_with_less
from adaptive_jax.transforms.precision import Rounding, update_and_add

RAGGED = {"w": (3, 7, 300)}  # Neither its rows nor its columns fill tiles.
SHAPES = [RAGGED, {"w": (2, 2, 8, 512)}, {"w": (1, 5000)}]
# One array at a time: of two, XLA itself divides by a number that they share in another way.
STORAGES = {
    "float32": None,
    "bfloat16": "bfloat16",
    "int8": "int8",
    "int16": "int16",
    "block=128": aj.Blocks(block=128),
}
NOT_ELEMENTWISE = {
    *("clip_by_norm", "scale_by_param_block_rms", "scale_by_trust_ratio", "hyperball", "novograd"),
    *("fromage", "adafactor", "lamb", "lars", "mars", "sm3", "cautious", "clip_per_layer"),
    *("clip_by_block_rms", "latest_average", "sophia", "adahessian", *OF_ALL_ARRAYS),
}
OF_OTHER_ROUNDING = ("adan", "dadapt_adamw", "nadam", "nadamw", "prodigy", "rmsprop", "sgd")
"""Optimizers with two products by numbers in a row, which XLA makes one of, in some programs."""

MIXED = {"mu": "int8", "nu": "int16"}


def tree(shapes=RAGGED, dtype=jnp.float32, seed=0):
    """Normal numbers of all sizes."""
    numbers = np.random.default_rng(seed)
    return {
        name: jnp.asarray(
            numbers.normal(size=shape) * np.exp(2 * numbers.normal(size=shape)), dtype
        )
        for name, shape in shapes.items()
    }


def loss(params, batch):
    """Its gradients are the batch."""
    products = jax.tree.map(lambda p, g: jnp.sum(p * g).astype(jnp.float32), params, batch)
    return sum(jax.tree.leaves(products))


def trained(tx, tiles, dtype=jnp.float32, shapes=RAGGED, steps=2, place=lambda x: x, **options):
    """The state after some steps."""
    step = aj.train_step(loss, tiles=tiles, metrics=["loss"], **options)
    state = aj.TrainState.create(place(tree(shapes, dtype)), tx)
    for seed in range(1, steps + 1):
        state, _ = step(state, place(tree(shapes, dtype, seed)))
    return state


def assert_same_bits(a, b):
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path((a.params, a.opt_state)),
        jax.tree.leaves((b.params, b.opt_state)),
        strict=True,
    ):
        assert x.dtype == y.dtype
        differ = np.sum(
            np.asarray(x).reshape(-1).view("u1") != np.asarray(y).reshape(-1).view("u1")
        )
        assert not differ, f"{differ} bytes of {x.nbytes} at {jax.tree_util.keystr(path)}"


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("tx", "dtype"),
    [
        slow(aj.adam(0.1), jnp.float32),
        (aj.adamw(0.1, weight_decay=0.1, storage="int8"), jnp.bfloat16),
        (aj.adam(0.1, storage=MIXED), jnp.float32),
        slow(aj.rmsprop(0.1, storage="bfloat16"), jnp.float32),
        slow(aj.sgd(0.1, momentum=0.9, storage="int8"), jnp.float32),
        (aj.lion(0.1, storage="int8"), jnp.float32),
    ],
    ids=lambda x: re.sub(r"=[\d.e-]+", "", str(x)),
)
def test_tiles_give_the_bits_of_whole_arrays(tx, dtype):
    assert_same_bits(trained(tx, Interpreted(), dtype), trained(tx, False, dtype))


# Storages are tried with one optimizer, and all others with one of blocks.
ADAM = next(case for case in CASES if case.startswith("adam("))
WITH_STORAGES = [(ADAM, storage) for storage in STORAGES if storage != "int8"]
WITH_STORAGES += [(case, "int8") for case in dict.fromkeys([*FIRST, *REPRESENTATIVES])]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "storage"), WITH_STORAGES)
def test_each_rule_with_each_storage(case, storage):
    factory, settings = CASES[case]
    try:
        tx = factory(**settings, storage=STORAGES[storage])
    except TypeError:  # It has no slots.
        tx = factory(**settings)
    if case.partition("(")[0] in NOT_ELEMENTWISE or sees_matrices(tx):
        # Whole arrays, which is said, but where all that they are needed for comes before the update.
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            trained(tx, Interpreted())
        if told:
            assert "has no effect" in str(told[0].message)
            return
    dtypes_and_shapes = list(zip((jnp.float32, jnp.bfloat16, jnp.float32), SHAPES, strict=True))
    # Each rule once, and in all shapes the rules of each kind.
    for dtype, shapes in dtypes_and_shapes[: 3 if case in REPRESENTATIVES else 1]:
        states = (trained(tx, each, dtype, shapes) for each in (Interpreted(), False))
        is_exact = case.partition("(")[0] not in OF_OTHER_ROUNDING
        (assert_same_bits if is_exact else assert_near)(*states)


def assert_near(a, b):
    """Parameters that differ in the last places of their updates, here and there."""
    for x, y in zip(*map(jax.tree.leaves, (a.params, b.params)), strict=True):
        tolerance = 2**-8 if x.dtype == jnp.bfloat16 else 1e-6
        x, y = (np.asarray(each, np.float32) for each in (x, y))
        assert np.mean(x != y) < 0.25
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.max(np.abs(x)))


def test_what_is_told_where_tiles_can_have_no_effect():
    params = {"w": jnp.ones((8, 256))}

    def told(tx=None, tiles=True, params=params, **options):
        def total(params, batch):
            return jnp.sum(params["w"].astype(jnp.float32))

        step = aj.train_step(total, tiles=tiles, **options)
        state = aj.TrainState.create(jax.tree.map(jnp.copy, params), tx or aj.sgd(0.1))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            state, _ = step(state, jnp.ones(1))
            step(state, jnp.ones(2))  # Traced again.
        return [str(each.message) for each in caught]

    on_tiles = Interpreted()
    assert told(tiles=None) == told(tiles=False) == told(tiles=on_tiles) == []
    [message] = told()
    assert message == (
        "tiles=True has no effect, whole arrays are updated: there are no kernels for the platform "
        "'cpu', only for GPUs and TPUs."
    )
    for expected, message in {
        "skip_nonfinite=True": told(tiles=on_tiles, skip_nonfinite=True),
        "the metric 'update_norm'": told(tiles=on_tiles, metrics=["update_norm"]),
        "multi_steps(": told(aj.multi_steps(aj.sgd(0.1), 2), on_tiles),
        "does not end with": told(
            aj.compensate(aj.chain(aj.adam(0.1), optax.scale(1))), on_tiles, metrics=["loss"]
        ),
        "8 bits": told(tiles=on_tiles, params={"w": jnp.ones((8, 256), jnp.float8_e4m3fn)}),
    }.items():
        assert len(message) == 1
        assert expected in message[0]
    with pytest.raises(TypeError, match="tiles='yes' must be True, False, or None"):
        aj.train_step(loss, tiles="yes")


@dataclass(frozen=True)
class Scaled(aj.Rule):
    """Element-wise, but for another factor in arrays of another shape."""

    def update(self, grad, slots, param, ctx):
        return grad / len(grad), {}


@dataclass(frozen=True)
class Reversed(aj.Rule):
    def update(self, grad, slots, param, ctx):
        return grad[::-1], {}


@pytest.mark.parametrize(
    ("tx", "params", "reason"),
    [
        (aj.transform(Scaled()), (8, 256), "depends on the shape of the array"),
        (aj.transform(Reversed()), (8, 256), "`rev` is not element-wise"),
        (aj.clip_by_norm(1.0), (8, 256), "is not element-wise"),
        (aj.sgd(0.1), (2048,), "two axes or more, the last one 256 long or longer"),
        (aj.sgd(0.1), (256, 8), "two axes or more, the last one 256 long or longer"),
        (aj.rmsprop(0.1, storage="factored"), (256, 256), "the slot .nu. is no array of its shape"),
        (aj.adam(0.1, storage=aj.Blocks(block=100)), (64, 256), "no blocks that fill a tile"),
        (aj.sgd(0.1, 0.9, storage=aj.Blocks(block=(8, 128))), (64, 256), "no blocks that fill"),
    ],
    ids=str,
)
def test_what_goes_on_as_whole_arrays(tx, params, reason):
    shapes = {"w": params}
    with pytest.warns(UserWarning, match=f"not one of them is for tiles.*{reason}"):
        state = trained(tx, Interpreted(), shapes=shapes, steps=1)
    assert_same_bits(state, trained(tx, False, shapes=shapes, steps=1))


def split(mesh, *spec):
    """Puts arrays of a tree onto a mesh."""
    return lambda tree: jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))


AUTO, EXPLICIT = list(jax.sharding.AxisType)[:2]


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (AUTO, ("y", "x")),
        (EXPLICIT, ("y", "x")),
        *(
            slow(kind, spec)
            for kind in (AUTO, EXPLICIT)
            for spec in [("x",), (None, "x"), (("x", "y"),)]
        ),
    ],
    ids=str,
)
def test_sharded_arrays_stay_so(kind, spec):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind))
    shapes, tx = {"w": (16, 1024)}, aj.adam(0.1, storage=MIXED)
    place = split(mesh, *spec)
    state = trained(tx, Interpreted(), shapes=shapes, place=place)
    assert_same_bits(state, trained(tx, False, shapes=shapes))
    expected = NamedSharding(mesh, PartitionSpec(*spec))
    for x in jax.tree.leaves((state.params, state.opt_state)):
        if x.ndim:
            assert x.sharding.is_equivalent_to(expected, x.ndim)


@pytest.mark.parametrize(
    "tx",
    [
        aj.compensate(aj.adamw(0.1, weight_decay=0.1, storage="int8"), "int8"),
        slow(aj.compensate(aj.adam(0.1))),
        slow(aj.compensate(aj.chain(aj.clip_by_global_norm(1.0), aj.sgd(0.1, 0.9)), "int8")),
        slow(aj.chain(aj.clip_by_global_norm(1.0), aj.compensate(aj.sgd(0.1, 0.9), "int8"))),
        slow(aj.compensate(aj.chain(optax.scale(0.5), aj.adamw(0.1)), "int8")),
    ],
    ids=lambda tx: re.sub(r"=[\d.e-]+", "", str(tx)),
)
def test_what_parameters_leave_out_is_kept_in_the_kernel(tx):
    assert_same_bits(*(trained(tx, each, jnp.bfloat16) for each in (Interpreted(), False)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_kernels_for_tpus_round_to_16_bits_has_the_bits_of_xla(dtype):
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    special = [0.0, 1.0, np.inf, np.nan, 3.4e38, 65504.0, 65520.0, 2.0**-14, 2.0**-24, 2.0**-133]
    numbers = bits.view(np.float32)
    x = np.concatenate([numbers, np.float32(special), -np.float32(special)])
    info = jnp.finfo(dtype)

    def rounded(x):
        return lax.reduce_precision(x, info.nexp, info.nmant)

    [operation] = Equations.of("tpu", rounded, jax.ShapeDtypeStruct(x.shape, x.dtype)).operations
    np.testing.assert_array_equal(jax.jit(lambda x: done_with_less(operation, x))(x), rounded(x))


def test_parameters_of_32_bits_are_as_they_are_beside_others():
    params = {"w": jnp.ones((24, 300), jnp.bfloat16), "v": jnp.ones((8, 256)), "none": None}
    tx, batch = aj.compensate(aj.sgd(0.1, 0.9)), jax.tree.map(lambda x: x / 7, params)
    states = []
    for tiles in (Interpreted(), False):
        step = aj.train_step(loss, tiles=tiles, metrics=[])
        states.append(step(aj.TrainState.create(params, tx), batch)[0])
    assert_same_bits(*states)


@pytest.mark.slow  # The same bits, as it compiles for users.
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_a_chain_is_one_row_of_rules(dtype):
    tx = aj.chain(aj.clip_by_global_norm(1.0), aj.scale_by_adam(), aj.scale_by_learning_rate(0.1))
    assert_same_bits(trained(tx, Interpreted(), dtype), trained(tx, False, dtype))


@dataclass(frozen=True)
class Anchored(aj.Rule):
    """Weight decay to where the parameters were at first."""

    slots = {"start": aj.Slot("param", constant=True), "mu": aj.Slot()}

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", 0.5 * slots["mu"] + grad)
        return mu + 0.25 * (param - slots["start"]), {"mu": mu}


def test_a_slot_that_is_constant_stays_where_it_is():
    tx = aj.transform(Anchored(), aj.LearningRate(0.1))
    state = trained(tx, Interpreted())
    assert_same_bits(state, trained(tx, False))
    text = str(jax.make_jaxpr(aj.train_step(loss, tiles=Interpreted(), metrics=[]))(state, tree()))
    [outputs] = re.findall(r"out_avals=\((.*?)\)\n", text)
    assert outputs.count("float32") == 2, outputs


def test_nothing_is_sent_between_devices():
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AUTO, AUTO))
    place, shapes = split(mesh, "y", "x"), {"w": (16, 1024)}
    step = aj.train_step(loss, tiles=Interpreted(), metrics=[])
    state = aj.TrainState.create(place(tree(shapes)), aj.adam(0.1, storage="int8"))
    text = step.lower(state, place(tree(shapes))).compile().as_text()
    assert not re.findall(r"all-gather|all-to-all|collective-permute|reduce-scatter", text)


def test_many_optimizers_at_once_and_derivatives_are_those_of_whole_arrays():
    params, gradients = tree({"w": (8, 256)})["w"], tree({"w": (8, 256)}, seed=1)["w"]

    def after(backend):
        def total(rate):
            tx = aj.adam(rate)
            adding = Rounding("nearest", None)
            new, _ = update_and_add(tx, gradients, tx.init(params), params, adding, backend)
            return jnp.sum(new)

        rates = jnp.array([0.1, 0.2])
        return jax.jit(jax.vmap(total))(rates), jax.jit(jax.grad(total))(rates[0])

    for x, y in zip(after(Interpreted()), after(None), strict=True):
        np.testing.assert_array_equal(x, y)
