"""How a slot is kept: a codec between the array that a rule computes with and what the state holds."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from . import _check, _export, maths
from ._rule import Mask, Slot


class Storage:
    """A codec for slots. Subclass it as a frozen dataclass: a storage is static, so it must hash.

    The lift decodes a slot before a rule sees it, and encodes what the rule returns. A rule that
    passes a new value through `ctx.store` goes on with decode(encode(value)), what the state
    really holds, so a run that restarts from a checkpoint takes the very same steps.
    `encode(decode(stored), stored, key)` must give `stored` back. `aj.testing.check_storage` checks
    this and the rest.

    Class attributes:
      stochastic: whether `encode` rounds at random and needs a key. A rule's state then counts its
        steps, of which the keys are made.
      nonnegative_only: whether it is for slots that are real and never negative.
      elementwise: whether it keeps each number; False if it keeps what many have in common.
    """

    stochastic: ClassVar[bool] = False
    nonnegative_only: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True

    def init(self, value: float | jax.Array, param: Any, *, real: bool) -> Any:
        """What the state holds at first: a slot of the shape of param, filled with value.

        real: whether the slot is real and never negative (a second moment), also for a complex param.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no `init`.")

    def encode(self, value: jax.Array, stored: Any, key: jax.Array | None) -> Any:
        """What the state is to hold for value, in the structure and the dtypes of stored.

        key: a uint32 of shape (), another one for each step, array and slot, for
          `maths.random_bits(value.shape, key)`; None for a storage that is not stochastic.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no `encode`.")

    def decode(self, stored: Any) -> jax.Array:
        """The array that stored stands for."""
        raise NotImplementedError(f"{type(self).__name__} defines no `decode`.")

    def holds(self, stored: Any) -> bool:
        """Whether stored can have been made by this storage."""
        del stored
        return True

    def adopted(self, stored: Any, likes: Sequence[Any]) -> Any:
        """What stored is here, if an optimizer of optax made it; else stored.

        likes: the gradient and the parameter. optax keeps a slot in the dtype of the parameter.
        """
        del likes
        return stored

    def from_names(self, stored: Mapping[str, Any], shape: tuple[int, ...], *, real: bool) -> Any:
        """The NamedTuple of which stored has the fields by their names: Flax NNX makes it a mapping."""
        param = jax.ShapeDtypeStruct(shape, jnp.float32)
        made = jax.eval_shape(functools.partial(self.init, 0.0, param, real=real))
        is_made_of = set(getattr(made, "_fields", ())) == set(stored)
        return type(made)(**stored) if is_made_of else stored

    def init_tree(self, value: float | jax.Array, params: Any, *, real: bool) -> Any:
        """`init` for every array of a tree."""
        return jax.tree.map(functools.partial(self.init, value, real=real), params)


@dataclass(frozen=True)
class Float(Storage):
    """A plain array of a floating-point dtype, rounded to nearest.

    dtype: None for float32, or the parameter's own dtype where that is wider or complex.
    """

    dtype: Any = None

    def init(self, value: float | jax.Array, param: Any, *, real: bool) -> jax.Array:
        dtype = self.dtype
        if dtype is None:
            dtype = maths.compute_dtype(jnp.result_type(param))
        if real:
            dtype = jnp.finfo(dtype).dtype
        return jnp.full_like(param, value, dtype=dtype)

    def encode(self, value: jax.Array, stored: jax.Array, key: jax.Array | None) -> jax.Array:
        return maths.saturating_cast(value, stored.dtype)

    def decode(self, stored: jax.Array) -> jax.Array:
        return stored

    def adopted(self, stored: Any, likes: Sequence[Any]) -> Any:
        is_theirs = getattr(stored, "dtype", None) in [jnp.result_type(like) for like in likes]
        if self.dtype is not None or not is_theirs or self.holds(stored):
            return stored
        return lax.convert_element_type(stored, maths.compute_dtype(stored.dtype))

    def holds(self, stored: Any) -> bool:
        if not hasattr(stored, "dtype") or not jnp.issubdtype(stored.dtype, jnp.inexact):
            return False
        if self.dtype is None:
            return jnp.finfo(stored.dtype).bits >= 32
        return jnp.finfo(stored.dtype).dtype == jnp.finfo(self.dtype).dtype


_PLAIN = Float()


@dataclass(frozen=True, kw_only=True)
class Compressed(Storage):
    """What the storages below 32 bits share: some arrays stay as they are under "float32".

    These are arrays of less than `min_size` elements, slots that are complex, and those of 64 bits. The
    size is that of the whole array, however it is sharded.
    """

    min_size: int = 4096

    def __post_init__(self) -> None:
        for name, least in (("min_size", 0), ("block", 1)):
            if hasattr(self, name):
                value = _check.whole(name, getattr(self, name), least, f" in {type(self).__name__}")
                object.__setattr__(self, name, value)

    def init(self, value: float | jax.Array, param: Any, *, real: bool) -> Any:
        dtype = jnp.result_type(param)
        if self._is_exempt(param.shape, jnp.finfo(dtype).dtype if real else dtype):
            return _PLAIN.init(value, param, real=real)
        return self.compressed(value, param, real=real)

    def compressed(self, value: float | jax.Array, param: Any, *, real: bool) -> Any:
        """`init`, for an array that is to be compressed."""
        raise NotImplementedError(f"{type(self).__name__} defines no `compressed`.")

    def _is_exempt(self, shape: tuple[int, ...], dtype: Any) -> bool:
        return self._is_small(shape) or dtype.kind == "c" or jnp.finfo(dtype).bits > 32

    def _is_small(self, shape: tuple[int, ...]) -> bool:
        return math.prod(shape) < self.min_size

    def holds(self, stored: Any) -> bool:
        return _PLAIN.holds(stored) and self._is_exempt(stored.shape, stored.dtype)


@dataclass(frozen=True, kw_only=True)
class BFloat16(Compressed):
    """bfloat16, rounded stochastically: up or down, so that the mean is right.

    Rounded to nearest, a second moment whose decay rate is 0.999 never decays.

    min_size: arrays of fewer elements stay in float32.
    """

    stochastic = True

    def compressed(self, value: float | jax.Array, param: Any, *, real: bool) -> jax.Array:
        return jnp.full_like(param, value, dtype=jnp.bfloat16)

    def encode(self, value: jax.Array, stored: jax.Array, key: jax.Array | None) -> jax.Array:
        if stored.dtype != jnp.bfloat16:
            return _PLAIN.encode(value, stored, key)
        value = maths.saturating_cast(value, jnp.dtype(jnp.float32))
        return maths.rounded_to_bfloat16(value, maths.random_bits(value.shape, key))

    def decode(self, stored: jax.Array) -> jax.Array:
        return stored

    def holds(self, stored: Any) -> bool:
        return super().holds(stored) or getattr(stored, "dtype", None) == jnp.bfloat16


@_export.state
class Quantized(NamedTuple):
    """Codes of the shape of the parameter, and one float32 for each block of them: its largest |x|."""

    codes: Any
    scales: Any


@dataclass(frozen=True, kw_only=True)
class Blocks(Compressed):
    """Codes of 8 or 16 bits with one float32 scale per block, rounded stochastically.

    A code is a floating-point number of its own: with the block's largest S = max|x|, the upper bits of
    K|x|/S + 1, counted from those of 1. Its steps grow with |x|, as those of μ-law do, from 3e-4 S in
    8 bits and 7e-9 S in 16 with a sign, and from 1e-6 S and 5e-7 S without one. What is above 0 and has
    no sign is not rounded to 0: the root of the smallest second moment, 7e-4 S or more, is above the
    smallest first one, so that chance makes no large update. The mean is right for changes far smaller
    than a step, down to a millionth of the number itself, and in 8 bits to a 50,000th of a step.

    min_size: arrays of fewer elements stay in float32.
    bits: 8 or 16.
    block: how many numbers share a scale: neighbours along the last axis, and along those before it
      where it is shorter.
    """

    bits: int = 8
    block: int = 256

    stochastic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "bits", _check.whole("bits", self.bits, 1))
        if self.bits not in (8, 16):
            raise ValueError(f"bits={self.bits!r} must be 8 or 16.")

    def compressed(self, value: float | jax.Array, param: Any, *, real: bool) -> Quantized:
        code = _CODES[self.bits, not real]
        counts, _ = _grid(param.shape, self.block)
        value = jnp.asarray(value, jnp.float32)
        scale = _scale(jnp.abs(value), code)
        top = (jnp.sign(value) * code.top).astype(code.dtype)
        return Quantized(
            jnp.full_like(param, top, dtype=code.dtype),
            jnp.full(counts, scale, device=_sharding_of(param, counts)),
        )

    def encode(self, value: jax.Array, stored: Any, key: jax.Array | None) -> Any:
        if not isinstance(stored, Quantized):
            return _PLAIN.encode(value, stored, key)
        code = _CODE_OF[stored.codes.dtype.name]
        value = maths.saturating_cast(value, jnp.dtype(jnp.float32))
        magnitude = lax.abs(value)
        scales = _scale(_largest(magnitude, self.block), code)
        relative = magnitude * _spread(code.scale / scales, value.shape, self.block)
        codes = _rounded(relative, maths.random_bits(value.shape, key), code)
        codes = lax.min(codes, np.uint32(code.top)).astype(code.dtype)
        # The last operation has two operands: XLA then writes the codes once, and reads them back.
        if code.signed:
            codes = lax.select(_bits(value) >= np.uint32(2**31), -codes, codes)
        else:
            codes = lax.max(codes, (_bits(value) > 0).astype(code.dtype))
        return Quantized(codes, scales)

    def decode(self, stored: Any) -> jax.Array:
        if not isinstance(stored, Quantized):
            return stored
        codes, scales = stored
        code = _CODE_OF[codes.dtype.name]
        places = lax.abs(codes.astype(jnp.int32)).astype(jnp.uint32) << np.uint32(code.shift)
        unit = _spread(scales * np.float32(1 / code.scale), codes.shape, self.block)
        value = (_float(places + _BITS_OF_ONE) - 1) * unit
        return lax.select(codes < 0, -value, value) if code.signed else value

    def holds(self, stored: Any) -> bool:
        if not isinstance(stored, Quantized):
            return super().holds(stored)
        codes, scales = stored
        fits = scales.shape == _grid(codes.shape, self.block)[0]
        return fits and jnp.iinfo(codes.dtype).bits == self.bits


class _Code(NamedTuple):
    """How numbers of 8 or 16 bits stand for those from 0, or -1, to 1."""

    dtype: Any
    shift: int
    signed: bool

    @property
    def bits(self) -> int:
        return 8 * self.dtype.itemsize

    @property
    def top(self) -> int:
        """The code of 1."""
        return int(np.iinfo(self.dtype).max)

    @property
    def scale(self) -> np.float32:
        """K: it puts a block's largest number exactly on the top code, from which it cannot fall."""
        bits = np.uint32(_BITS_OF_ONE + (self.top << self.shift))
        return np.float32(bits.view(np.float32) - 1)

    @property
    def least_scale(self) -> np.float32:
        """The least scale of a block, whose K/S is a normal number still."""
        return np.float32(self.scale * 2.0**-126)


