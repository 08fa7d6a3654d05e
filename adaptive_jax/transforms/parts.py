"""The rules in a transformation, each with its part of the state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .._core.lifted import Lifted
from .._core.wrapper import walk


def parts(transformation: Any, state: Any, params: Any = None) -> Iterator[tuple[Any, ...]]:
    """Every rule of this library in a transformation, its storages, and its part of the state.

    params: the parameters, or a tree like them. Given, what the rule sees of them comes last.
    """
    for data, part, *seen in walk(transformation, state, params=params):
        if isinstance(data, Lifted):
            for each in zip(data.rules, data.storages, data.split(part), strict=True):
                yield (*each, *seen)
