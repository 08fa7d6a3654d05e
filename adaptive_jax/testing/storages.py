"""What a storage promises, and a check of each promise."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import maths
from .._core.pytrees import describe
from .._core.storage.base import Storage
from .._core.transform import transform
from ..rules import Adam, Rms
from .promises import check_promises, require, require_close, signature
from .rules import check_rule


def check_storage(storage: Storage) -> None:
    """Raises unless a storage keeps what the lift, and the rules, rely on.

    It encodes and decodes arrays of many shapes, sizes and signs, under jit and vmap too, and runs
    Adam, or RMSprop, with the storage in `check_rule`. That takes up to half a minute, most of it to
    compile.

    Args:
      storage: a `Storage`, set so that it compresses small arrays too: `aj.Blocks(min_size=0)`.

    Raises:
      BrokenPromise: an AssertionError that names the promise and says how it broke.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.testing.check_storage(aj.Float())
    """
    check_promises(storage, STORAGE_PROMISES, storage)
    if storage.nonnegative_only:
        check_rule(transform(Rms(), storage=storage))
    else:
        check_rule(transform(Adam(), storage=storage))


_SHAPES = [(), (1,), (7,), (300,), (3, 5), (2, 0), (40, 3), (3, 2, 200), (130, 140)]
# Without jit, each operation is a program for each shape.
_SHAPES_WITHOUT_JIT = [(40, 3)]


class _Samples(NamedTuple):
    """Arrays, whether each is never negative, and what a storage holds of each at first."""

    arrays: list[jax.Array]
    real: tuple[bool, ...]
    first: list[Any]


def _samples(storage: Storage) -> Iterator[_Samples]:
    """Arrays of all shapes and signs: of numbers of about one size, and of many sizes."""
    generator = np.random.default_rng(0)
    for spread in (0.1, 3.0):
        arrays, are_real = [], []
        for shape in _SHAPES:
            for real in (True,) if storage.nonnegative_only else (True, False):
                values = np.exp(spread * generator.normal(size=shape))
                values *= generator.random(shape) > 0.1
                if not real:
                    values *= generator.choice([-1, 1], size=shape)
                arrays.append(jax.device_put(np.asarray(values, np.float32)))
                are_real.append(real)
        yield _Samples(arrays, tuple(are_real), _init(storage, 0.0, arrays, tuple(are_real)))


# Each is one program for all samples.


@functools.partial(jax.jit, static_argnames=("storage", "real"))
def _init(storage: Storage, value: Any, arrays: list[Any], real: tuple[bool, ...]) -> list[Any]:
    return [storage.init(value, array, real=each) for array, each in zip(arrays, real, strict=True)]


@functools.partial(jax.jit, static_argnames="storage")
def _encode(storage: Storage, arrays: list[Any], stored: list[Any], key: Any) -> list[Any]:
    return [storage.encode(*each, key) for each in zip(arrays, stored, strict=True)]


@functools.partial(jax.jit, static_argnames="storage")
def _decode(storage: Storage, stored: list[Any]) -> list[Any]:
    return [storage.decode(each) for each in stored]


def _keys(count: int) -> list[Any]:
    keys = jax.vmap(lambda i: maths.random_key(i + 1, i, 7))(np.arange(count, dtype=np.int32))
    return [*keys]


def _equal(one: Any, other: Any) -> bool:
    return all(
        np.array_equal(x, y, equal_nan=jnp.issubdtype(x.dtype, jnp.inexact))
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def _check_hashable(storage: Storage) -> None:
    other = copy.deepcopy(storage)
    require(storage == other and hash(storage) == hash(other), "It differs from its copy.")


def _check_kind(storage: Storage) -> None:
    for arrays, real, first in _samples(storage):
        for array, decoded in zip(arrays, _decode(storage, first), strict=True):
            require(
                decoded.shape == array.shape and not np.any(np.asarray(decoded)),
                f"0 in the shape {array.shape} reads back as {describe(decoded)}: {decoded}.",
            )
        stored = _encode(storage, arrays, first, _keys(1)[0])
        for each, new in zip(first, stored, strict=True):
            before, after = signature(each), signature(new)
            require(before == after, f"encode changes what is stored from {before} to {after}.")
            require(storage.holds(each), f"It does not hold what its init gave: {before}.")
        for value in _decode(storage, _init(storage, 0.25, arrays, real)):
            expected = np.full(value.shape, 0.25, value.dtype)
            require_close(value, expected, "init to 0.25", 1e-2)
    for shape in [(), (300,), *_SHAPES_WITHOUT_JIT]:
        for each in (True,) if storage.nonnegative_only else (True, False):
            array = np.ones(shape, np.float32)
            init = functools.partial(storage.init, 0.0, real=each)
            require(
                _shapes(jax.eval_shape(init, array)) == _shapes(init(array)),
                f"eval_shape of init differs from init, for the shape {shape}.",
            )


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def _check_round_trip(storage: Storage) -> None:
    for arrays, _, first in _samples(storage):
        stored = _encode(storage, arrays, first, _keys(1)[0])
        for key in _keys(20):
            again = _encode(storage, _decode(storage, stored), stored, key)
            for array, one, other in zip(arrays, stored, again, strict=True):
                if storage.elementwise:
                    require(_equal(one, other), f"{one} becomes {other}, shape {array.shape}.")
                else:
                    require_close(other, one, "what is encoded again")


def _check_unbiased(storage: Storage) -> None:
    if not storage.stochastic:
        return
    draws = 4000
    keys = _random_keys(draws)

    @jax.jit
    def sums(arrays: list[Any], first: list[Any]) -> Any:
        """Of the errors of each array, and of their squares."""

        def add(sums: Any, key: Any) -> Any:
            decoded = [storage.decode(storage.encode(*each, key)) for each in pairs]
            errors = [
                maths.saturating_cast(x, array.dtype) - array
                for x, array in zip(decoded, arrays, strict=True)
            ]
            new = [(x + error, y + error**2) for (x, y), error in zip(sums, errors, strict=True)]
            return new, None

        pairs = list(zip(arrays, first, strict=True))
        zeros = [(jnp.zeros_like(array), jnp.zeros_like(array)) for array in arrays]
        return jax.lax.scan(add, zeros, keys)[0]

    for arrays, _, first in _samples(storage):
        # Enough numbers, and not too many draws of each.
        places = [i for i, array in enumerate(arrays) if 100 <= array.size <= 2000]
        arrays = [arrays[i] for i in places]
        for array, (total, squares) in zip(
            arrays, sums(arrays, [first[i] for i in places]), strict=True
        ):
            mean, deviation = np.abs(total) / draws, np.sqrt(np.asarray(squares)) / draws
            # The smallest numbers of a block are never rounded to 0, and so are rounded up.
            allowed = 6 * deviation + 1e-4 * np.abs(array) + 1e-6 * np.abs(array).max()
            require(
                (mean <= allowed).all(),
                f"The mean of {draws} draws is off by {np.max(mean - allowed)}.",
            )


def _check_small_changes(storage: Storage) -> None:
    if not storage.stochastic or not storage.elementwise:
        return
    steps, part = 20_000, 1e-4
    generator = np.random.default_rng(1)
    values = 10.0 ** generator.uniform(-8, 0, size=(50, 64))
    keys = _random_keys(steps)

    def decoded(stored: Any) -> jax.Array:
        return maths.saturating_cast(storage.decode(stored), jnp.dtype(jnp.float32))

    @jax.jit
    def drawn(array: Any, first: Any) -> Any:
        """What is stored, and what it and others that could be are read back as."""
        stored = storage.encode(array, first, keys[0])
        many = jax.vmap(lambda key: decoded(storage.encode(array, first, key)))(keys[:64])
        return stored, decoded(stored), many

    @jax.jit
    def moved(stored: Any, change: Any) -> jax.Array:
        def advance(stored: Any, key: Any) -> Any:
            return storage.encode(decoded(stored) + change, stored, key), None

        return decoded(jax.lax.scan(advance, stored, keys)[0])

    for real in (True,) if storage.nonnegative_only else (True, False):
        signed = values if real else values * generator.choice([-1, 1], values.shape)
        array = signed.astype(np.float32)
        first = _init(storage, 0.0, [array], (real,))[0]
        stored, start, draws = drawn(array, first)
        start, draws = np.asarray(start), np.asarray(draws)
        step = draws.max(0) - draws.min(0)
        for sign in (1, -1):
            change = np.float32(sign * part) * step
            # Not what float32 nearly loses, nor what is on the edge of a step or would change its sign.
            counted = (abs(change) > 2.0**-18 * abs(start)) & (abs(start) > 5 * step)
            if np.sum(counted) < 100:  # Steps as fine as those of float32.
                continue
            arrived = np.asarray(moved(stored, change)) - start
            share = float(np.mean(arrived[counted] / (steps * change[counted])))
            require(
                abs(share - 1) < 0.25,
                f"Of {steps} changes by {sign * part:g} of the distance of what can be stored, {share:.2f} "
                "arrive: round with finer random bits, and with no part of the distance left out.",
            )


def _random_keys(count: int) -> jax.Array:
    return jax.vmap(lambda step: maths.random_key(step, 0, 7))(np.arange(count, dtype=np.int32))


def _check_small_and_large(storage: Storage) -> None:
    for arrays, real, first in _samples(storage):

        def read_back(arrays: list[Any], first: Any = first) -> list[Any]:
            return _decode(storage, _encode(storage, arrays, first, _keys(1)[0]))

        for power in (-30, -10, 10, 30, 37):
            scaled = [_scaled(np.asarray(array), power) for array in arrays]
            for array, is_real, value in zip(arrays, real, read_back(scaled), strict=True):
                require(
                    np.isfinite(np.asarray(value).astype(np.float32)).all(),
                    f"Numbers up to 1e{power} read back as {value}.",
                )
                zeros = np.asarray(array) == 0
                if storage.elementwise:
                    require(not np.any(np.asarray(value)[zeros]), f"0 reads back as {value}.")
                if is_real and storage.stochastic and power > -30:
                    require(
                        (np.asarray(value)[~zeros] > 0).all(),
                        f"A number above 0 reads back as 0: {value}.",
                    )
        for bad in (np.inf, np.nan):
            poisoned = [np.array(array) for array in arrays]
            for array in poisoned:
                array.flat[:1] = bad
            for array, value in zip(arrays, read_back(poisoned), strict=True):
                require(
                    not array.size or not np.isfinite(np.asarray(value).astype(np.float32)).all(),
                    f"{bad} reads back as {value}: what is not finite must stay visible.",
                )


def _scaled(array: np.ndarray, power: int) -> np.ndarray:
    """The array with 10 to a power as its largest number."""
    largest = np.abs(array).max(initial=0.0) or np.float32(1.0)
    return array / largest * np.float32(10.0**power)


def _check_storage_traced(storage: Storage) -> None:
    """Compiled, the last bit may differ, and with it what a few numbers are rounded to."""
    key = _keys(1)[0]

    def read_back(array: Any, first: Any) -> jax.Array:
        return storage.decode(storage.encode(array, first, key)).astype(jnp.float32)

    def read_all_back(arrays: list[Any], first: list[Any]) -> list[jax.Array]:
        return [read_back(*each) for each in zip(arrays, first, strict=True)]

    def require_same(how: str, value: Any, plain: Any) -> None:
        differs = ~np.isclose(value, plain, rtol=1e-5, atol=1e-30)
        require(
            differs.mean() <= 0.01 if differs.size else True,
            f"Under {how}, {value} reads back in place of {plain}.",
        )

    compiled, mapped = jax.jit(read_all_back), jax.jit(jax.vmap(read_all_back))
    for arrays, _, first in _samples(storage):
        values = compiled(arrays, first)
        twice = jax.tree.map(lambda x: np.stack([x, x]), (arrays, first))
        for value, many in zip(values, mapped(*twice), strict=True):
            require_same("vmap", many[1], value)
        for array, each, value in zip(arrays, first, values, strict=True):
            if array.shape in _SHAPES_WITHOUT_JIT:
                require_same("jit", value, read_back(array, each))


STORAGE_PROMISES: dict[str, Callable[[Storage], None]] = {
    "it is static: it hashes, and equals its copy": _check_hashable,
    "what is stored keeps its structure, shapes and dtypes": _check_kind,
    "what is read back is stored as the same again": _check_round_trip,
    "it can be traced": _check_storage_traced,
    "rounding at random is right on average": _check_unbiased,
    "changes that are far smaller than its steps arrive on average": _check_small_changes,
    "zero stays zero, what is above stays above, what is not finite stays visible": _check_small_and_large,
}
