"""A function of a tile, for all tiles of an array on one device, in one kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from ..slots import Part
from .backends import Backend
from .equations import Equations, Variable, evaluate, value_of


@dataclass(frozen=True)
class Operand:
    """What comes into a kernel or out of it.

    per: how many numbers of the array share one of it; 0 for one number that is the same for all.
    """

    per: int
    dtype: Any

    def of_tile(self, height: int, width: int) -> jax.ShapeDtypeStruct:
        """A tile's part of it."""
        shape = (height, width // self.per) if self.per else ()
        return jax.ShapeDtypeStruct(shape, self.dtype)


def in_tiles(
    function: Callable[..., Any],
    places: Sequence[jax.Array],
    values: Sequence[jax.Array],
    inputs: Sequence[Operand],
    outputs: Sequence[Operand],
    aliases: Sequence[tuple[int, int]],
    stride: int,
    together: int,
    width: int,
    backend: Backend,
) -> list[jax.Array] | None:
    """All results of a function of tiles; None where these arrays do not go into tiles.

    function: of a `Part` and one value for each input.
    places: along each axis, the steps in the whole array from its first element.
    aliases: places among the values, and among the results that are written over them.
    stride: from one row to the next, in the whole array.
    together: so many rows, counted from the first, are neighbours there.
    """
    *before, columns = (each.size for each in places)
    rows = math.prod(before)
    height = backend.rows_of_a_tile(rows, together)
    if height is None:
        return None
    blocks = [-(-columns // each.per) if each.per else 0 for each in (*inputs, *outputs)]
    blocks_in, blocks_out = blocks[: len(inputs)], blocks[len(inputs) :]
    is_ragged = columns % width != 0

    def tile(place: Any, inside: Any, *tiles: Any) -> list[Any]:
        return jax.tree.leaves(function(Part(place, inside), *tiles))

    full = jax.ShapeDtypeStruct((height, width), jnp.uint32)
    mask = jax.ShapeDtypeStruct((height, width), jnp.bool) if is_ragged else None
    tiles = [each.of_tile(height, width) for each in inputs]
    equations = Equations.of(backend.platform, tile, full, mask, *tiles)
    of_place, *of_inputs = equations.arguments
    of_inside = of_inputs.pop(0) if is_ragged else None
    first, rest, needed = equations.halves()
    known: dict[Variable, Any] = {
        each: value for each, value in zip(of_inputs, values, strict=True) if each.shape == ()
    }
    evaluate(first, known)

    # Numbers with a point are the same for many arrays, and so are put in a row once.
    floats = [each for each in needed if jnp.issubdtype(each.dtype, jnp.floating)]
    others = [each for each in needed if each not in floats]
    # The place of the first element of each row of tiles.
    row = jnp.zeros((), jnp.uint32)
    for each in places[:-1]:
        row = lax.expand_dims(row, [row.ndim]) + each.reshape([1] * row.ndim + [-1])
    starts = row.reshape(-1)[::height] + places[-1][0]
    numbers = [
        lax.bitcast_convert_type(_in_a_row([known[each] for each in floats]), jnp.float32),
        _in_a_row([known[each] for each in others]),
        lax.bitcast_convert_type(starts, jnp.int32),
    ]

    # What comes out as it came in, such as a slot that is constant, is neither read for it nor written.
    unchanged = {
        k: of_inputs.index(each) for k, each in enumerate(equations.results) if each in of_inputs
    }
    written = [k for k in range(len(outputs)) if k not in unchanged]
    used = {x for each in rest for x in each.inputs if isinstance(x, Variable)}
    used |= {equations.results[k] for k in written}
    read = [n for n, each in enumerate(of_inputs) if inputs[n].per and each in used]
    shapes = {n: tiles[n].shape for n in read}

    def turned(per: int) -> bool:
        return backend.turns_blocks and per > 1

    def laid_out(x: jax.Array, per: int, count: int) -> jax.Array:
        """An operand as a matrix."""
        x = x.reshape(rows, count)
        return x.T if turned(per) else x

    def inside_of(per: int, i: Any, j: Any) -> jax.Array | None:
        """What of an operand's tile there is."""
        shape, found = (height, width // per), None
        if rows % height and backend.masks_edges:
            found = lax.broadcasted_iota(jnp.int32, shape, 0) < rows - i * height
        if is_ragged:
            count = -(-columns // per) - j * (width // per)
            column = lax.broadcasted_iota(jnp.int32, shape, 1) < count
            found = column if found is None else found & column
        return found

    def kernel(*refs: Any) -> None:
        i, j = pl.program_id(0), pl.program_id(1)
        (of_floats, of_others, of_starts), refs = refs[:3], refs[3:]
        here = {each: of_floats[n].astype(each.dtype) for n, each in enumerate(floats)}
        here |= {each: _as(of_others[n], each.dtype) for n, each in enumerate(others)}
        of_pers = {operand.per for operand in (*inputs, *outputs) if operand.per}
        edges = dict.fromkeys(of_pers)
        if backend.masks_edges:
            edges = {per: inside_of(per, i, j) for per in of_pers}
        for n, ref in zip(read, refs, strict=False):
            per = inputs[n].per
            column = j * (width // per)
            here[of_inputs[n]] = backend.read(ref, shapes[n], edges[per], column)
        if of_place in used:
            down, right = (
                lax.convert_element_type(
                    lax.broadcasted_iota(jnp.int32, full.shape, axis), "uint32"
                )
                for axis in (0, 1)
            )
            start = _as(of_starts[i], jnp.uint32) + lax.convert_element_type(j * width, "uint32")
            here[of_place] = start + down * np.uint32(stride % 2**32) + right
        if of_inside is not None and of_inside in used:
            column = lax.broadcasted_iota(jnp.int32, full.shape, 1)
            here[of_inside] = column < columns - j * width
        evaluate(rest, here, backend.do)
        for k, ref in zip(written, refs[len(read) :], strict=True):
            per = outputs[k].per
            column = j * (width // per)
            value = value_of(here, equations.results[k])
            backend.write(ref, value, edges[per], column)

    results = pl.pallas_call(
        kernel,
        grid=(-(-rows // height), -(-columns // width)),
        in_specs=[
            *(backend.numbers(each.size) for each in numbers),
            *(backend.tile(height, width, inputs[n].per, blocks_in[n]) for n in read),
        ],
        out_specs=[backend.tile(height, width, outputs[k].per, blocks_out[k]) for k in written],
        out_shape=[
            jax.ShapeDtypeStruct(size[::-1] if turned(outputs[k].per) else size, outputs[k].dtype)
            for k, size in ((k, (rows, blocks_out[k])) for k in written)
        ],
        input_output_aliases={
            3 + read.index(n): written.index(k) for n, k in aliases if n in read and k in written
        },
        name="update",
        **backend.options(),
    )(*numbers, *(laid_out(values[n], inputs[n].per, blocks_in[n]) for n in read))
    all_results = {k: values[n] for k, n in unchanged.items()}
    for k, x in zip(written, results, strict=True):
        all_results[k] = (x.T if turned(outputs[k].per) else x).reshape(*before, -1)
    return [all_results[k] for k in range(len(outputs))]


def _in_a_row(numbers: Sequence[jax.Array]) -> jax.Array:
    """The bits of numbers of at most 32 bits, as an array, which is not empty."""

    def bits_of(x: jax.Array) -> jax.Array:
        if x.dtype.itemsize < 4:
            is_float = jnp.issubdtype(x.dtype, jnp.floating)
            x = lax.convert_element_type(x, jnp.float32 if is_float else jnp.int32)
        return lax.bitcast_convert_type(x, jnp.int32)

    return jnp.stack([bits_of(x) for x in numbers] or [jnp.zeros((), jnp.int32)])


def _as(bits: jax.Array, dtype: Any) -> jax.Array:
    """The reverse, of one integer."""
    return bits != 0 if dtype == jnp.bool else lax.convert_element_type(bits, dtype)
