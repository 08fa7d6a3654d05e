"""The rules in a transformation, each with its part of the state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .._core.lifted import Lifted
from .._core.rule import Rule
from .._core.storage import base
from .._core.transformation import Transformation
from .chain import Chained


def shared(transformation: Any) -> Any:
    """What `init` and `update` share: a `Lifted`, a `Chained`, or the arguments of a wrapper."""
    if isinstance(transformation, Transformation):
        return transformation.init.args[0]  # type: ignore[attr-defined]
    return transformation


def parts(transformation: Any, state: Any) -> Iterator[tuple[Rule, Sequence[base.Storage], Any]]:
    """Every rule of this library in a transformation, its storages, and its part of the state."""
    data = shared(transformation)
    if isinstance(data, Lifted):
        yield from zip(data.rules, data.storages, data.split(state), strict=True)
    elif isinstance(data, Chained):
        for pair in zip(data.members, state, strict=True):
            yield from parts(*pair)
    elif hasattr(data, "inner"):
        yield from parts(data.inner, getattr(state, inner_entry(state)))


def inner_entry(state: Any) -> str:
    """The entry of a wrapper's state that is the state of what it wraps."""
    return next(name for name in state._fields if name.startswith("inner"))
