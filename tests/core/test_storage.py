"""How slots are kept: every rule with every storage, its errors, its memory, and what rounding does."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import CASES, rules_of, sees_matrices
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj
from adaptive_jax.testing import STORAGE_PROMISES, BrokenPromise, check_rule, check_storage

# Set so that small arrays are compressed too.
STORAGES = {
    "bfloat16": aj.BFloat16(min_size=0),
    "int8": aj.Blocks(min_size=0, bits=8, block=32),
    "int16": aj.Blocks(min_size=0, bits=16),
    "factored": aj.Factored(min_size=2),
}


def slots_of(case):
    """The slots of an optimizer."""
    factory, settings = CASES[case]
    return {
        name: slot for rule in rules_of(factory(**settings)) for name, slot in rule.slots.items()
    }


def kinds(case):
    """Of each slot whether it is never negative, and whether it is 0 at first."""
    return frozenset((slot.nonnegative, slot.initial == 0.0) for slot in slots_of(case).values())


# A storage sees slots and no rules: one optimizer for each set of kinds of slots. Those of rules that see
# matrices are in test_slots.
ELEMENTWISE = [case for case, (make, given) in CASES.items() if not sees_matrices(make(**given))]
WITH_SLOTS = list({kinds(case): case for case in ELEMENTWISE[::-1] if kinds(case)}.values())[::-1]


def stored(case, name):
    """The optimizer with a storage; factored slots are those that are never negative."""
    factory, settings = CASES[case]
    storage = STORAGES[name]
    if name == "factored":
        slots = slots_of(case).items()
        storage = {name: STORAGES["factored"] for name, slot in slots if slot.nonnegative}
    return factory(**settings, storage=storage)


PAIRS = [
    (case, name)
    for case in WITH_SLOTS
    for name in STORAGES
    if name != "factored" or any(nonnegative for nonnegative, _ in kinds(case))
]
# Every kind of slots, and every storage, with some of the others.
SOME_PAIRS = [
    (case, name)
    for place, case in enumerate(WITH_SLOTS)
    for name in [name for one, name in PAIRS if one == case][place % 3 :: 3]
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), SOME_PAIRS)
def test_every_promise_holds_for_stored_slots(case, name):
    check_rule(stored(case, name))


def gradients(step, shapes=((3, 4), (300,), (), (2, 40))):
    keys = jax.random.split(jax.random.key(step), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("name", STORAGES)
def test_a_restart_is_no_restart_and_compiles_nothing(name):
    tx, params = stored("adam(learning_rate=0.1)", name), gradients(100)
    step = jax.jit(tx.update)
    state = tx.init(params)
    for count in range(3):
        _, state = step(gradients(count), state, params)
    copy = jax.tree.map(jnp.array, pickle.loads(pickle.dumps(state)))
    for count in range(3, 5):
        updates, state = step(gradients(count), state, params)
        others, copy = step(gradients(count), copy, params)
    jax.tree.map(np.testing.assert_array_equal, (updates, state), (others, copy))
    assert step._cache_size() == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", [name for name in STORAGES if name != "bfloat16"])
def test_scan_and_vmap(name):
    case = "rmsprop(learning_rate=0.1)" if name == "factored" else "adam(learning_rate=0.1)"
    tx, params = stored(case, name), gradients(100)
    every = [gradients(count) for count in range(4)]
    state = tx.init(params)
    for each in every:
        updates, state = tx.update(each, state, params)

    def body(state, each):
        updates, state = tx.update(each, state, params)
        return state, updates

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *every)
    _, all_updates = jax.lax.scan(body, tx.init(params), stacked)
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), (every[0], params))
    many, _ = jax.vmap(lambda g, p: tx.update(g, tx.init(p), p))(*twice)
    first, _ = tx.update(every[0], tx.init(params), params)
    for x, y in zip(updates, all_updates, strict=True):
        np.testing.assert_allclose(y[-1], x, rtol=1e-5)
    for x, y in zip(first, many, strict=True):
        np.testing.assert_allclose(y[1], x, rtol=1e-5)


@pytest.mark.parametrize(
    "storage",
    [
        aj.Float(),
        STORAGES["factored"],
        *(
            pytest.param(storage, marks=pytest.mark.slow)
            for storage in (
                STORAGES["bfloat16"],
                STORAGES["int8"],
                aj.Blocks(min_size=0, bits=16, block=7),
                aj.Blocks(min_size=0, bits=8, block=(2, 16)),
            )
        ),
    ],
    ids=str,
)
def test_a_storage_keeps_its_promises(storage, monkeypatch):
    # The rules under every storage are the test above.
    monkeypatch.setattr("adaptive_jax.testing.storages.check_rule", lambda tx: None)
    check_storage(storage)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((64, 512), (8, 4)),
        ((3, 64, 512), (3, 8, 4)),
        ((65, 768), (65, 1)),  # No tiles fit: a block is a row.
        ((768, 65), (52, 1)),
        ((300, 1301), (1, 1301)),  # Or a column.
        ((1100, 1300), (138, 11)),
        ((5000,), (5,)),
    ],
)
def test_blocks_of_a_tile(shape, scales):
    """As many scales as there are tiles, and what each one's numbers are relative to."""
    storage = aj.Blocks(min_size=0, block=(8, 128))
    param = jax.random.normal(jax.random.key(0), shape)
    stored = storage.init(0.0, param, real=False)
    assert stored.scales.shape == scales
    stored = storage.encode(param, stored, jnp.uint32(7))
    np.testing.assert_allclose(storage.decode(stored), param, atol=0.1 * np.abs(param).max())
    again = storage.encode(storage.decode(stored), stored, jnp.uint32(8))
    jax.tree.map(np.testing.assert_array_equal, stored, again)
    if shape == (64, 512):
        largest = np.abs(param).reshape(8, 8, 4, 128).max((1, 3))
        np.testing.assert_allclose(stored.scales, largest, rtol=1e-6)