_BITS_OF_ONE = np.uint32(0x3F800000)
_CODES = {
    (8, True): _Code(np.dtype(np.int8), 19, True),
    (8, False): _Code(np.dtype(np.uint8), 19, False),
    (16, True): _Code(np.dtype(np.int16), 12, True),
    (16, False): _Code(np.dtype(np.uint16), 10, False),
}
_CODE_OF = {code.dtype.name: code for code in _CODES.values()}


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.uint32)


def _float(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.float32)


def _rounded(relative: jax.Array, random: jax.Array, code: _Code) -> jax.Array:
    """The code below a number or the one above it, so that the mean over the random bits is right.

    The number is one from 0 to K. What was decoded is off by some units in its last place, and yet its
    own code is to come out, so the noise must not come that near to 0 or to a whole step.
    """
    noise = random >> np.uint32(32 - code.shift)
    if code.bits == 8:  # A step is 2^19 units.
        place = _bits(relative + 1) - _BITS_OF_ONE
        noise = lax.clamp(np.uint32(10), noise, np.uint32((1 << code.shift) - 7))
        return (place + noise) >> np.uint32(code.shift)
    # In 16 bits a step is a thousand units, and a small number changes by less than one. So the random
    # bits that are left decide between two units: they are a number from 0 to 1 unit, above `least`. And
    # the distance to be kept is in proportion to the number, which grows a little where the noise is
    # near 0, and shrinks where it is near a step.
    unit = np.float32(2.0**-23)
    least = np.float32(2.0 ** (code.shift - 9)) * unit
    rest = random & np.uint32((1 << (32 - code.shift)) - 1)
    fraction = _float(rest | least.view(np.uint32))
    factor = _float(_BITS_OF_ONE + np.uint32(6) - (random >> np.uint32(28)))
    # The sum is rounded to the nearest unit, hence the half; and it must not fall below 1, hence the two.
    place = _bits(relative * factor + fraction + (1 - least - unit / 2 + 2 * unit))
    return (place - (_BITS_OF_ONE + np.uint32(2)) + noise) >> np.uint32(code.shift)


