"""Second moments as the product of a row and a column."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ... import maths
from .. import export
from .base import PLAIN, Compressed
from .blocks import reduced
from .sharding import explicit_sharding, sharding_of


@export.state
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
                jnp.full(shape, value, jnp.float32, device=sharding_of(param, shape))
                for shape in shapes
            )
        )

    def encode(self, value: jax.Array, stored: Any, key: jax.Array | None) -> Any:
        if not isinstance(stored, Factors):
            return PLAIN.encode(value, stored, key)
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
    """The sum along an axis."""

    def at_once(x: jax.Array) -> jax.Array:
        return lax.reduce(x, x.dtype.type(0), lax.add, [axis])

    # On a TPU, to take parts of an axis is to copy the array.
    return lax.platform_dependent(
        x, tpu=at_once, default=functools.partial(_sum_of_parts, axis=axis)
    )


def _sum_of_parts(x: jax.Array, axis: int) -> jax.Array:
    """The same, of 64 at a time, which stay in the processor's cache, then of these."""
    length = 64
    sharding = explicit_sharding(x, x.shape)
    is_split = sharding is not None and sharding.spec[axis] is not None
    if axis == x.ndim - 1 or x.shape[axis] <= length or is_split:
        return reduced(x, lax.add, [axis]) / 2
    ragged = [(0, -size % length if i == axis else 0, 0) for i, size in enumerate(x.shape)]
    x = lax.pad(x, x.dtype.type(0), ragged)
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    parts = lax.reshape(x, (*before, size // length, length, *after))
    return lax.reduce(reduced(parts, lax.add, [axis + 1]) / 2, x.dtype.type(0), lax.add, [axis])


def _longest_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """The longest axis and the next one; of equals, the last are taken."""
    second, first = np.argsort(shape, kind="stable")[-2:]
    return int(first), int(second)
