"""The rules in a transformation, each with its part of the state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .._core.lifted import Lifted
from .._core.rule import Rule
from .._core.storage import base
from .._core.wrapper import walk


def parts(transformation: Any, state: Any) -> Iterator[tuple[Rule, Sequence[base.Storage], Any]]:
    """Every rule of this library in a transformation, its storages, and its part of the state."""
    for data, part in walk(transformation, state):
        if isinstance(data, Lifted):
            yield from zip(data.rules, data.storages, data.split(part), strict=True)
