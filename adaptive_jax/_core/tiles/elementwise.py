"""Whether rules do the same to each number of an array, whatever the array: then a tile will do."""

from __future__ import annotations

from typing import Any

import numpy as np

from .equations import Constant, Equations, Operation

_OF_NUMBERS = (
    "abs add atan2 bitcast_convert_type cbrt ceil clamp convert_element_type copy cos cosh div erf "
    "erf_inv erfc exp exp2 expm1 floor integer_pow log log1p logistic max min mul neg nextafter pow "
    "reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh"
)

_OF_BITS = (
    "and eq ge gt is_finite le lt ne not or population_count shift_left shift_right_arithmetic "
    "shift_right_logical xor"
)

_ELEMENTWISE = frozenset(f"{_OF_NUMBERS} {_OF_BITS}".split())
"""Operations that make each number of a result of the same place in their operands."""


def why_not(
    whole: Equations, tile: Equations, shape: tuple[int, ...], tile_shape: tuple[int, ...]
) -> str | None:
    """Why a function is no element-wise one; None where it is.

    Arrays of the shape may meet such arrays and numbers only, in operations that are known to be
    element-wise, and all must be the same for arrays of another shape.

    whole: the function, of arrays of the shape.
    tile: the same function, of arrays of tile_shape.
    """
    of_results = {each.shape for each in whole.results}
    if other := (of_results | {each.shape for each in whole.arguments}) - {(), shape}:
        return f"something of the shape {other.pop()} comes in or goes out"
    if () in of_results:
        return "a number comes out for each array"
    pairs = list(zip(whole.operations, tile.operations, strict=False))
    for operation, of_tile in pairs:
        if (reason := _why_not_one(operation, shape)) is not None:
            return reason
        if not _same(operation, of_tile, shape, tile_shape):
            return _DEPENDS
    return _DEPENDS if len(whole.operations) != len(tile.operations) else None


_DEPENDS = "what it computes depends on the shape of the array"


def _why_not_one(operation: Operation, shape: tuple[int, ...]) -> str | None:
    name = operation.primitive.name
    inputs, outputs = (
        {tuple(each.shape) for each in row} for row in (operation.inputs, operation.outputs)
    )
    if shape in inputs:
        if name not in _ELEMENTWISE or not outputs <= {shape}:
            return f"`{name}` is not element-wise, as far as is known"
    elif shape in outputs and name != "broadcast_in_dim":
        return f"`{name}` makes an array"
    other = (inputs | outputs) - {shape, ()}
    return f"it has an array of the shape {other.pop()} in it" if other else None


def _same(a: Operation, b: Operation, shape: tuple[int, ...], tile_shape: tuple[int, ...]) -> bool:
    """Whether two operations are the same but for the shape."""
    shapes = {shape: tile_shape}
    if a.primitive.name != b.primitive.name or len(a.inputs) != len(b.inputs):
        return False
    for x, y in zip((*a.inputs, *a.outputs), (*b.inputs, *b.outputs), strict=True):
        if shapes.get(tuple(x.shape), tuple(x.shape)) != tuple(y.shape) or type(x) is not type(y):
            return False
        if isinstance(x, Constant) or isinstance(y, Constant):
            if not _equal(getattr(x, "value", None), getattr(y, "value", None)):
                return False
        elif x.number != y.number or x.dtype != y.dtype:
            return False
    if a.parameters.keys() != b.parameters.keys():
        return False
    return all(
        name in ("shape", "sharding") or a.parameters[name] == b.parameters[name]
        for name in a.parameters
        if not callable(a.parameters[name])
    )


def _equal(x: Any, y: Any) -> bool:
    x, y = np.asarray(x), np.asarray(y)
    return x.dtype == y.dtype and x.tobytes() == y.tobytes()
