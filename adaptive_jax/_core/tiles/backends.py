"""What compiles a kernel for tiles: one small class for each compiler of Pallas."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from .equations import Operation, done
from .legal import done_with_less


@dataclass(frozen=True)
class Backend:
    """How a tile's numbers come into a kernel and out of it, and what the compiler is told.

    An operand has one number for each element of the array, or one for each block of `per` of them.

    height: the rows of a tile.
    tells: whether a warning says so where no array is for tiles.
    """

    height: int = 8
    tells: bool = field(default=True, kw_only=True)

    platform: ClassVar[str] = ""
    """Of which platform it compiles kernels."""

    masks_edges: ClassVar[bool] = False
    """Whether reading and writing has to be kept from going beyond an edge."""

    turns_blocks: ClassVar[bool] = False
    """Whether what there is one of for each block is turned: blocks along the first axis."""

    def why_not(self, shape: tuple[int, ...], has_blocks: bool) -> str | None:
        """Why arrays of a shape are not for tiles here; None where they are."""
        del shape, has_blocks

    def rows_of_a_tile(self, rows: int, together: int) -> int | None:
        """The height of the tiles of so many rows; None where they do not go into tiles.

        together: so many rows, counted from the first, are neighbours in the whole array.
        """
        height = min(self.height, rows)
        return height if together == rows else math.gcd(height, together)

    def numbers(self, count: int) -> pl.BlockSpec:
        """Where the numbers lie that all tiles need."""
        return pl.BlockSpec((count,), lambda i, j: (0,))

    def tile(self, height: int, width: int, per: int, blocks: int) -> pl.BlockSpec:
        """What of an operand belongs to a tile. blocks: how many numbers it has in a row."""
        return pl.BlockSpec((height, width // per), lambda i, j: (i, j))

    def read(self, ref: Any, shape: tuple[int, int], inside: jax.Array | None, column: Any) -> Any:
        """A tile's part of an operand.

        shape: of this part.
        inside: what of it there is; None for all.
        column: its first column, in the whole of the operand.
        """
        return ref[...]

    def write(self, ref: Any, value: jax.Array, inside: jax.Array | None, column: Any) -> None:
        """Writes it back."""
        ref[...] = value

    def do(self, operation: Operation, *inputs: Any) -> Any:
        """What an operation of a rule or a storage gives, also where the compiler does not know it."""
        return done(operation, *inputs)

    def options(self) -> dict[str, Any]:
        """What `pl.pallas_call` is told."""
        raise NotImplementedError(f"{type(self).__name__} defines no `options`.")


@dataclass(frozen=True)
class Interpreted(Backend):
    """No compiler: tiles one after the other as XLA computes them, to test the rest on a CPU."""

    platform = "cpu"

    def options(self) -> dict[str, Any]:
        return {"interpret": True}


@dataclass(frozen=True)
class Triton(Backend):
    """Pallas's Triton, for GPUs. Its lengths are powers of two.

    One row and one warp were the fastest on an H100 and an H200 (tests/benchmarks/tiles_on_gpu.py).
    """

    height: int = 1
    warps: int = 1

    platform, masks_edges = "cuda", True

    def why_not(self, shape: tuple[int, ...], has_blocks: bool) -> str | None:
        if not has_blocks:
            return "no slot has blocks, and XLA's own kernel is at the floor of traffic, and faster"
        return super().why_not(shape, has_blocks)

    def do(self, operation: Operation, *inputs: Any) -> Any:
        return done_with_less(operation, *inputs)

    def rows_of_a_tile(self, rows: int, together: int) -> int | None:
        height = min(self.height, 1 << (rows.bit_length() - 1))
        return height if together == rows else math.gcd(height, together)

    def read(self, ref: Any, shape: tuple[int, int], inside: jax.Array | None, column: Any) -> Any:
        if inside is None:
            return ref[...]
        from jax.experimental.pallas import triton

        return triton.load(ref, mask=inside, other=0)

    def write(self, ref: Any, value: jax.Array, inside: jax.Array | None, column: Any) -> None:
        if inside is None:
            ref[...] = value
            return
        from jax.experimental.pallas import triton

        triton.store(ref, value, mask=inside)

    def options(self) -> dict[str, Any]:
        from jax.experimental.pallas import triton

        return {"compiler_params": triton.CompilerParams(num_warps=self.warps, num_stages=1)}


_LANES, _SUBLANES = 128, 8


@dataclass(frozen=True)
class MosaicTPU(Backend):
    """Pallas's Mosaic, for TPUs, where arrays lie in pieces of 8 rows and 128 columns.

    A column of numbers, one for each row of a tile, would lie in as many pieces as a whole tile of 128
    columns. So they come and go as rows, of 8 blocks at once, from which a tile picks its own.
    """

    height: int = 128

    platform, turns_blocks = "tpu", True

    def why_not(self, shape: tuple[int, ...], has_blocks: bool) -> str | None:
        *_, rows, columns = shape
        if has_blocks:  # XLA copies more.
            return None
        if len(shape) > 2 and rows % 32:
            return f"with {rows} rows, which is no multiple of 32, it would have to be copied"
        padded = _up(rows, _SUBLANES) * _up(columns, _LANES)
        if _up(columns, _SUBLANES) * _up(rows, _LANES) < padded:
            return "it lies in memory column by column, and would have to be copied"
        return None

    def do(self, operation: Operation, *inputs: Any) -> Any:
        return done_with_less(operation, *inputs)

    def rows_of_a_tile(self, rows: int, together: int) -> int | None:
        height = min(self.height, rows)
        if together != rows:
            height = math.gcd(height, together)
        return height if height % _LANES == 0 or height == rows else None

    def numbers(self, count: int) -> pl.BlockSpec:
        from jax.experimental.pallas import tpu

        return pl.BlockSpec((count,), lambda i, j: (0,), memory_space=tpu.SMEM)

    def tile(self, height: int, width: int, per: int, blocks: int) -> pl.BlockSpec:
        if per == 1:
            return super().tile(height, width, per, blocks)
        together = np.int32(_SUBLANES // (width // per))  # So many tiles.
        shape = min(blocks, _SUBLANES), height
        return pl.BlockSpec(shape, lambda i, j: (lax.div(j, together), i))

    def read(self, ref: Any, shape: tuple[int, int], inside: jax.Array | None, column: Any) -> Any:
        if ref.shape == shape:
            return ref[...]
        columns = [
            _sum(mine, jnp.broadcast_to(_sum(here, ref[...], 0), mine.shape), 1)
            for here, mine in self._mine(ref, shape, column)
        ]
        return columns[0] if len(columns) == 1 else jnp.concatenate(columns, 1)

    def write(self, ref: Any, value: jax.Array, inside: jax.Array | None, column: Any) -> None:
        if ref.shape == value.shape:
            ref[...] = value
            return
        for k, (here, mine) in enumerate(self._mine(ref, value.shape, column)):
            row = _sum(mine, jnp.broadcast_to(value[:, k : k + 1], mine.shape), 0)
            ref[...] = lax.select(here, jnp.broadcast_to(row, ref.shape), ref[...])

    def _mine(self, ref: Any, shape: Any, column: Any) -> list[tuple[jax.Array, jax.Array]]:
        """For each block of a row of a tile, where it is among those that come with it, and the diagonal
        that a row and a column have in common."""
        height, count = shape
        square = height, height
        line = lax.broadcasted_iota(jnp.int32, ref.shape, 0)
        down, right = (lax.broadcasted_iota(jnp.int32, square, axis) for axis in (0, 1))
        first = lax.rem(column, np.int32(_SUBLANES))
        return [(line == first + k, down == right) for k in range(count)]

    def options(self) -> dict[str, Any]:
        from jax.experimental.pallas import tpu

        semantics = ("parallel", "arbitrary")
        return {"compiler_params": tpu.CompilerParams(dimension_semantics=semantics)}


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _sum(mask: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """The one number along an axis that a mask selects."""
    return jnp.sum(lax.select(mask, x, jnp.zeros(x.shape, x.dtype)), axis, keepdims=True)


def backend_for(platform: str) -> Backend | None:
    """What compiles kernels for the devices of a platform, as JAX names it; None for none.

    Pallas's Mosaic for GPUs, which is to follow Triton, will be one class more and one line here.
    """
    if platform in ("gpu", "cuda", "rocm") and not _has_triton():
        return None
    return {"tpu": MosaicTPU(), "gpu": Triton(), "cuda": Triton(), "rocm": Triton()}.get(platform)


def _has_triton() -> bool:
    """Whether this version of JAX has Pallas's Triton, which is to go."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None
