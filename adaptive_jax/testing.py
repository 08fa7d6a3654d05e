"""Checks that a rule, or an optimizer made of rules, keeps every promise of this library."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import maths
from ._core import pytrees
from ._core.rule import Rule, fields
from ._core.storage.base import Storage
from ._core.transform import transform
from ._core.transformation import Transformation
from .rules.adam import Adam
from .rules.rms import Rms
from .transforms.parts import parts

if hasattr(jax, "enable_x64"):
    enable_x64 = jax.enable_x64
else:  # Before jax 0.8.
    from jax.experimental import enable_x64  # type: ignore[attr-defined]


_STEPS = 3


class BrokenPromise(AssertionError):
    """A promise that does not hold: which one, for what, and how it broke."""


def check_rule(rule: Rule | optax.GradientTransformation) -> None:
    """Raises unless a rule keeps what every optimizer of this library promises.

    It takes a rule with its hyperparameters, or a whole transformation, and runs a few updates of
    small trees under jit, vmap, scan, grad and cond, in every dtype, with None, empty and zero-size
    arrays, with extreme and zero gradients, inside optax's wrappers, and after a restart. That
    takes some seconds, most of them to compile.

    Args:
      rule: a `Rule`, or an optax gradient transformation. To check it with a storage, one that
        compresses small arrays: `transform(rule, storage=aj.Blocks(min_size=0))`.

    Raises:
      BrokenPromise: an AssertionError that names the promise and says how it broke.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.testing.check_rule(aj.WeightDecay(0.01))
    """
    if isinstance(rule, type):
        raise TypeError(f"check_rule takes a rule, not its class: {rule.__name__}(…).")
    tx = transform(rule) if isinstance(rule, Rule) else rule
    for promise, check in PROMISES.items():
        try:
            check(tx)
        except Exception as error:
            raise BrokenPromise(f"{rule!r} breaks a promise: {promise}. {error}") from error


def check_storage(storage: Storage) -> None:
    """Raises unless a storage keeps what the lift, and the rules, rely on.

    It encodes and decodes arrays of many shapes, sizes and signs, under jit and vmap too, and runs
    Adam, or RMSprop, with the storage in `check_rule`. That takes about a minute, most of it to compile.

    Args:
      storage: a `Storage`, set so that it compresses small arrays too: `aj.Blocks(min_size=0)`.

    Raises:
      BrokenPromise: an AssertionError that names the promise and says how it broke.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.testing.check_storage(aj.Float())
    """
    for promise, check in STORAGE_PROMISES.items():
        try:
            check(storage)
        except Exception as error:
            raise BrokenPromise(f"{storage!r} breaks a promise: {promise}. {error}") from error
    if storage.nonnegative_only:
        check_rule(transform(Rms(), storage=storage))
    else:
        check_rule(transform(Adam(), storage=storage))


def _stored_samples(storage: Storage) -> Iterator[tuple[jax.Array, Any, bool]]:
    """Arrays with what a storage holds of them at first, and whether they are never negative."""
    generator = np.random.default_rng(0)
    shapes = [(), (1,), (7,), (300,), (3, 5), (2, 0), (40, 3), (3, 2, 200), (130, 140)]
    for shape in shapes:
        for real in (True,) if storage.nonnegative_only else (True, False):
            for spread in (0.1, 3.0):
                values = np.exp(spread * generator.normal(size=shape))
                values *= generator.random(shape) > 0.1
                if not real:
                    values *= generator.choice([-1, 1], size=shape)
                array = jnp.asarray(np.asarray(values), jnp.float32)
                yield array, storage.init(0.0, array, real=real), real


@functools.cache
def _encode(storage: Storage) -> Callable[..., Any]:
    return jax.jit(storage.encode)


@functools.cache
def _decode(storage: Storage) -> Callable[..., Any]:
    return jax.jit(storage.decode)


def _keys(count: int) -> list[Any]:
    return [maths.random_key(jnp.int32(i + 1), i, 7) for i in range(count)]


def _equal(one: Any, other: Any) -> bool:
    return all(
        np.array_equal(x, y, equal_nan=jnp.issubdtype(x.dtype, jnp.inexact))
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def _check_hashable(storage: Storage) -> None:
    other = copy.deepcopy(storage)
    _require(storage == other and hash(storage) == hash(other), "It differs from its copy.")


def _check_kind(storage: Storage) -> None:
    for array, first, real in _stored_samples(storage):
        decoded = _decode(storage)(first)
        _require(
            decoded.shape == array.shape and not np.any(np.asarray(decoded)),
            f"0 in the shape {array.shape} reads back as {pytrees.describe(decoded)}: {decoded}.",
        )
        stored = _encode(storage)(array, first, _keys(1)[0])
        before, after = _signature(first), _signature(stored)
        _require(before == after, f"encode changes what is stored from {before} to {after}.")
        _require(storage.holds(first), f"It does not hold what its init gave: {before}.")
        value = _decode(storage)(storage.init(0.25, array, real=real))
        _require_close(value, jnp.full_like(array, 0.25, dtype=value.dtype), "init to 0.25", 1e-2)
        abstract = jax.eval_shape(functools.partial(storage.init, 0.0, real=real), array)
        _require(
            jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
            == jax.tree.map(lambda x: (x.shape, x.dtype), first),
            f"eval_shape of init differs from init, for the shape {array.shape}.",
        )


def _check_round_trip(storage: Storage) -> None:
    for array, first, _ in _stored_samples(storage):
        stored = _encode(storage)(array, first, _keys(1)[0])
        for key in _keys(20):
            again = _encode(storage)(_decode(storage)(stored), stored, key)
            if storage.elementwise:
                _require(_equal(stored, again), f"{stored} becomes {again}, shape {array.shape}.")
            else:
                _require_close(again, stored, "what is encoded again")


def _check_unbiased(storage: Storage) -> None:
    if not storage.stochastic:
        return
    draws = 4000
    keys = jax.vmap(lambda step: maths.random_key(step, 0, 7))(jnp.arange(draws))
    for array, first, _ in _stored_samples(storage):
        if not 100 <= array.size <= 2000:  # Enough numbers, and not too many draws of each.
            continue

        def error(key: Any, array: Any = array, first: Any = first) -> Any:
            decoded = storage.decode(storage.encode(array, first, key))
            return maths.saturating_cast(decoded, array.dtype) - array

        def add(sums: Any, key: Any, error: Any = error) -> Any:
            new = error(key)
            return (sums[0] + new, sums[1] + new**2), None

        zeros = jnp.zeros_like(array)
        total, squares = jax.jit(lambda keys, add=add, zeros=zeros: _scan(add, zeros, keys))(keys)
        mean, deviation = np.abs(total) / draws, np.sqrt(np.asarray(squares)) / draws
        # The smallest numbers of a block are never rounded to 0, and so are rounded up.
        allowed = 6 * deviation + 1e-4 * np.abs(array) + 1e-6 * np.abs(array).max()
        _require(
            (mean <= allowed).all(),
            f"The mean of {draws} draws is off by {np.max(mean - allowed)}.",
        )


def _scan(add: Any, zeros: jax.Array, keys: jax.Array) -> Any:
    return jax.lax.scan(add, (zeros, zeros), keys)[0]


def _check_small_changes(storage: Storage) -> None:
    if not storage.stochastic or not storage.elementwise:
        return
    steps, part = 20_000, 1e-4
    generator = np.random.default_rng(1)
    values = 10.0 ** generator.uniform(-8, 0, size=(50, 64))
    keys = jax.vmap(lambda step: maths.random_key(step, 0, 7))(jnp.arange(steps))
    for real in (True,) if storage.nonnegative_only else (True, False):
        array = jnp.asarray(values if real else values * generator.choice([-1, 1], values.shape))
        array = array.astype(jnp.float32)
        first = storage.init(0.0, array, real=real)

        def decoded(stored: Any) -> jax.Array:
            return maths.saturating_cast(storage.decode(stored), jnp.dtype(jnp.float32))

        def draw(key: Any, array: Any = array, first: Any = first) -> jax.Array:
            return decoded(storage.encode(array, first, key))

        draws = jax.jit(jax.vmap(draw))(keys[:64])
        step = draws.max(0) - draws.min(0)
        stored = _encode(storage)(array, first, keys[0])
        start = decoded(stored)
        for sign in (1, -1):
            change = sign * part * step
            # Not what float32 nearly loses, nor what is on the edge of a step or would change its sign.
            counted = (abs(change) > 2.0**-18 * abs(start)) & (abs(start) > 5 * step)

            def advance(stored: Any, key: Any, change: Any = change) -> Any:
                return storage.encode(decoded(stored) + change, stored, key), None

            moved = jax.jit(lambda s, advance=advance: jax.lax.scan(advance, s, keys)[0])(stored)
            if np.sum(counted) < 100:  # Steps as fine as those of float32.
                continue
            share = float(np.mean(((decoded(moved) - start) / (steps * change))[counted]))
            _require(
                abs(share - 1) < 0.25,
                f"Of {steps} changes by {sign * part:g} of the distance of what can be stored, {share:.2f} "
                "arrive: round with finer random bits, and with no part of the distance left out.",
            )


def _check_small_and_large(storage: Storage) -> None:
    for array, first, real in _stored_samples(storage):
        if not array.size:
            continue
        for power in (-30, -10, 10, 30, 37):
            largest = float(np.abs(array).max()) or 1.0
            scaled = array / largest * 10.0**power
            value = _decode(storage)(_encode(storage)(scaled, first, _keys(1)[0]))
            _require(
                np.isfinite(np.asarray(value).astype(np.float32)).all(),
                f"Numbers up to 1e{power} read back as {value}.",
            )
            zeros = np.asarray(array) == 0
            if storage.elementwise:
                _require(not np.any(np.asarray(value)[zeros]), f"0 reads back as {value}.")
            if real and storage.stochastic and power > -30:
                _require(
                    (np.asarray(value)[~zeros] > 0).all(),
                    f"A number above 0 reads back as 0: {value}.",
                )
        for bad in (jnp.inf, jnp.nan):
            poisoned = array.at[(0,) * array.ndim].set(bad)
            value = _decode(storage)(_encode(storage)(poisoned, first, _keys(1)[0]))
            _require(
                not np.isfinite(np.asarray(value).astype(np.float32)).all(),
                f"{bad} reads back as {value}: what is not finite must stay visible.",
            )


def _check_storage_traced(storage: Storage) -> None:
    """Compiled, the last bit may differ, and with it what a few numbers are rounded to."""
    key = _keys(1)[0]

    def read_back(array: jax.Array, first: Any) -> jax.Array:
        return storage.decode(storage.encode(array, first, key)).astype(jnp.float32)

    for array, first, _ in _stored_samples(storage):
        plain = np.asarray(read_back(array, first))
        twice = jax.tree.map(lambda x: jnp.stack([x, x]), (array, first))
        for how, value in (
            ("jit", jax.jit(read_back)(array, first)),
            ("vmap", jax.vmap(read_back)(*twice)[1]),
        ):
            differs = ~np.isclose(value, plain, rtol=1e-5, atol=1e-30)
            _require(
                differs.mean() <= 0.01 if array.size else True,
                f"Under {how}, {value} reads back in place of {plain}.",
            )


STORAGE_PROMISES: dict[str, Callable[[Storage], None]] = {
    "it is static: it hashes, and equals its copy": _check_hashable,
    "what is stored keeps its structure, shapes and dtypes": _check_kind,
    "what is read back is stored as the same again": _check_round_trip,
    "it can be traced": _check_storage_traced,
    "rounding at random is right on average": _check_unbiased,
    "changes that are far smaller than its steps arrive on average": _check_small_changes,
    "zero stays zero, what is above stays above, what is not finite stays visible": _check_small_and_large,
}
"""What `check_storage` checks, in order."""


def _params(dtype: Any = np.float32) -> dict[str, Any]:
    """Arrays of several ranks; a zero-size one, a scalar, and a None."""
    generator = np.random.default_rng(0)
    shapes = {"matrix": (3, 4), "vector": (5,), "scalar": (), "empty": (0, 2)}
    tree = {name: _random(generator, shape, dtype) for name, shape in shapes.items()}
    return {**tree, "nested": [None, (_random(generator, (2,), dtype),)]}


def _random(generator: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    values = generator.normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * generator.normal(size=shape)
    return jnp.asarray(np.asarray(values), dtype)


def _gradients(params: Any, seed: int) -> Any:
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda x: _random(generator, x.shape, x.dtype), params)


def _run(
    tx: Any, params: Any, steps: int = _STEPS, update: Callable[..., Any] | None = None
) -> Any:
    """The updates of some steps, and the state after them."""
    state, all_updates = tx.init(params), []
    for step in range(steps):
        updates, state = (update or tx.update)(_gradients(params, step), state, params)
        all_updates.append(updates)
    return all_updates, state


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _require_close(got: Any, expected: Any, what: str, tolerance: float = 1e-5) -> None:
    _require(
        jax.tree.structure(got) == jax.tree.structure(expected),
        f"{what}: {jax.tree.structure(got)} in place of {jax.tree.structure(expected)}.",
    )
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
    ):
        x, y = (np.asarray(z).astype(np.complex128) for z in (x, y))
        _require(
            np.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True),
            f"{what}: at {jax.tree_util.keystr(path)} it gives {x}, not {y}.",
        )


def _signature(tree: Any) -> Any:
    """Structure, shapes, dtypes and weak types, as jit sees them."""
    return jax.tree.map(
        lambda x: (np.shape(x), np.dtype(jnp.result_type(x)).name, jax.typeof(x).weak_type), tree
    )


def _check_jit(tx: Any) -> None:
    params = _params()
    plain = _run(tx, params)
    _require_close(_run(tx, params, update=jax.jit(tx.update)), plain, "under jit")
    with jax.disable_jit():
        _require_close(_run(tx, params, steps=2), _run(tx, params, steps=2), "without jit")


def _check_stable_state(tx: Any) -> None:
    params = _params()
    state = tx.init(params)
    _, new = tx.update(_gradients(params, 0), state, params)
    before, after = _signature(state), _signature(new)
    _require(before == after, f"An update changes the state from {before} to {after}.")
    weak = [
        path
        for path, leaf in jax.tree_util.tree_leaves_with_path(new)
        if jax.typeof(leaf).weak_type
    ]
    _require(not weak, f"The state has weakly typed entries: {weak}.")
    step: Any = jax.jit(lambda updates, state, params: tx.update(updates, state, params))
    for seed in range(_STEPS):
        _, state = step(_gradients(params, seed), state, params)
    _require(step._cache_size() == 1, f"{_STEPS} calls compiled {step._cache_size()} times.")


def _check_scan(tx: Any) -> None:
    params = _params()
    gradients = [_gradients(params, step) for step in range(_STEPS)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *gradients)

    def body(state: Any, updates: Any) -> Any:
        updates, state = tx.update(updates, state, params)
        return state, updates

    state, updates = jax.lax.scan(body, tx.init(params), stacked)
    loop_updates, loop_state = _run(tx, params)
    _require_close(state, loop_state, "the state of a scan")
    _require_close(updates, jax.tree.map(lambda *x: jnp.stack(x), *loop_updates), "a scan")


def _check_vmap(tx: Any) -> None:
    params = [jax.tree.map(lambda x, factor=factor: factor * x, _params()) for factor in (1.0, 0.5)]
    stack = lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731

    def run(params: Any) -> Any:
        state, gradients = tx.init(params), params
        for _ in range(2):
            gradients, state = tx.update(gradients, state, params)
        return gradients, state

    _require_close(jax.vmap(run)(stack(*params)), stack(*map(run, params)), "under vmap")


def _check_transforms(tx: Any) -> None:
    params, gradients = _params(), _gradients(_params(), 0)
    state = tx.init(params)
    shapes = jax.eval_shape(tx.update, gradients, state, params)
    updates, new = tx.update(gradients, state, params)
    _require(
        jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
        == jax.tree.map(lambda x: (x.shape, x.dtype), (updates, new)),
        "eval_shape of an update differs from the update.",
    )
    abstract = jax.eval_shape(tx.init, params)
    _require(
        jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
        == jax.tree.map(lambda x: (x.shape, x.dtype), state),
        "eval_shape of init differs from init.",
    )
    branch = jax.lax.cond(
        jnp.array(True), lambda: tx.update(gradients, state, params), lambda: (gradients, state)
    )
    _require_close(branch, (updates, new), "under lax.cond")


def _check_grad(tx: Any) -> None:
    params = _params()
    zeros = jax.tree.map(jnp.zeros_like, params)

    def loss(gradients: Any, params: Any) -> jax.Array:
        state, total = tx.init(params), jnp.zeros(())
        for _ in range(2):
            updates, state = tx.update(gradients, state, params)
            total = sum((jnp.sum(x) for x in jax.tree.leaves(updates)), total)
        return total

    slope = jax.jit(jax.grad(loss, argnums=(0, 1)))
    for name, gradients in (("random gradients", _gradients(params, 0)), ("zero gradients", zeros)):
        slopes = slope(gradients, params)
        _require(
            _finite(slopes),
            f"The derivative of an update is not finite, for {name}. (√x has none at 0; "
            "aj.maths.square_root(x) has.)",
        )


def _check_dtypes(tx: Any) -> None:
    for dtype in (jnp.float16, jnp.bfloat16):
        low = _params(dtype)
        high = jax.tree.map(lambda x: x.astype(jnp.float32), low)
        gradients = _gradients(low, 0)
        wide_gradients = jax.tree.map(lambda x: x.astype(jnp.float32), gradients)
        updates, state = tx.update(gradients, tx.init(low), low)
        wide_updates, _ = tx.update(wide_gradients, tx.init(high), high)
        _require_dtypes(updates, gradients, "update")
        expected = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), wide_updates)
        precision = 2 * float(jnp.finfo(dtype).eps)
        _require_close(
            updates, expected, f"{np.dtype(dtype).name} maths is not float32 maths", precision
        )
        _, mixed = tx.update(wide_gradients, tx.init(low), low)
        _require(
            _signature(mixed) == _signature(state) == _signature(tx.init(low)),
            f"With {np.dtype(dtype).name} parameters, the dtype of the gradients changes the state.",
        )


def _check_float64(tx: Any) -> None:
    with enable_x64(True):
        params = _params(np.float64)
        updates, state = tx.update(_gradients(params, 0), tx.init(params), params)
        _require_dtypes(updates, params, "update")
        narrow = [
            path
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
            if leaf.dtype == jnp.float32 and leaf.ndim
        ]
        _require(not narrow, f"The state of float64 parameters is float32 at {narrow}.")
        params = _params(np.float32)
        updates, state = tx.update(_gradients(params, 0), tx.init(params), params)
        _require_dtypes(updates, params, "update")
        wide = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float64]
        _require(not wide, "With x64 enabled, the state of float32 parameters is float64.")


def _check_complex(tx: Any) -> None:
    params = _params(np.complex64)
    try:
        state = tx.init(params)
    except (TypeError, ValueError) as error:
        _require("complex" in str(error), f"Complex parameters are refused without a name: {error}")
        return
    try:
        updates, new = tx.update(_gradients(params, 0), state, params)
    except (TypeError, ValueError) as error:
        raise AssertionError(
            f"{error} (A rule for real arrays says takes_complex = False.)"
        ) from error
    _require_dtypes(updates, params, "update")
    _require(
        _signature(state) == _signature(new), "An update changes the state of complex parameters."
    )


def _require_dtypes(got: Any, like: Any, what: str) -> None:
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(like), strict=True
    ):
        _require(
            x.dtype == y.dtype and not jax.typeof(x).weak_type,
            f"The {what} at {jax.tree_util.keystr(path)} is {x.dtype}, its gradient {y.dtype}.",
        )


def _extremes(dtype: Any) -> Iterator[tuple[str, list[float]]]:
    """Names and sequences of gradients.

    The largest is a 64th of the dtype's largest number: a velocity is a sum of gradients, and a sum
    that no float32 can hold is infinite by right.
    """
    info = jnp.finfo(dtype)
    largest, smallest, denormal = (
        float(info.max) / 64,
        float(info.tiny),
        float(info.smallest_subnormal),
    )
    yield "huge", [largest] * 4
    yield "huge, of both signs", [largest, -largest] * 2
    yield "huge once, then zero", [largest, 0.0, 0.0, 0.0]
    yield "the smallest normal number", [smallest] * 4
    yield "denormal numbers", [denormal] * 4
    yield "numbers of all sizes", [denormal, 1.0, largest, smallest]
    yield "a constant", [1.0] * 30


def _check_finite(tx: Any) -> None:
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        for name, values in _extremes(dtype):
            params = {"w": jnp.ones((3,), dtype)}
            state = tx.init(params)
            for value in values:
                gradients = {"w": jnp.full((3,), value, dtype)}
                updates, state = tx.update(gradients, state, params)
                for what, tree in (("update", updates), ("state", state)):
                    places = _not_finite(tree)
                    _require(
                        not places,
                        f"{np.dtype(dtype).name} gradients that are {name}, up to {max(values):.3g}, "
                        f"make the {what} at {', '.join(places)} infinite or NaN. What overflows? "
                        "aj.maths.bounded, second_moment and quotient do not.",
                    )


def _check_zero(tx: Any) -> None:
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        zeros = jax.tree.map(jnp.zeros_like, _params(dtype))
        state = tx.init(zeros)
        for _ in range(_STEPS):
            updates, state = tx.update(zeros, state, zeros)
            _require(
                all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(updates)),
                f"Zero gradients from the start give {updates} in {np.dtype(dtype).name}.",
            )


def _check_not_hidden(tx: Any) -> None:
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        params = {"w": jnp.ones((2,), dtype)}
        for value in (np.nan, np.inf):
            updates, _ = tx.update({"w": jnp.array([value, 1.0], dtype)}, tx.init(params), params)
            _require(
                not _finite(updates),
                f"A gradient that is {value} gives the update {updates} in {np.dtype(dtype).name}.",
            )


def _finite(tree: Any) -> bool:
    return not _not_finite(tree)


def _not_finite(tree: Any) -> list[str]:
    """The paths of the arrays that hold an infinity or NaN."""
    return [
        jax.tree_util.keystr(path)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(jnp.result_type(x), jnp.inexact) and not jnp.all(jnp.isfinite(x))
    ]


def _check_none_and_empty(tx: Any) -> None:
    params, gradients = _params(), _gradients(_params(), 0)
    state = tx.init(params)
    updates, new = tx.update({**gradients, "vector": None}, state, params)
    _require(updates["vector"] is None, "The update of a None gradient is not None.")
    for before, after in zip(_vectors(state), _vectors(new), strict=True):
        _require(
            np.array_equal(before, after), "A None gradient changes the slots of its parameter."
        )
    for empty in ({}, [], (), None):
        updates, _ = tx.update(empty, tx.init(empty), empty)
        _require(updates == empty, f"The update of the empty tree {empty!r} is {updates!r}.")


def _vectors(state: Any) -> list[Any]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [leaf for path, leaf in leaves if jax.tree_util.DictKey("vector") in path]


def _check_optax(tx: Any) -> None:
    params = _params()
    alone = _run(tx, params)[0]
    for name, wrapped in {
        "optax.chain": optax.chain(optax.identity(), tx),
        "optax.masked": optax.masked(tx, jax.tree.map(lambda _: True, params)),
        "optax.partition": optax.partition({"a": tx}, jax.tree.map(lambda _: "a", params)),
        "optax.apply_if_finite": optax.apply_if_finite(tx, 3),
        "optax.with_extra_args_support": optax.with_extra_args_support(tx),
    }.items():
        _require_close(_run(wrapped, params)[0], alone, f"inside {name}")
    accumulating = optax.MultiSteps(tx, 2)
    gradients, state = _gradients(params, 0), accumulating.init(params)
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps adds integers to floats.
        _, state = accumulating.update(gradients, state, params)
        updates, state = accumulating.update(gradients, state, params)
    _require_close(updates, alone[0], "inside optax.MultiSteps")
    state = tx.init(params)
    mapped = optax.tree.map_params(tx, lambda leaf: leaf, state)
    _require_close(mapped, state, "through optax.tree.map_params")


def _check_state_format(tx: Any) -> None:
    params = _params()
    _, state = _run(tx, params)
    if isinstance(tx, Transformation) and hasattr(tx.init.args[0], "rules"):  # type: ignore[attr-defined]
        lifted = tx.init.args[0]  # type: ignore[attr-defined]
        for layout, part in zip(lifted.layout(), lifted.split(state), strict=True):
            _require(
                part._fields == layout.fields,
                f"The state {layout.name} has the entries {part._fields}, not {layout.fields}.",
            )
    restored = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, state)))
    gradients = _gradients(params, 7)
    here, there = tx.update(gradients, state, params), tx.update(gradients, restored, params)
    _require(
        all(
            np.array_equal(x, y)
            for x, y in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True)
        ),
        "A run that continues from a saved state differs from the one that was not stopped.",
    )


def _check_signs(tx: Any) -> None:
    params = _params()
    _, state = _run(tx, params)
    for rule, storages, part in parts(tx, state):
        for (name, slot), storage in zip(rule.slots.items(), storages, strict=True):
            for leaf in jax.tree.structure(params).flatten_up_to(getattr(part, name)):
                _require(
                    not slot.nonnegative or not np.any(np.asarray(storage.decode(leaf)) < 0),
                    f"The slot {name!r} of {rule!r} has negative entries: it is no "
                    "Slot(nonnegative=True), and some storages would lose their sign.",
                )


def _check_data(tx: Any) -> None:
    if not isinstance(tx, Transformation):
        return
    params = _params()
    for rule, _, _ in parts(tx, tx.init(params)):
        static = {name: getattr(rule, name) for name in fields(type(rule))[2]}
        _require(
            not (numbers := {name: x for name, x in static.items() if isinstance(x, float)}),
            f"The fields {list(numbers)} of {type(rule).__name__} are static, so that every new value "
            "compiles again: annotate a hyperparameter with aj.Hyper, aj.NonNegative or aj.Decay.",
        )
    step: Any = jax.jit(lambda tx, updates, state, params: tx.update(updates, state, params))
    state, gradients = tx.init(params), _gradients(params, 0)
    step(tx, gradients, state, params)
    leaves, treedef = jax.tree.flatten(tx)
    halved = treedef.unflatten([0.5 * leaf for leaf in leaves])
    step(halved, gradients, state, params)
    _require(step._cache_size() == 1, "A change of the hyperparameters compiles again.")


PROMISES: dict[str, Callable[[Any], None]] = {
    "it works under jit and without": _check_jit,
    "its state keeps structure, shapes and dtypes, so nothing compiles twice": _check_stable_state,
    "it works in a scan": _check_scan,
    "it works under vmap": _check_vmap,
    "it works under cond and eval_shape": _check_transforms,
    "finite gradients give finite updates": _check_finite,
    "zero gradients from the start give zero updates": _check_zero,
    "a gradient that is not finite stays visible": _check_not_hidden,
    "its maths is in float32 at least, and an update has its gradient's dtype": _check_dtypes,
    "float64 stays float64, and float32 stays float32": _check_float64,
    "complex parameters work, or are refused by name": _check_complex,
    "it can be differentiated, at zero too": _check_grad,
    "None, empty trees, zero-size and scalar arrays just work": _check_none_and_empty,
    "it works inside the wrappers of optax": _check_optax,
    "its state is a stable format that a run can continue from": _check_state_format,
    "a slot that is declared never to be negative is not": _check_signs,
    "its hyperparameters are data": _check_data,
}
"""What `check_rule` checks, in order."""