def _grid(shape: tuple[int, ...], block: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many blocks there are along each axis, and how long they are."""
    lengths = []
    for size in reversed(shape):
        lengths.append(max(1, min(size, block)))
        block //= lengths[-1]
    lengths.reverse()
    return tuple(-(-size // length) for size, length in zip(shape, lengths, strict=True)), tuple(
        lengths
    )


def _split(
    counts: tuple[int, ...], lengths: tuple[int, ...]
) -> tuple[list[int], list[int], list[int]]:
    """The shape with one axis more for each axis that is blocked; the axes of the blocks, and theirs."""
    shape: list[int] = []
    outer, inner = [], []
    for count, length in zip(counts, lengths, strict=True):
        outer.append(len(shape))
        shape.append(count)
        if length > 1:
            inner.append(len(shape))
            shape.append(length)
    return shape, outer, inner


def _largest(magnitude: jax.Array, block: int) -> jax.Array:
    """The largest number of each block; NaN for one with NaN in it."""
    counts, lengths = _grid(magnitude.shape, block)
    bits = _bits(magnitude)  # Not negative: in the same order as the numbers, NaN above them all.
    ragged = [
        (0, n * b - size, 0) for n, b, size in zip(counts, lengths, magnitude.shape, strict=True)
    ]
    sharding = explicit_sharding(bits, counts)
    if sharding is not None:  # Blocks that lie across devices are brought together.
        ends = zip(sharding.spec, ragged, strict=True)
        spec = PartitionSpec(*(None if high else axes for axes, (_, high, _) in ends))
        if spec != jax.typeof(bits).sharding.spec:
            bits = _resharded(bits, spec)
    if any(high for _, high, _ in ragged):
        bits = lax.pad(bits, np.uint32(0), ragged)
    shape, _, inner = _split(counts, lengths)
    bits = lax.reshape(bits, shape)
    return _float(_reduced(bits, lax.max, inner))


def _reduced(x: jax.Array, operation: Any, axes: Sequence[int]) -> jax.Array:
    """The maximum or twice the sum over axes, from 0 on.

    Done twice over, in one go: what is reduced once, XLA would compute into an array first.
    """
    zero = np.zeros((), x.dtype)

    def both(x: Any, y: Any) -> Any:
        return operation(x[0], y[0]), operation(x[1], y[1])

    return operation(*lax.reduce((x, x), (zero, zero), both, axes))


def _scale(largest: jax.Array, code: _Code) -> jax.Array:
    """The scale of a block: its largest number, on a grid that is coarser than the error of decoding."""
    bits = _bits(lax.max(largest, code.least_scale))
    infinite = np.uint32(0x7F800000)
    rounded = jnp.where(bits < infinite, jnp.minimum(bits + np.uint32(4), infinite - 1), bits)
    return _float(rounded & ~np.uint32(7))


def _spread(scales: jax.Array, shape: tuple[int, ...], block: int) -> jax.Array:
    """Each block's number at each of its places."""
    counts, lengths = _grid(shape, block)
    wide, outer, _ = _split(counts, lengths)
    full = tuple(n * b for n, b in zip(counts, lengths, strict=True))
    spread = lax.reshape(lax.broadcast_in_dim(scales, wide, outer), full)
    return spread if full == shape else lax.slice(spread, (0,) * len(shape), shape)


def _sharding_of(param: Any, shape: tuple[int, ...]) -> Any:
    """The sharding for an array with the axes of param, split where it is if their lengths allow."""
    if isinstance(param, Tracer):
        return explicit_sharding(param, shape)
    return _split_like(getattr(param, "sharding", None), shape)


def explicit_sharding(x: Any, shape: tuple[int, ...]) -> Any:
    """The same for an array that is traced, if its type is sharded, on an explicit mesh; or None."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    if not any(axes is not None for axes in getattr(sharding, "spec", ())):
        return None
    return _split_like(sharding, shape)


def whole(x: jax.Array) -> jax.Array:
    """An array on every device, if its type is sharded: to be sorted, or joined with others."""
    return x if explicit_sharding(x, x.shape) is None else _resharded(x, PartitionSpec())


def _resharded(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    sharding: Any = jax.typeof(x).sharding if isinstance(x, Tracer) else x.sharding
    return jax.sharding.reshard(x, sharding.update(spec=spec))


def _split_like(sharding: Any, shape: tuple[int, ...]) -> Any:
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return None
    spec = (*sharding.spec, *[None] * len(shape))[: len(shape)]
    split = []
    for size, axes in zip(shape, spec, strict=True):
        names = axes if isinstance(axes, tuple) else () if axes is None else (axes,)
        parts = math.prod(sharding.mesh.shape[name] for name in names)
        split.append(axes if size % parts == 0 else None)
    return NamedSharding(sharding.mesh, PartitionSpec(*split))


@_export.state
class Factors(NamedTuple):
    """The means of a matrix over its columns and over its rows, with an axis of length 1 for them."""

    rows: Any
    columns: Any


@dataclass(frozen=True, kw_only=True)
class Factored(Compressed):
    """The means of rows and columns, of which the matrix is made again: Adafactor's second moment.

        r = mean over columns,   c = mean over rows,   x ≈ r cᵀ / mean(r)

    Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235. The two longest axes are taken for rows and
    columns, the others for many matrices.

    min_size: how long both must be; shorter arrays stay in float32.
    """

    min_size: int = 128

    nonnegative_only = True
    elementwise = False

    def _is_small(self, shape: tuple[int, ...]) -> bool:
        return len(shape) < 2 or sorted(shape)[-2] < max(2, self.min_size)

    def compressed(self, value: float | jax.Array, param: Any, *, real: bool) -> Factors:
        shapes = [
            tuple(1 if i == axis else size for i, size in enumerate(param.shape))
            for axis in _longest_axes(param.shape)
        ]
        return Factors(
            *(
                jnp.full(shape, value, jnp.float32, device=_sharding_of(param, shape))
                for shape in shapes
            )
        )

    def encode(self, value: jax.Array, stored: Any, key: jax.Array | None) -> Any:
        if not isinstance(stored, Factors):
            return _PLAIN.encode(value, stored, key)
        value = maths.saturating_cast(value, jnp.dtype(jnp.float32))
        means = []
        for axis in _longest_axes(value.shape):
            # Divided before they are added: the sum could overflow.
            parts = value * np.float32(1 / value.shape[axis])
            means.append(lax.expand_dims(_sum(parts, axis), [axis]))
        return Factors(*means)

    def decode(self, stored: Any) -> jax.Array:
        if not isinstance(stored, Factors):
            return stored
        rows, columns = stored
        (axis,) = (i for i, size in enumerate(columns.shape) if size == 1 and rows.shape[i] > 1)
        mean = jnp.maximum(rows.mean(axis, keepdims=True), jnp.finfo(rows.dtype).tiny)
        # Its derivative has 1/mean², which overflows, and is left out.
        value = rows / lax.stop_gradient(mean) * columns
        # The product can be larger than any number of which the means are.
        return lax.min(value, np.float32(maths.largest_squared(np.float32) ** 2))

    def holds(self, stored: Any) -> bool:
        return isinstance(stored, Factors) or super().holds(stored)


def _sum(x: jax.Array, axis: int) -> jax.Array:
    """The sum along an axis: of 64 at a time, which stay in the processor's cache, then of these."""
    length = 64
    sharding = explicit_sharding(x, x.shape)
    is_split = sharding is not None and sharding.spec[axis] is not None
    if axis == x.ndim - 1 or x.shape[axis] <= length or is_split:
        return _reduced(x, lax.add, [axis]) / 2
    ragged = [(0, -size % length if i == axis else 0, 0) for i, size in enumerate(x.shape)]
    x = lax.pad(x, x.dtype.type(0), ragged)
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    parts = lax.reshape(x, (*before, size // length, length, *after))
    return lax.reduce(_reduced(parts, lax.add, [axis + 1]) / 2, x.dtype.type(0), lax.add, [axis])


def _longest_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """The longest axis and the next one; of equals, the last are taken."""
    second, first = np.argsort(shape, kind="stable")[-2:]
    return int(first), int(second)


@dataclass(frozen=True)
class Masked(Storage):
    """One storage for the arrays that a mask selects, float32 for the others.

    storage: a `Storage` or the name of one.
    mask: a tree of bools, a prefix of one, or a function of the parameters that returns one.
    """

    storage: Any
    mask: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "storage", _resolve(self.storage))
        object.__setattr__(self, "mask", Mask.of(self.mask))

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.storage.stochastic

    @property
    def nonnegative_only(self) -> bool:  # type: ignore[override]
        return self.storage.nonnegative_only

    @property
    def elementwise(self) -> bool:  # type: ignore[override]
        return self.storage.elementwise

    def init_tree(self, value: float | jax.Array, params: Any, *, real: bool) -> Any:
        leaves = _check.Arrays("params", params)
        selected = leaves.selected(self.mask, params) if leaves.leaves else []
        stored = [
            x if x is None else (self.storage if select else _PLAIN).init(value, x, real=real)
            for x, select in zip(leaves.leaves, selected, strict=True)
        ]
        return leaves.treedef.unflatten(stored)

    def from_names(self, stored: Mapping[str, Any], shape: tuple[int, ...], *, real: bool) -> Any:
        return self.storage.from_names(stored, shape, real=real)

    def encode(self, value: jax.Array, stored: Any, key: jax.Array | None) -> Any:
        return self.storage.encode(value, stored, key)

    def decode(self, stored: Any) -> jax.Array:
        return self.storage.decode(stored)

    def holds(self, stored: Any) -> bool:
        return self.storage.holds(stored) or _PLAIN.holds(stored)


NAMED: dict[str, Storage] = {
    "float32": _PLAIN,
    "bfloat16": BFloat16(),
    "int8": Blocks(bits=8),
    "int16": Blocks(bits=16),
    "factored": Factored(),
}
"""The storages that `storage=` knows by name."""


def _resolve(storage: Any) -> Storage:
    if storage is None:
        return NAMED["float32"]
    if isinstance(storage, Storage):
        return storage
    known = ", ".join(repr(name) for name in NAMED)
    if isinstance(storage, str):
        if storage in NAMED:
            return NAMED[storage]
        raise ValueError(f"storage={storage!r} is not known: it is one of {known}.")
    raise TypeError(
        f"storage={storage!r} is a {type(storage).__name__}: it must be one of {known}, a "
        "Storage, or a mapping from slot names to these."
    )


def per_slot(storage: Any, slots: Mapping[str, Slot]) -> dict[str, Storage]:
    """The storage of each slot, from the `storage=` argument of a transformation."""
    if isinstance(storage, Mapping):
        found = {name: _resolve(storage.get(name)) for name in slots}
    else:
        found = dict.fromkeys(slots, _resolve(storage))
    for name, slot in slots.items():
        if found[name].nonnegative_only and not slot.nonnegative:
            fit = {name: storage for name, slot in slots.items() if slot.nonnegative}
            raise ValueError(
                f"storage={storage!r} is for slots that are never negative, and the slot {name!r} has a "
                f"sign: give each slot its own, such as storage={{{name!r}: 'bfloat16'"
                + "".join(f", {each!r}: 'factored'" for each in fit)
                + "}."
            )
    return found


def check_slot_names(storage: Any, names: set[str]) -> None:
    """Raises a ValueError for a mapping that names a slot which no rule has."""
    if isinstance(storage, Mapping) and (unknown := set(storage) - names):
        raise ValueError(
            f"storage names the slots {sorted(unknown)}, which these rules do not have: their slots "
            f"are {sorted(names)}."
        )


def with_dtype(storage: Any, slot: str, dtype: Any) -> Any:
    """The `storage=` argument with one slot kept in dtype: what optax's `mu_dtype` asks for."""
    if dtype is None:
        return storage
    if storage is not None:
        raise ValueError(
            f"a dtype of {slot} ({dtype!r}) and storage={storage!r} are two ways to say the same: "
            "give one of them."
        )
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(f"{slot} cannot be kept in {dtype}: give a floating-point dtype.")
    return {slot: Float(dtype)}
