"""What compiles a kernel for tiles: one small class for each compiler of Pallas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from .equations import Operation, done
from .legal import done_with_less

RUN_ON: frozenset[str] = frozenset()
"""The platforms on which kernels have been run, and are used where nobody says whether to."""


@dataclass(frozen=True)
class Backend:
    """How a tile's numbers come into a kernel and out of it, and what the compiler is told.

    An operand has one number for each element of the array, or one for each block of `per` of them.

    height: the rows of a tile.
    """

    height: int = 8

    platform: ClassVar[str] = ""
    """Of which platform it compiles kernels."""

    masks_edges: ClassVar[bool] = False
    """Whether reading and writing has to be kept from going beyond an edge."""

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

        inside: what of it there is; None for all.
        column: the first column of the tile, of an operand's that are blocks.
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
        raise NotImplementedError


@dataclass(frozen=True)
class Interpreted(Backend):
    """No compiler: tiles one after the other as XLA computes them, to test the rest on a CPU."""

    platform = "cpu"

    def options(self) -> dict[str, Any]:
        return {"interpret": True}


@dataclass(frozen=True)
class Triton(Backend):
    """Pallas's Triton, for GPUs. Its lengths are powers of two."""

    height: int = 4
    warps: int = 4

    platform, masks_edges = "cuda", True

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


_LANES = 128


@dataclass(frozen=True)
class MosaicTPU(Backend):
    """Pallas's Mosaic, for TPUs, whose arrays lie in tiles of 128 columns.

    The numbers of so many blocks come and go together, and a tile picks its own from among them.
    """

    height: int = 64

    platform = "tpu"

    def do(self, operation: Operation, *inputs: Any) -> Any:
        return done_with_less(operation, *inputs)

    def rows_of_a_tile(self, rows: int, together: int) -> int | None:
        height = min(self.height, rows)
        if together != rows:
            height = math.gcd(height, together)
        return height if height % 32 == 0 or height == rows else None

    def numbers(self, count: int) -> pl.BlockSpec:
        from jax.experimental.pallas import tpu

        return pl.BlockSpec((count,), lambda i, j: (0,), memory_space=tpu.SMEM)

    def tile(self, height: int, width: int, per: int, blocks: int) -> pl.BlockSpec:
        if width // per % _LANES == 0:
            return super().tile(height, width, per, blocks)
        together = np.int32(_LANES // (width // per))  # So many tiles.
        return pl.BlockSpec((height, min(blocks, _LANES)), lambda i, j: (i, lax.div(j, together)))

    def read(self, ref: Any, shape: tuple[int, int], inside: jax.Array | None, column: Any) -> Any:
        if ref.shape == shape and shape[1] % _LANES == 0:
            return ref[...]
        columns = [
            jnp.sum(lax.select(mine, ref[...], jnp.zeros(ref.shape, ref.dtype)), 1, keepdims=True)
            for mine in self._mine(ref, shape[1], column)
        ]
        return columns[0] if len(columns) == 1 else jnp.concatenate(columns, 1)

    def write(self, ref: Any, value: jax.Array, inside: jax.Array | None, column: Any) -> None:
        if ref.shape == value.shape and value.shape[1] % _LANES == 0:
            ref[...] = value
            return
        for k, mine in enumerate(self._mine(ref, value.shape[1], column)):
            spread = jnp.broadcast_to(value[:, k : k + 1], ref.shape)
            ref[...] = lax.select(mine, spread, ref[...])

    def _mine(self, ref: Any, count: int, column: Any) -> list[jax.Array]:
        """For each of a tile's blocks, where it is among those that come with it."""
        lane = lax.broadcasted_iota(jnp.int32, ref.shape, 1)
        return [lane == lax.rem(column, np.int32(_LANES)) + k for k in range(count)]

    def options(self) -> dict[str, Any]:
        from jax.experimental.pallas import tpu

        semantics = ("parallel", "arbitrary")
        return {"compiler_params": tpu.CompilerParams(dimension_semantics=semantics)}


def backend_for(platform: str) -> Backend | None:
    """What compiles kernels for the devices of a platform, as JAX names it; None for none.

    Pallas's Mosaic for GPUs, which is to follow Triton, will be one class more and one line here.
    """
    return {"tpu": MosaicTPU(), "gpu": Triton(), "cuda": Triton(), "rocm": Triton()}.get(platform)
