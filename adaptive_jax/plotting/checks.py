"""Checks of what is to be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def named(argument: str, mapping: Any, what: str) -> Mapping[str, Any]:
    """The mapping, if it is one and not empty."""
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"{argument} is a {type(mapping).__name__}: it must be a dict from the names of the "
            f'optimizers to {what}, such as {{"Adam": {what}}}.'
        )
    if not mapping:
        raise ValueError(f"{argument} is empty: there is nothing to draw.")
    return mapping


def numbers(argument: str, value: Any, *shapes: str) -> np.ndarray:
    """The value as float64, if it has the rank of one of the shapes and holds anything."""
    allowed = f"it must be an array of numbers of shape {' or '.join(shapes)}"
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"{argument} is a {type(value).__name__} that makes no array: {allowed}."
        ) from None
    # As many dimensions as names between the brackets.
    ranks = [len(shape.strip("(),").split(",")) for shape in shapes]
    if array.ndim not in ranks or not array.size:
        raise ValueError(f"{argument} has shape {array.shape}: {allowed}, and not empty.")
    return array


def pairs(argument: str, points: np.ndarray) -> np.ndarray:
    """The points, if they have two columns."""
    if points.shape[1] != 2:
        raise ValueError(
            f"{argument} has shape {points.shape}: it must have two columns, one for each parameter of "
            "the function."
        )
    return points


def places_of(steps: Any, points: int, argument: str, first: int = 0) -> np.ndarray:
    """Where the points of a curve are on the x axis."""
    if steps is None:
        return np.arange(first, first + points)
    array = numbers("steps", steps, "(points,)")
    if len(array) != points:
        raise ValueError(
            f"steps has shape {array.shape}, but {argument} has {points} points: steps must have one "
            "number for each point."
        )
    return array


def listed(names: Any) -> str:
    """Names as an error shows them."""
    return ", ".join(map(repr, names))