def test_a_state_in_rows_goes_on_in_tiles():
    params = jax.random.normal(jax.random.key(0), (64, 256))
    rows, tiles = aj.adam(0.1, storage="int8"), aj.adam(0.1, storage="int8_tiles")
    _, state = rows.update(params, rows.init(params), params)
    converted = aj.convert_storage(rows, tiles, params, state)
    assert converted[0].mu.scales.shape == (8, 2)
    exact = aj.Blocks().decode(state[0].mu)
    read = aj.Blocks(block=(8, 128)).decode(converted[0].mu)
    np.testing.assert_allclose(read, exact, atol=0.1 * np.abs(exact).max())
    with pytest.raises(ValueError, match="convert_storage"):
        tiles.update(params, state, params)


@pytest.mark.slow
def test_a_storage_of_ones_own():
    @dataclass(frozen=True)
    class Half(aj.Storage):
        def init(self, value, param, *, real):
            return jnp.full_like(param, value, dtype=jnp.float16)

        def encode(self, value, stored, key):
            return aj.maths.saturating_cast(value, stored.dtype)

        def decode(self, stored):
            return stored

    with pytest.raises(BrokenPromise, match="above stays above"):
        check_storage(Forgets())
    with pytest.raises(BrokenPromise, match=r"float64|complex|finite"):
        check_storage(Half())


@dataclass(frozen=True)
class Forgets(aj.Storage):
    """Small numbers become 0, and NaN too."""

    def init(self, value, param, *, real):
        return jnp.full_like(param, value, dtype=jnp.float32)

    def encode(self, value, stored, key):
        return jnp.nan_to_num(value, posinf=0.0)

    def decode(self, stored):
        return stored


def test_a_broken_storage_is_named():
    with pytest.raises(BrokenPromise, match=r"Forgets\(\) breaks a promise: .*must stay visible"):
        check_storage(Forgets())


# What is stored


