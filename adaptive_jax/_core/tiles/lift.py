"""Rules in a row on one array in one kernel, where that can be: under jit, vmap and grad, and sharded."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import pytrees
from .. import slots as whole_arrays
from ..plan import Plan
from ..slots import Part, rules_in_a_row
from ..storage import base
from ..storage.blocks import Blocks, Quantized
from ..storage.masked import Masked
from . import elementwise
from .backends import Backend
from .equations import Equations
from .kernel import Operand, in_tiles
from .sharded import OnEachDevice

_WIDTH = 256
"""The columns of a tile, if no block is longer."""

_LIKE = (3, 5)
"""The shape of an array of which a rule should not know that it is no other one."""


class Tiling:
    """The arrays of one tree, each in a kernel where that can be, and what is told of the others."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self._reasons, self._uses = backend, [], False

    def update_array(self, *arguments: Any) -> tuple[jax.Array, list[dict[str, Any]]]:
        """`update_array` of whole arrays, in tiles where that can be."""
        if (reason := why_not(arguments, self.backend)) is not None:
            self._reasons.append((arguments[1], reason))
            return whole_arrays.update_array(*arguments)
        self._uses = True
        return update_array(arguments, self.backend)

    def tell(self, optimizer: Any) -> None:
        """Warns if not one array was for tiles."""
        if self.backend.tells and self._reasons and not self._uses:
            array, reason = max(self._reasons, key=lambda each: each[0].size)
            warnings.warn(
                f"tiles=True has no effect with {optimizer!r:.200}, which updates whole arrays: not one "
                f"of them is for tiles. Of the largest one, {pytrees.describe(array)}: {reason}.",
                stacklevel=2,
            )


def why_not(arguments: tuple[Any, ...], backend: Backend) -> str | None:
    """Why an array is not updated tile by tile; None where it can be.

    arguments: those of `update_array` of whole arrays.
    """
    leaves, treedef = jax.tree.flatten(arguments)
    kinds = tuple([(np.shape(x), jnp.result_type(x)) for x in leaves])
    return _why_not(treedef, kinds, backend)


@functools.lru_cache(maxsize=4096)
def _why_not(treedef: Any, kinds: tuple[Any, ...], backend: Backend) -> str | None:
    arguments = treedef.unflatten([jax.ShapeDtypeStruct(*kind) for kind in kinds])
    plan, gradient, entries, *_ = arguments
    shape = gradient.shape
    if plan.dtype != jnp.float32:
        return f"the maths is in {plan.dtype}, and tiles are for float32"
    if any(dtype.itemsize > 4 for _, dtype in kinds):
        return "there are numbers of 64 bits, and tiles are for 32"
    width = _width(plan, entries)
    if len(shape) < 2 or shape[-1] < width or 0 in shape:
        return f"tiles are for arrays of two axes or more, the last one {width} long or longer"
    for name, storage, stored in _slots(plan, entries):
        kept = [x for x in jax.tree.leaves(stored) if x.shape != shape]
        if kept and not isinstance(stored, Quantized):
            return f"the slot {name!r} is no array of its shape, with {storage!r}"
    has_blocks = False
    for name, storage, stored in _slots(plan, entries):
        block = _block_of(storage, stored)
        if block is not None and (block < 8 or width % block):
            return f"{storage!r} of the slot {name!r} has no blocks that fill a tile"
        has_blocks = has_blocks or block is not None
    if (reason := backend.why_not(shape, has_blocks)) is not None:
        return reason

    def traced(shape: tuple[int, ...]) -> Equations:
        def like(x: Any) -> Any:
            if isinstance(x, Quantized):
                return jax.ShapeDtypeStruct(shape, jnp.float32)
            return jax.ShapeDtypeStruct(shape, x.dtype) if x.shape == gradient.shape else x

        def function(place: Any, *arguments: Any) -> Any:
            return rules_in_a_row(*arguments, part=Part(place, None))

        # What has blocks is not element-wise, but a tile is made of whole blocks.
        plain = jax.tree.map(
            like,
            (_without_blocks(plan, entries), *arguments[1:]),
            is_leaf=lambda x: isinstance(x, Quantized),
        )
        place = jax.ShapeDtypeStruct(shape, jnp.uint32)
        return Equations.of(backend.platform, function, place, *plain)

    try:
        return elementwise.why_not(traced(shape), traced(_LIKE), shape, _LIKE)
    except Exception as error:  # A rule of a user's that takes no array of another shape.
        return f"it takes no array of another shape: {error}"


def _slots(plan: Plan, entries: Any) -> Iterator[tuple[str, base.Storage, Any]]:
    """Of all slots the name, the storage, and what is stored."""
    for stage, of_stage in zip(plan.stages, entries, strict=True):
        if stage is not None:
            for name, storage in zip(stage.rule.slots, stage.storages, strict=True):
                yield name, storage, of_stage[name]


def _without_blocks(plan: Plan, entries: Any) -> Plan:
    """The plan with plain arrays for all slots that have blocks."""

    def changed(stage: Any, of_stage: dict[str, Any]) -> Any:
        if stage is None:
            return None
        slots = zip(stage.rule.slots, stage.storages, strict=True)
        storages = tuple(
            base.PLAIN if isinstance(of_stage[name], Quantized) else storage
            for name, storage in slots
        )
        return dataclasses.replace(stage, storages=storages)

    return dataclasses.replace(plan, stages=tuple(map(changed, plan.stages, entries)))


