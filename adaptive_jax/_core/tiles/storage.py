"""The storages of slots, for one tile in a kernel."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..plan import Plan
from ..storage import base
from ..storage.blocks import Blocks, Quantized
from ..storage.masked import Masked


@dataclass(frozen=True, kw_only=True)
class BlocksInTile(Blocks):
    """Blocks whose largest numbers are found with what compilers of kernels know.

    They have no maximum of unsigned numbers, and none of two arrays at once.
    """

    def largest(self, magnitude: jax.Array) -> jax.Array:
        height, width = magnitude.shape
        bits = lax.bitcast_convert_type(magnitude, jnp.int32)
        if width > self.block:
            bits = bits.reshape(height, width // self.block, self.block)
        largest = jnp.max(bits, axis=-1, keepdims=width == self.block)
        return lax.bitcast_convert_type(largest, jnp.float32)


def block_of(storage: base.Storage, stored: Any) -> int | None:
    """How many numbers of a row share one in what is stored; None where it is no blocks."""
    if not isinstance(stored, Quantized):
        return None
    inner: Any = storage.storage if isinstance(storage, Masked) else storage
    return inner.block if type(inner) is Blocks else 0


def for_tiles(plan: Plan, slots: Any, *, plain: bool = False) -> Plan:
    """The plan with storages for tiles in place of those with blocks.

    slots: of each stage, what the state holds, or anything of the same structure.
    plain: for plain arrays instead.
    """

    def replaced(storage: base.Storage, stored: Any) -> base.Storage:
        if not isinstance(stored, Quantized):
            return storage
        if plain:
            return base.PLAIN
        inner: Any = storage.storage if isinstance(storage, Masked) else storage
        return BlocksInTile(min_size=inner.min_size, bits=inner.bits, block=inner.block)

    stages = [
        dataclasses.replace(
            stage,
            storages=tuple(
                replaced(storage, of_stage[name])
                for name, storage in zip(stage.rule.slots, stage.storages, strict=True)
            ),
        )
        for stage, of_stage in zip(plan.stages, slots, strict=True)
    ]
    return dataclasses.replace(plan, stages=tuple(stages))