def test_what_int8_is():
    params = {"w": jnp.ones((40, 300)), "b": jnp.ones(3), "c": jnp.ones((70, 70), jnp.complex64)}
    state = aj.adam(0.1, storage="int8").init(params)[0]
    assert (state.mu["w"].codes.dtype, state.nu["w"].codes.dtype) == (jnp.int8, jnp.uint8)
    assert state.mu["w"].codes.shape == (40, 300)
    assert state.mu["w"].scales.shape == (40, 2)
    # Small arrays, and slots that are complex, are as they were.
    assert state.mu["b"].dtype == state.nu["b"].dtype == jnp.float32
    assert state.mu["c"].dtype == jnp.complex64
    assert state.nu["c"].codes.dtype == jnp.uint8
    with jax.enable_x64(True):
        state = aj.adam(0.1, storage="int8").init(jnp.ones(5000, jnp.float64))[0]
        assert state.mu.dtype == state.nu.dtype == jnp.float64


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((5000,), (20,)),
        ((3, 3, 64, 64), (3, 3, 16, 1)),  # 4 rows of 64
        ((5000, 1), (20, 1)),
        ((100, 300), (100, 2)),
        ((7, 1000), (7, 4)),
    ],
)
def test_blocks_are_neighbours(shape, scales):
    stored = aj.Blocks(min_size=0).init(0.0, jnp.ones(shape), real=True)
    assert stored.scales.shape == scales
    expected = np.zeros(shape, np.float32)
    expected.flat[0] = 100.0
    read = aj.Blocks(min_size=0)
    value = read.decode(read.encode(jnp.asarray(expected + 1e-3), stored, jnp.uint32(1)))
    # The large number takes the precision of its own block alone.
    coarse = np.abs(np.asarray(value) - 1e-3) > 1e-4
    block = [-(-size // count) for size, count in zip(shape, scales, strict=True)]
    assert not coarse[tuple(slice(length, None) for length in block[:1])].any()


def test_some_arrays_in_float32():
    params = {"a": jnp.ones((64, 64)), "b": jnp.ones((64, 64)), "c": None}
    for mask in (
        {"a": True, "b": False, "c": False},
        lambda p: {"a": True, "b": False, "c": False},
    ):
        tx = aj.adam(0.1, storage={"nu": aj.Masked("int16", mask)})
        state = tx.init(params)
        assert state[0].nu["a"].codes.dtype == jnp.uint16
        assert state[0].nu["b"].dtype == state[0].mu["a"].dtype == jnp.float32
        _, new = tx.update(params, state, params)
        assert jax.tree.structure(new) == jax.tree.structure(state)
    with pytest.raises(ValueError, match="the params and the mask differ in structure"):
        aj.adam(0.1, storage=aj.Masked("int8", {"z": True})).init(params)


def test_the_names():
    for name in ("bfloat16", "int8", "int16"):
        assert repr(aj.adam(0.1, storage=name)) == repr(aj.adam(0.1))[:-1] + f", storage={name!r})"
    tx = aj.adamw(0.1, storage={"mu": "int8", "nu": "factored"})
    assert isinstance(tx.init(jnp.ones((128, 128)))[0].nu, tuple)


@jax.numpy_dtype_promotion("standard")  # For optax.
def test_optax_finds_its_way():
    params = {"w": jnp.ones((64, 64))}
    tx = aj.adam(0.1, storage="int8")
    state = tx.init(params)
    doubled = optax.tree.map_params(tx, lambda x: x, state)
    assert jax.tree.structure(doubled) == jax.tree.structure(state)
    assert optax.tree.get(state, "mu")["w"].codes.dtype == jnp.int8
    wrapped = optax.MultiSteps(optax.chain(optax.clip(1.0), tx), 2)
    wrapped.update(params, wrapped.init(params), params)


# What rounding does


def test_rounding_is_right_on_average():
    """4,000 draws: the mean of the decoded numbers is theirs, to a thousandth."""
    keys = jax.vmap(lambda step: aj.maths.random_key(step, 0, 1))(jnp.arange(4000))
    values = jnp.exp(jax.random.normal(jax.random.key(0), (256,)))
    for storage, signs in (
        (s, sign) for s in list(STORAGES.values())[:3] for sign in (False, True)
    ):
        first = storage.init(0.0, values, real=not signs)
        x = values * jnp.where(jnp.arange(256) % 2, 1, -1) if signs else values
        one = lambda key: storage.decode(storage.encode(x, first, key))  # noqa: B023, E731
        draws = jax.lax.map(one, keys, batch_size=500)
        mean = draws.astype(jnp.float32).mean(0)
        assert abs(float((mean / x).mean()) - 1) < 1e-3
        assert float(jnp.abs(mean / x - 1).max()) < 1e-2


def test_changes_far_below_a_step_arrive():
    """20,000 changes by 1e-4 of a code's step are two steps, up and down."""
    promise = "changes that are far smaller than its steps arrive on average"
    STORAGE_PROMISES[promise](STORAGES["int8"])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize(
    "noise",
    [0, 2**32 - 1]
    + [
        pytest.param(noise, marks=pytest.mark.slow)
        for noise in (2**28 - 1, 2**32 - 2**28, 2**22 - 1, 2**20 - 1)
    ],
)
def test_every_code_comes_back_whatever_the_noise(bits, nonnegative, noise, monkeypatch):
    storage = aj.Blocks(min_size=0, bits=bits)
    dtype = np.dtype(f"{'u' if nonnegative else ''}int{bits}")
    codes = np.arange(np.iinfo(dtype).max + 1).astype(dtype)
    codes = np.resize(codes, (-(-len(codes) // 255), 255)) * (1 if nonnegative else -1)
    codes = np.concatenate([np.full((len(codes), 1), np.iinfo(dtype).max, dtype), codes], axis=1)
    powers = np.random.default_rng(0).uniform(-50, 50, (len(codes), 1))
    first = storage.init(0.0, jnp.ones(codes.shape), real=nonnegative)
    first = storage.encode(
        jnp.asarray(2.0**powers * np.ones(256), jnp.float32), first, jnp.uint32(0)
    )
    stored = first._replace(codes=jnp.asarray(codes.astype(dtype)))
    monkeypatch.setattr(
        aj.maths, "random_bits", lambda shape, key: jnp.full(shape, noise, "uint32")
    )
    value = storage.decode(stored)
    for again in (
        storage.encode(value, stored, jnp.uint32(0)),
        jax.jit(lambda x: storage.encode(storage.decode(x), x, jnp.uint32(0)))(stored),
    ):
        jax.tree.map(np.testing.assert_array_equal, again, stored)
    # Nor does the largest number of a block fall from the top, whatever it is.
    largest = jnp.asarray(2.0**powers * np.random.default_rng(1).uniform(1, 2, powers.shape))
    block = jnp.full(codes.shape, 0.5).at[:, 3].set(1.0) * largest.astype(jnp.float32)
    top = storage.encode(block, first, jnp.uint32(0)).codes[:, 3]
    assert (top == np.iinfo(dtype).max).all()


@pytest.mark.slow
def test_a_small_second_moment_follows_its_gradients():
    """With b2 = 0.9999, beside others that are 1e4 to 1e6 times larger: no dead zone."""

    def ratio(before, after):
        def moments(storage):
            tx = aj.scale_by_rms(decay=0.9999, storage=storage)

            def body(state, step):
                size = jnp.sqrt(jnp.where(step < 500, before, after))
                gradient = jnp.full((4, 256), size).at[:, :8].set(1.0)
                return tx.update(gradient, state)[1], None

            first = tx.init(jnp.zeros((4, 256)))
            return jax.jit(lambda: jax.lax.scan(body, first, jnp.arange(40_000))[0])().nu

        nu = STORAGES["int16"].decode(moments(STORAGES["int16"]))
        return (nu / moments(None))[:, 8:]

    for before, after in ((1e-4, 1e-6), (1e-6, 1e-5)):
        assert abs(float(jnp.mean(ratio(before, after))) - 1) < 0.03
        assert abs(float(jnp.mean(ratio(before, after) ** -0.5)) - 1) < 0.03


@pytest.mark.parametrize(
    ("dtype", "codes", "values"),
    [
        ("int8", [127, -64, 1], [3.0, -0.18218624591827393, 0.0007591093308292329]),
        ("uint8", [255, 128, 1], [3.000000238418579, 0.012049712240695953, 2.953360763058299e-06]),
        ("int16", [32767, -9000, 1], [3.000000238418579, -0.0009758620290085673, 2.23575433722e-08]),
        ("uint16", [65535, 9000, 2], [3.000000238418579, 0.014086342416703701, 2.87241891783e-06]),
    ],
)  # fmt: skip
def test_what_version_0_1_0_stored_reads_the_same(dtype, codes, values):
    storage = aj.Blocks(min_size=0, bits=8 if dtype.endswith("8") else 16)
    first = storage.init(0.0, jnp.ones(3), real=dtype[0] == "u")
    stored = first._replace(codes=jnp.asarray(codes, dtype), scales=jnp.asarray([3.0], jnp.float32))
    np.testing.assert_array_equal(storage.decode(stored), np.float32(values))


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True], ids=["uniformly", "half of each block"])
def test_a_second_moment_decays(half):
    """Gradients a thousandth as large for 5,000 steps. In optax, a bfloat16 one does not decay."""
    shape, falls = (64, 256), jnp.arange(256) % 2 == 1 if half else jnp.full(256, True)

    def run(storage):
        tx = aj.scale_by_adam(storage=storage)

        def body(state, step):
            gradient = jax.random.normal(jax.random.fold_in(jax.random.key(0), step), shape)
            gradient = jnp.where(falls & (step >= 1000), 1e-3 * gradient, gradient)
            return tx.update(gradient, state)[1], None

        return jax.jit(lambda: jax.lax.scan(body, tx.init(jnp.zeros(shape)), jnp.arange(6000))[0])()

    exact = np.asarray(run(None).nu)
    # Numbers that fall below the scale of their block, which others keep up, walk at random with the
    # steps of the 8 bits: right on average, but not each. 16 bits are there for that.
    for name, lowest, highest, median in (
        ("int8", 0.2 if half else 0.6, 3.0 if half else 1.65, 0.15 if half else 0.02),
        ("int16", 0.99, 1.01, 0.02),
    ):
        storage = aj.Blocks(min_size=0, bits=int(name[3:]))
        nu = np.asarray(storage.decode(run(storage).nu))
        ratio = (nu / exact)[:, np.asarray(falls)]
        assert abs(np.median(ratio) - 1) < median, name
        assert abs(ratio.mean() - 1) < 0.02, name
        assert np.percentile(ratio, 1) > lowest, name
        assert np.percentile(ratio, 99) < highest, name


@pytest.mark.parametrize("name", ["bfloat16", "int8", "int16"])
def test_zero_gradients_of_half_a_block(name):
    tx = aj.scale_by_adam(storage=STORAGES[name])
    state, zero = tx.init(jnp.zeros((4, 256))), jnp.arange(256) < 128
    for step in range(50):
        gradient = jax.random.normal(jax.random.key(step), (4, 256))
        update, state = tx.update(jnp.where(zero, 0.0, gradient), state)
        assert not np.any(np.asarray(update)[:, :128])


@pytest.mark.parametrize("storage", ["int8", "int16", "mixed"])
def test_no_single_update_grows(storage):
    """Log-normal gradients, new ones in each step: the largest update is about that of float32."""
    chosen = STORAGES.get(storage, {"mu": STORAGES["int8"], "nu": STORAGES["int16"]})

    def largest(tx):
        def body(state, key):
            size = jnp.exp(2.0 * jax.random.normal(key, (32, 256)))
            gradient = size * jax.random.normal(jax.random.fold_in(key, 1), (32, 256))
            update, state = tx.update(gradient, state)
            return state, jnp.abs(update).max()

        keys = jax.random.split(jax.random.key(0), 300)
        return float(jax.lax.scan(body, tx.init(jnp.zeros((32, 256))), keys)[1].max())

    assert largest(aj.scale_by_adam(storage=chosen)) <= 1.6 * largest(aj.scale_by_adam())


@pytest.mark.parametrize("name", STORAGES)
@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e10, 1e18])
def test_updates_are_finite_for_gradients_of_all_sizes(name, size):
    storage = {"nu": STORAGES[name]} if name == "factored" else STORAGES[name]
    tx = aj.scale_by_adam(storage=storage, eps=0.0)
    state = tx.init(jnp.zeros((4, 64)))
    for step in range(3):
        gradient = size * jax.random.normal(jax.random.key(step), (4, 64))
        update, state = tx.update(gradient, state)
        assert np.isfinite(update).all()


def test_nan_stays_in_its_block():
    tx = aj.scale_by_adam(storage=STORAGES["int8"])  # blocks of 32
    gradient = jnp.ones((2, 64)).at[0, 3].set(jnp.nan)
    update, state = tx.update(gradient, tx.init(gradient))
    assert np.isnan(update[0, 3])
    assert np.isfinite(update[0, 32:]).all()
    assert np.isfinite(update[1]).all()
    safe = aj.skip_nonfinite(aj.scale_by_adam(storage=STORAGES["int8"]))
    state = safe.init(gradient)
    _, new = safe.update(gradient, state)
    jax.tree.map(np.testing.assert_array_equal, new.inner_state, state.inner_state)


@jax.numpy_dtype_promotion("standard")  # For optax.
def test_factored_rms_is_adafactor():
    """`optax.adafactor`'s second moment is RMSprop's, kept as row and column means."""
    reference = optax.scale_by_factored_rms(min_dim_size_to_factor=8)

    def decay(count):
        return 1.0 - (count + 1.0) ** -0.8

    tx = aj.scale_by_rms(decay=decay, eps=1e-30, storage=aj.Factored(min_size=8))
    params = {"matrix": jnp.ones((16, 32)), "tall": jnp.ones((4, 24, 9)), "vector": jnp.ones(5)}
    state, other = tx.init(params), reference.init(params)
    for step in range(20):
        keys = jax.random.split(jax.random.key(step), 3)
        gradient = {
            name: jax.random.normal(key, x.shape)
            for key, (name, x) in zip(keys, params.items(), strict=True)
        }
        update, state = tx.update(gradient, state, params)
        expected, other = reference.update(gradient, other, params)
        for name in params:
            np.testing.assert_allclose(update[name], expected[name], rtol=3e-5)
    rows = state.nu["matrix"].columns.reshape(-1)
    np.testing.assert_allclose(np.sort(rows), np.sort(np.asarray(other.v_col["matrix"])), rtol=1e-5)


def test_the_derivative_of_what_is_read_back_is_that_of_what_was_stored():
    def update(gradient, storage):
        tx = aj.sgd(1.0, momentum=0.5, storage=storage)
        return tx.update(gradient, tx.init(gradient))[0].sum()

    for storage in (None, *list(STORAGES.values())[:3]):
        np.testing.assert_allclose(jax.grad(update)(jnp.ones(5), storage), -1.0)


@pytest.mark.parametrize("name", ["bfloat16", "int8", "int16"])
@pytest.mark.parametrize("factory", [aj.scale_by_adam, aj.scale_by_rms, aj.trace])
def test_rounding_goes_on_when_the_count_is_full(name, factory):
    """At 2^31 - 1 steps the rule's count stands still, as in optax; its random bits do not."""
    decay = {"decay": 0.9} if factory is aj.trace else {}
    tx = factory(**decay, storage=STORAGES[name])
    gradient = jax.random.normal(jax.random.key(0), (4, 256))
    step = jax.jit(tx.update)
    for last in (2**31 - 1, -1):
        state = step(gradient, tx.init(gradient))[1]._replace(count=jnp.int32(last))
        seen, updates = [], []
        for _ in range(3):
            update, new = step(gradient, state)
            slot = jax.tree.leaves(new._replace(count=None))[-1 if name == "bfloat16" else -2]
            seen.append(np.asarray(slot).tobytes())
            updates.append(np.asarray(update))
            state = state._replace(count=new.count)
        assert len(set(seen)) == 3
        assert new.count == -(2**31) + 2
        # Bias correction, where there is one, is that of the last step, and not of the first.
        full, _ = step(gradient, state._replace(count=jnp.int32(2**31 - 2)))
        np.testing.assert_allclose(np.mean(updates), np.mean(full), rtol=0.1)
    # Without rounding a count stays where optax has it.
    exact = factory(**decay)
    converted = aj.convert_storage(tx, exact, gradient, state)
    assert converted._asdict().get("count", 2**31 - 1) == 2**31 - 1


def test_a_schedule_stands_still_with_the_count():
    tx = aj.scale_by_adam(b1=optax.linear_schedule(0.9, 0.1, 100), storage=STORAGES["int8"])
    state = tx.init(jnp.ones((2, 64)))
    means = [
        float(jnp.mean(tx.update(jnp.ones((2, 64)), state._replace(count=jnp.int32(count)))[0]))
        for count in (-5, 2**31 - 1, 0)
    ]
    assert means[0] == pytest.approx(means[1], rel=0.02)
    assert means[0] != pytest.approx(means[2], rel=0.2)


# Memory


def step_of(tx):
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


SHAPES = {"w": (512, 1024), "v": (500, 300), "b": (4096,)}


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="XLA made copies before jax 0.10")
@pytest.mark.parametrize(
    "storage",
    [
        "bfloat16",
        "int8",
        "int16",
        {"mu": "int8", "nu": "int16"},
        {"mu": "bfloat16", "nu": "factored"},
    ],
    ids=str,
)
def test_temporaries(storage):
    """XLA computes what is stored once, in place, and no float32 copy of it."""
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}
    size = sum(np.prod(x.shape) for x in params.values())
    adamw = aj.adamw(1e-3, storage=storage)
    for tx in (adamw, aj.chain(aj.clip_by_global_norm(1.0), adamw)):
        state = jax.eval_shape(tx.init, params)
        step = jax.jit(step_of(tx), donate_argnums=(0, 1))
        memory = step.lower(params, state, params).compile().memory_analysis()
        assert memory.temp_size_in_bytes / size <= 0.25
    many = {name: jax.ShapeDtypeStruct((4, *shape), jnp.float32) for name, shape in SHAPES.items()}
    state = jax.eval_shape(jax.vmap(adamw.init), many)
    step = jax.jit(jax.vmap(step_of(adamw)), donate_argnums=(0, 1))
    memory = step.lower(many, state, many).compile().memory_analysis()
    assert memory.temp_size_in_bytes / (4 * size) <= 0.25


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="XLA made copies before jax 0.10")
@pytest.mark.parametrize("storage", ["int8", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_temporaries_of_a_training_step(storage):
    """No more than those of the float32 optimizer."""

    def loss(params, batch):
        for layer in params:
            batch = jnp.tanh(batch @ layer)
        return jnp.mean(batch**2)

    params, batch, sizes = [jnp.ones((64, 64))] * 48, jnp.ones((8, 64)), {}
    for each in (None, storage):
        state = aj.TrainState.create(params, aj.adam(1e-3, storage=each))
        memory = aj.train_step(loss).lower(state, batch).compile().memory_analysis()
        sizes[each] = memory.temp_size_in_bytes
    spare = 0.25 * sum(x.size for x in params)
    assert sizes[storage] <= sizes[None] + spare


@pytest.mark.parametrize(
    ("storage", "most"),
    [(None, 8.0), ("bfloat16", 4.0), ("int8", 2.07), ({"mu": "int8", "nu": "int16"}, 3.1)],
    ids=str,
)
def test_bytes(storage, most):
    params = {"w": jax.ShapeDtypeStruct((8192, 1024), jnp.float32)}
    counted = aj.state_bytes(aj.adam(1e-3, storage=storage), params)
    assert counted.per_parameter <= most + 1e-6
    small = {"w": jnp.ones((64, 128)), "b": None}
    state = aj.adam(1e-3, storage=storage).init(small)
    counted = aj.state_bytes(aj.adam(1e-3, storage=storage), small)
    assert counted.total == sum(x.nbytes for x in jax.tree.leaves(state))
    assert counted.by_array == {"['b']": 0, "['w']": counted.total - 4}


def test_bytes_are_told_apart():
    params = {"w": jnp.ones((64, 128))}
    tx = aj.skip_nonfinite(aj.chain(aj.clip(1.0), aj.rmsprop(0.1, momentum=0.9), optax.trace(0.9)))
    counted = aj.state_bytes(tx, params)
    assert counted.by_slot == {"nu": 4 * 8192, "trace": 4 * 8192, "other": 4 * 8192 + 9 + 5}
    assert "nu" in str(counted)
    assert f"{counted.total:,}" in str(counted)
    many = {f"layer {i}": jnp.ones(3) for i in range(30)}
    assert "20 more" in str(aj.state_bytes(aj.adam(0.1), many))


# Changing it


@pytest.mark.parametrize(
    "wrap", [lambda tx: tx, lambda tx: aj.multi_steps(aj.chain(aj.clip(1.0), tx), 2)]
)
@pytest.mark.parametrize("there", ["bfloat16", "int8", "int16", {"nu": "factored"}], ids=str)
def test_a_run_goes_on_in_another_storage(there, wrap):
    params = {"w": jax.random.normal(jax.random.key(0), (128, 128)), "b": jnp.ones(3), "n": None}
    exact, lean = wrap(aj.adam(0.1)), wrap(aj.adam(0.2, storage=there))
    state = exact.init(params)
    for _ in range(2):
        _, state = exact.update(params, state, params)
    converted = aj.convert_storage(exact, lean, params, state)
    jax.tree.map(
        lambda x, y: None if (x.shape, x.dtype) == (y.shape, y.dtype) else pytest.fail(str((x, y))),
        converted,
        jax.eval_shape(lean.init, params),
    )
    lean.update(params, converted, params)
    back = aj.convert_storage(lean, exact, params, converted)
    nu, expected = (optax.tree.get(each, "nu")["w"] for each in (back, state))
    np.testing.assert_allclose(nu.sum(), expected.sum(), rtol=1e-2)
    if not isinstance(there, dict):
        np.testing.assert_allclose(nu, expected, rtol=0.1, atol=1e-5 * expected.max())
    assert optax.tree.get(back, "count") == optax.tree.get(state, "count")


def test_a_count_that_only_the_storage_needs():
    params = jnp.ones(5000)
    exact, lean = aj.sgd(0.1, momentum=0.9), aj.sgd(0.1, momentum=0.9, storage="int8")
    state = exact.init(params)
    assert "count" not in state[0]._fields
    converted = aj.convert_storage(exact, lean, params, state)
    assert converted[0].count == 0
    _, converted = lean.update(params, converted, params)
    assert converted[0].count == 1
    back = aj.convert_storage(lean, exact, params, converted)
    assert jax.tree.structure(back) == jax.tree.structure(state)


# Sharding


@pytest.mark.parametrize("shape", [(64, 1024), (16, 300), (8, 24), (5000,), (3, 40, 40)])
@pytest.mark.parametrize(
    "name", ["bfloat16", "int8", pytest.param("int16", marks=pytest.mark.slow)]
)
def test_eight_devices_are_bit_identical_to_one(shape, name, make_mesh):
    mesh = make_mesh(8)
    axis = max(range(len(shape)), key=lambda i: (shape[i] % 8 == 0, i))
    spec = [None] * len(shape)
    if shape[axis] % 8 == 0:
        spec[axis] = "x"
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    tx = aj.adam(0.1, storage=STORAGES[name])
    here = jax.random.normal(jax.random.key(0), shape)
    there = jax.device_put(here, sharding)
    state_here, state_there = tx.init(here), tx.init(there)
    step = jax.jit(tx.update)
    for count in range(3):
        gradient = jax.random.normal(jax.random.key(count + 1), shape)
        _, state_here = step(gradient, state_here, here)
        _, state_there = step(jax.device_put(gradient, sharding), state_there, there)
    if shape != (3, 40, 40):
        jax.tree.map(np.testing.assert_array_equal, state_here, jax.device_get(state_there))
    else:
        # Blocks across the edge of a device: some versions of XLA then compile other arithmetic, whose
        # last bit differs, and with it a scale, or what single numbers are rounded to.
        for slot in ("mu", "nu"):
            decoded = (
                np.asarray(
                    STORAGES[name].decode(jax.device_get(getattr(state[0], slot))), np.float32
                )
                for state in (state_here, state_there)
            )
            assert np.isclose(*decoded, rtol=1e-5).mean() > 0.999
    codes = state_there[0].mu if name == "bfloat16" else state_there[0].mu.codes
    assert codes.sharding.is_equivalent_to(sharding, len(shape))


@pytest.mark.parametrize("spec", [("x",), (None, "x")])
@pytest.mark.parametrize("shape", [(256, 512), (4, 136, 136)])
@pytest.mark.parametrize("storage", ["int8", {"nu": "factored"}], ids=str)
def test_axes_that_are_split_between_devices(make_mesh, storage, shape, spec):
    """Blocks across the edge of a device, and sums along a split axis."""
    sharding = NamedSharding(make_mesh(4), PartitionSpec(*spec))
    tx = aj.adam(0.1, storage=storage)
    here = jax.random.normal(jax.random.key(0), shape)
    there = jax.device_put(here, sharding)
    state, other = tx.init(here), tx.init(there)
    for _ in range(2):
        updates, state = jax.jit(tx.update)(here, state, here)
        others, other = jax.jit(tx.update)(there, other, there)
    np.testing.assert_allclose(updates, others, rtol=1e-4)
    assert others.sharding.is_equivalent_to(sharding, len(shape))


@pytest.mark.parametrize("storage", [None, "bfloat16", "int8", {"nu": "factored"}], ids=str)
def test_a_state_made_under_jit_is_sharded_like_its_parameters(storage):
    """Where the type of a tracer has the sharding: on an explicit mesh."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    there = jax.device_put(jnp.ones((256, 512)), NamedSharding(mesh, PartitionSpec("x")))
    tx = aj.adam(0.1, storage=storage)
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(there)
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(tx.init(there)), strict=True):
        assert leaf.ndim == 0 or leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)


def is_split_as(x, *spec):
    """Whether an array is divided over its mesh in this way, in whichever words."""
    expected = NamedSharding(x.sharding.mesh, PartitionSpec(*spec))
    return x.sharding.is_equivalent_to(expected, x.ndim)


def test_the_size_that_decides_is_that_of_the_whole_array(make_mesh):
    mesh = make_mesh(8)
    there = jax.device_put(jnp.ones((8, 1024)), NamedSharding(mesh, PartitionSpec("x")))
    state = aj.adam(0.1, storage="int8").init(there)  # 1,024 on each device
    assert state[0].mu.codes.dtype == jnp.int8
    # Scales are split where their number allows.
    assert is_split_as(state[0].mu.scales, "x", None)
    columns = jax.device_put(there, NamedSharding(mesh, PartitionSpec(None, "x")))
    state = aj.adam(0.1, storage="int8").init(columns)
    assert state[0].mu.scales.shape == (8, 4)
    assert is_split_as(state[0].mu.scales, None, None)


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: aj.adam(0.1, storage="factored"),
            ValueError,
            r"slot 'mu' has a sign.*'nu': 'factored'",
        ),
        (lambda: aj.adam(0.1, storage={"mu": "factored"}), ValueError, r"slot 'mu' has a sign"),
        (lambda: aj.Blocks(block=0), ValueError, r"block=0 in Blocks must be a whole number, 1 or"),
        (lambda: aj.Blocks(block=1.5), ValueError, r"block=1.5 in Blocks"),
        (lambda: aj.Blocks(block=(8, 0)), ValueError, r"block=0 in Blocks must be a whole number"),
        (
            lambda: aj.Blocks(block=(8,)),
            ValueError,
            r"block=\(8,\) in Blocks must be one number, or",
        ),
        (lambda: aj.Blocks(bits=4), ValueError, r"bits=4 must be 8 or 16"),
        (lambda: aj.BFloat16(min_size=-1), ValueError, r"min_size=-1 in BFloat16"),
        (
            lambda: aj.sgd(0.1, momentum=0.9, storage={"nu": "int8"}),
            ValueError,
            r"\['nu'\].*\['trace'\]",
        ),
        (lambda: aj.adam(0.1, storage="int4"), ValueError, r"'int4' is not known: .*'int8'"),
        (lambda: aj.Masked("int9", True), ValueError, r"'int9' is not known"),
    ],
)
def test_bad_storages_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("made_with", "used_with"),
    [("int8", None), (None, "int8"), ("int8", "int16"), ("bfloat16", "int8"), ("int8", "bfloat16"),
     (aj.Blocks(block=128), "int8"), ({"nu": "factored"}, "int8"), (None, "bfloat16"),
     ("bfloat16", None), (aj.Float(jnp.bfloat16), None), (None, aj.Float(jnp.bfloat16))],
    ids=str,
)  # fmt: skip
def test_a_state_of_another_storage_is_refused(made_with, used_with):
    params = {"w": jnp.ones((128, 128))}
    state = aj.adam(0.1, storage=made_with).init(params)
    message = r"the state's (mu|nu) at \['w'\] was made with another storage .*convert_storage"
    with pytest.raises(ValueError, match=message):
        aj.adam(0.1, storage=used_with).update(params, state, params)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (aj.adam(0.1), aj.rmsprop(0.1)),
        (aj.adam(0.1), aj.chain(aj.adam(0.1, storage="int8"))),
        (aj.skip_nonfinite(aj.adam(0.1)), aj.multi_steps(aj.adam(0.1), 2)),
        (optax.chain(aj.adam(0.1)), optax.chain(aj.adam(0.1, storage="int8"))),
        (aj.compensate(aj.adam(0.1)), aj.compensate(aj.adam(0.1), "int8")),
    ],
)
def test_what_cannot_be_converted_is_refused(old, new):
    params = jnp.ones(5000, jnp.bfloat16)
    with pytest.raises(ValueError, match=r"differ in storage and hyperparameters alone.*aj\.chain"):
        aj.convert_storage(old, new, params, old.init(params))


@pytest.mark.parametrize(
    "storage", [None, "bfloat16", "int8", {"nu": aj.Factored(min_size=8)}], ids=str
)
def test_cutting_rows(storage):
    """Parameters of which rows are pruned: the state is cut too, one of codes in float32."""
    params = {"xyz": jnp.linspace(-1, 1, 64 * 128).reshape(64, 128)}
    tx, plain = aj.adam(0.1, storage=storage), aj.adam(0.1)
    _, state = tx.update(params, tx.init(params), params)
    rows = lambda tree: jax.tree.map(lambda x: x[:40] if x.ndim and len(x) == 64 else x, tree)  # noqa: E731
    small = rows(params)
    with pytest.raises(
        ValueError, match=r"has float32\[64, 128\] there.* cut or joined, do the same"
    ) as _:
        plain.update(small, plain.init(params), small)
    if storage == "int8":
        with pytest.raises(
            ValueError, match=r"at \['xyz'\] .* or its arrays were cut: .*convert it back"
        ):
            tx.update(small, rows(state), small)
        exact = aj.convert_storage(tx, plain, params, state)
        cut = aj.convert_storage(plain, tx, small, rows(exact))
    else:
        cut = rows(state)
    updates, _ = tx.update(small, cut, small)
    expected, _ = tx.update(params, state, params)
    np.testing.assert_allclose(
        updates["xyz"],
        expected["xyz"][:40],
        rtol=0.2 if storage else 1e-5,
        atol=0.05 if storage else 0,
    )


# ---------------------------------------------------------------------------- a state like its parameters


def make_lean():
    return {
        "adam": aj.adam(0.1),
        "int8": aj.adamw(0.1, storage="int8"),
        "int16 and factored": aj.adam(
            0.1, storage={"mu": aj.Blocks(bits=16), "nu": aj.Factored(min_size=16)}
        ),
        "skip_nonfinite": aj.skip_nonfinite(aj.adam(0.1, storage="int8")),
        "multi_steps": aj.multi_steps(aj.adam(0.1, storage="int8"), 2),
        "compensate": aj.compensate(aj.adam(0.1, storage="int8")),
        "monitor": aj.chain(aj.monitor({"norm": aj.global_norm}), aj.adam(0.1)),
        "diagnose": aj.chain(aj.clip(1.0), aj.diagnose(aj.adam(0.1, storage="int8"))),
        "optax": optax.chain(optax.masked(aj.adam(0.1, storage="int8"), {"w": True, "b": False})),
    }


@pytest.mark.parametrize(("name", "tx"), make_lean().items(), ids=make_lean())
def test_map_params(name, tx):
    """Slots and codes get what belongs to their parameter, everything else is told apart."""
    params = {"w": jnp.ones((64, 128), jnp.bfloat16), "b": jnp.ones(3)}
    specs = {"w": "spec of w", "b": "spec of b"}
    state = tx.init(params)
    called = []

    def like(slot, param, spec):
        called.append((slot.shape, param.shape))
        return spec

    found = aj.map_params(tx, like, state, params, specs, transform_non_params=lambda x: "rest")
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert called
    assert all(slot == param for slot, param in called)
    for (path, label), leaf in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(state), strict=True
    ):
        shape = leaf.shape
        # Nothing else has these shapes.
        expected = {(64, 128): "spec of w", (3,): "spec of b"}.get(shape, "rest")
        in_diagnose = "measured" in jax.tree_util.keystr(path)
        assert label == ("rest" if in_diagnose else expected), (path, shape)
    # What is not given is left alone; shapes do as well.
    same = aj.map_params(tx, lambda slot: slot, jax.eval_shape(tx.init, params))
    assert jax.tree.structure(same) == jax.tree.structure(state)


def test_map_params_of_optax():
    """It has one entry for what has no structure before the parameters are known."""
    params = {"w": jnp.ones((64, 128)), "b": jnp.ones(3)}
    measures = ("signal_to_noise", "effective_learning_rate")
    for group_by in (None, lambda path: path[:4]):
        tx = aj.diagnose(aj.adam(0.1), measures, group_by=group_by)
        specs = optax.tree.map_params(
            tx,
            lambda slot, param: f"spec of {param.shape}",
            tx.init(params),
            params,
            transform_non_params=lambda _: "rest",
        )
        expected = {"w": "spec of (64, 128)", "b": "spec of (3,)"}
        assert specs.gradient_mean == specs.inner_state[0].mu == expected
        assert set(jax.tree.leaves((specs.count, specs.measured, specs.gradient_square))) == {
            "rest"
        }
    # Without parameters there is nothing to measure, and no entry.
    assert jax.tree.leaves(tx.init({}).measured) == []


def test_a_decay_rate_that_becomes_a_schedule_keeps_its_correction():
    number, schedule = aj.adam(0.1), aj.adam(0.1, b1=lambda count: 0.9 + 0.0 * count)
    params = jnp.ones(2)
    state = number.init(params)
    for _ in range(3):
        expected, state = number.update(params, state, params)
    with jax.numpy_dtype_promotion("standard"):  # For the schedule.
        updates, _ = schedule.update(
            params, aj.convert_storage(number, schedule, params, state), params
        )
    np.testing.assert_allclose(updates, expected, rtol=1e-5)
