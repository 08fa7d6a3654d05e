"""A state as entries, each under the name of its path, and what a checkpoint says of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from ..._core.placement import is_key
from .origins import same


def entries_of(state: Any) -> dict[str, Any]:
    """Every leaf under the name of its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    entries = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    assert len(entries) == len(leaves)
    return entries


def check_at_hand(entries: Mapping[str, Any]) -> None:
    """Raises a ValueError, with the path, for what is not saved, and what a step has used up."""
    for name, leaf in entries.items():
        if not (is_number(leaf) or hasattr(leaf, "dtype")):
            raise ValueError(
                f"{name} is {leaf!r:.80} of type {type(leaf).__name__}: arrays and real numbers are saved. "
                "Leave it out."
            )
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise ValueError(
                f"{name} is deleted: a step wrote over this state. Save the one that it returned."
            )


def is_number(leaf: Any) -> bool:
    """Whether it is a number of Python, which is saved as one."""
    return isinstance(leaf, (bool, int, float))


def kind_of(leaf: Any) -> list[Any]:
    """Shape and dtype. A Python number has none but its kind: it is not rounded to float32."""
    return [[], "number"] if is_number(leaf) else [list(leaf.shape), str(leaf.dtype)]


def plain(leaf: Any) -> Any:
    """What Orbax saves of an entry."""
    if is_key(leaf):
        return jax.random.key_data(leaf)
    return np.asarray(leaf) if is_number(leaf) else leaf


@dataclass(frozen=True)
class Saved:
    """What a checkpoint says of itself. Version 0.1.0 wrote entries and rules alone."""

    entries: Mapping[str, Any]
    rules: list[str]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    origin: Any = None
    version: int = 1
    callbacks: Mapping[str, Any] = field(default_factory=dict)

    def value(self, name: str, restored: Mapping[str, Any]) -> Any:
        """What was saved under a name, a Python number as one."""
        if self.entries[name][1] != "number":
            return restored[name]
        return self.numbers.get(name, np.asarray(restored[name]).item())


def is_equal(saved: Any, given: Any) -> bool:
    """Whether two hyperparameters are the same, a Python number in the precision of an array."""
    if isinstance(given, jax.ShapeDtypeStruct):
        return True  # Nothing was given.
    arrays = [x for x in (saved, given) if not is_number(x)]
    if not arrays:
        return same(saved, given)
    one, two = (np.asarray(x).astype(arrays[0].dtype).astype(np.float64) for x in (saved, given))
    return np.array_equal(one, two, equal_nan=True)
