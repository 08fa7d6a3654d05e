"""Slots in 8 or 16 bits, with one scale for each block of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from ... import maths
from .. import arguments, export
from .base import PLAIN, Compressed
from .sharding import explicit_sharding, resharded, sharding_of

Block = int | tuple[int, int]


@export.state
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
      where it is shorter. Or two numbers, so many along each of the last two axes: (8, 128) is a tile of
      a TPU, whose compiler would copy arrays for other blocks. Four times as many numbers share a scale
      then, and updates are less precise: wrong by 11 % in the mean, where it is 6 % for 256.
    """

    bits: int = 8
    block: Block = 256

    stochastic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "bits", arguments.whole("bits", self.bits, 1))
        if self.bits not in (8, 16):
            raise ValueError(f"bits={self.bits!r} must be 8 or 16.")
        block, where = self.block, f" in {type(self).__name__}"
        if not isinstance(block, (tuple, list)):
            block = arguments.whole("block", block, 1, where)
        elif len(block) != 2:
            raise ValueError(
                f"block={block!r}{where} must be one number, or two: those along the last two axes."
            )
        else:
            block = tuple(arguments.whole("block", each, 1, where) for each in block)
        object.__setattr__(self, "block", block)

    def compressed(self, value: float | jax.Array, param: Any, *, real: bool) -> Quantized:
        code = _CODES[self.bits, not real]
        counts, _ = _grid(param.shape, self.block)
        value = jnp.asarray(value, jnp.float32)
        scale = _scale(jnp.abs(value), code)
        top = (jnp.sign(value) * code.top).astype(code.dtype)
        return Quantized(
            jnp.full_like(param, top, dtype=code.dtype),
            jnp.full(counts, scale, device=sharding_of(param, counts)),
        )

    def encode(self, value: jax.Array, stored: Any, key: jax.Array | None) -> Any:
        if not isinstance(stored, Quantized):
            return PLAIN.encode(value, stored, key)
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


def _grid(shape: tuple[int, ...], block: Block) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many blocks there are along each axis, and how long they are."""
    lengths = _tile(shape, block) if isinstance(block, tuple) else _row(shape, block)
    return tuple(-(-size // length) for size, length in zip(shape, lengths, strict=True)), lengths


def _row(shape: tuple[int, ...], block: int) -> tuple[int, ...]:
    """So many numbers along the last axis, and along those before it where it is shorter."""
    lengths = []
    for size in reversed(shape):
        lengths.append(max(1, min(size, block)))
        block //= lengths[-1]
    return tuple(reversed(lengths))


def _tile(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """So many numbers along the last two axes."""
    (rows, columns), size = block, math.prod(block)
    if len(shape) < 2 or shape[-1] < columns:
        return _row(shape, size)
    # Where tiles do not fit, a compiler for TPUs would copy the array; not for a whole row or column.
    lengths = min(shape[-2], rows), columns
    if shape[-2] % lengths[0] or shape[-1] % columns:
        if shape[-1] <= size:
            lengths = 1, shape[-1]
        elif columns <= shape[-2] <= size:
            lengths = shape[-2], 1
    return *(1 for _ in shape[:-2]), *lengths


def _split(
    counts: tuple[int, ...], lengths: tuple[int, ...], block: Block
) -> tuple[list[int], list[int], list[int]]:
    """The shape with one axis more for each axis that is blocked; the axes of the blocks, and theirs."""
    shape: list[int] = []
    outer, inner = [], []
    for count, length in zip(counts, lengths, strict=True):
        outer.append(len(shape))
        shape.append(count)
        # On TPUs, an array of one axis lies in tiles as well.
        is_row = isinstance(block, tuple) and len(counts) == 1 and length == math.prod(block)
        for each in block if is_row else [length]:  # type: ignore[union-attr]
            if each > 1:
                inner.append(len(shape))
                shape.append(each)
    return shape, outer, inner


def _largest(magnitude: jax.Array, block: Block) -> jax.Array:
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
            bits = resharded(bits, spec)
    if any(high for _, high, _ in ragged):
        bits = lax.pad(bits, np.uint32(0), ragged)
    shape, _, inner = _split(counts, lengths, block)
    bits = lax.reshape(bits, shape)
    return _float(largest(bits, inner))


def largest(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The maximum over axes of numbers that are not negative."""

    def twice(x: jax.Array) -> jax.Array:
        return reduced(x, lax.max, axes)

    def once(x: jax.Array) -> jax.Array:
        return lax.reduce(x, np.zeros((), x.dtype), lax.max, axes)

    return lax.platform_dependent(x, cpu=twice, default=once)


def reduced(x: jax.Array, operation: Any, axes: Sequence[int]) -> jax.Array:
    """The maximum or twice the sum over axes, from 0 on.

    Done twice over, in one go: what is reduced once, XLA for CPUs would compute into an array first.
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


def _spread(scales: jax.Array, shape: tuple[int, ...], block: Block) -> jax.Array:
    """Each block's number at each of its places."""
    counts, lengths = _grid(shape, block)
    wide, outer, _ = _split(counts, lengths, block)
    full = tuple(n * b for n, b in zip(counts, lengths, strict=True))
    spread = lax.reshape(lax.broadcast_in_dim(scales, wide, outer), full)
    return spread if full == shape else lax.slice(spread, (0,) * len(shape), shape)