def _block_of(storage: base.Storage, stored: Any) -> int | None:
    """How many numbers of a row share one in what is stored; 0 for other blocks, None for none."""
    if not isinstance(stored, Quantized):
        return None
    inner: Any = storage.storage if isinstance(storage, Masked) else storage
    block = inner.block if type(inner) is Blocks else 0
    return block if isinstance(block, int) else 0


def _width(plan: Plan, entries: Any) -> int:
    """How many columns a tile has: as many as the longest block."""
    blocks = [_block_of(*each) or 0 for _, *each in _slots(plan, entries)]
    return max([_WIDTH, *blocks])


@functools.partial(jax.jit, static_argnames="backend")
def update_array(
    arguments: tuple[Any, ...], backend: Backend
) -> tuple[jax.Array, list[dict[str, Any]]]:
    """`update_array` of whole arrays, in one kernel, for an array that tiles are for.

    Under `vmap`, and for its derivatives, it is that of whole arrays.

    arguments: those of `update_array` of whole arrays.
    """
    leaves, treedef = jax.tree.flatten(arguments)

    def whole(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(whole_arrays.update_array(*treedef.unflatten(leaves)))

    tiled = _Tiled(treedef, leaves, backend)
    spread = OnEachDevice(
        tiled.on_one_device, tiled.shape, tiled.inputs, tiled.outputs, tiled.leading
    )

    @jax.custom_batching.custom_vmap
    def of_one(*leaves: Any) -> list[Any]:
        return list(spread(*leaves))

    @of_one.def_vmap
    def _of_many(size: int, batched: Sequence[bool], *leaves: Any) -> Any:
        del size
        axes = [0 if each else None for each in batched]
        results = jax.vmap(whole, axes)(*leaves)
        return results, [True] * len(results)

    @jax.custom_jvp
    def differentiable(*leaves: Any) -> list[Any]:
        return of_one(*leaves)

    @differentiable.defjvp
    def _derivative(leaves: Any, tangents: Any) -> Any:
        return jax.jvp(whole, leaves, tangents)

    return tiled.results.unflatten(differentiable(*map(jnp.asarray, leaves)))


class _Tiled:
    """What `update_array` of whole arrays makes of the leaves of its arguments, in tiles.

    leading: the leaf that says how all are split over devices: the first slot, where its results lie.
    """

    def __init__(self, treedef: Any, leaves: Sequence[Any], backend: Backend) -> None:
        self.treedef, self.backend = treedef, backend
        arguments = treedef.unflatten(leaves)
        plan, gradient, entries, param, *_ = arguments
        self.shape, self.width = gradient.shape, _width(plan, entries)
        out, self.results = jax.tree.flatten(jax.eval_shape(rules_in_a_row, *arguments))
        # Of each array of scales, how many numbers share one.
        per = {
            stored.scales.shape: _block_of(storage, stored) or 0
            for _, storage, stored in _slots(plan, entries)
            if isinstance(stored, Quantized)
        }
        self.inputs, self.outputs = (
            [self._operand(x, per) for x in each] for each in (leaves, out)
        )
        # The parameter is written over, with what is kept of it besides, and so is each slot.
        at = self.treedef.unflatten(range(len(leaves)))
        of_slots = jax.tree.leaves(at[2])
        of_param = []
        if plan.adding is not None and param is not None:
            kept = jax.tree.leaves(at[0].adding)
            of_param = [at[3], *(n for n in kept if np.shape(leaves[n]) == self.shape)]
        first = len(out) - len(of_slots)
        self.aliases = list(zip(of_param, range(first), strict=False))
        self.aliases += zip(of_slots, range(first, len(out)), strict=True)
        self.leading = next((n for n in of_slots if self.inputs[n].per == 1), at[1])

    def _operand(self, x: Any, per: dict[tuple[int, ...], int]) -> Operand:
        shape = np.shape(x)
        return Operand(1 if shape == self.shape else per[shape] if shape else 0, jnp.result_type(x))

    def on_one_device(self, *operands: Any) -> tuple[jax.Array, ...]:
        """The results on one device, of its part of all arrays."""
        places, leaves = operands[: len(self.shape)], operands[len(self.shape) :]

        def function(part: Part, *leaves: Any) -> Any:
            return rules_in_a_row(*self.treedef.unflatten(leaves), part=part)

        together = 1
        for size, axis in zip(reversed(places[:-1]), reversed(self.shape[:-1]), strict=True):
            together *= size.size
            if size.size != axis:
                break
        results = in_tiles(
            function,
            places,
            leaves,
            self.inputs,
            self.outputs,
            self.aliases,
            self.shape[-1],
            together,
            self.width,
            self.backend,
        )
        if results is None:
            place = functools.reduce(lambda a, b: jnp.expand_dims(a, -1) + b, places)
            results = jax.tree.leaves(
                rules_in_a_row(*self.treedef.unflatten(leaves), part=Part(place, None))
            )
        return tuple(results)
