"""One storage for some parameters, another for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from .. import pytrees
from ..mask import Selection
from .base import PLAIN, Storage
from .named import resolve


@dataclass(frozen=True)
class Masked(Storage):
    """One storage for the arrays that a mask selects, float32 for the others.

    storage: a `Storage` or the name of one.
    mask: a tree of bools, a prefix of one, or a function of the parameters that returns one.
    """

    storage: Any
    mask: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "storage", resolve(self.storage))
        object.__setattr__(self, "mask", Selection.of(self.mask))

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.storage.stochastic

    @property
    def nonnegative_only(self) -> bool:  # type: ignore[override]
        return self.storage.nonnegative_only

    @property
    def elementwise(self) -> bool:  # type: ignore[override]
        return self.storage.elementwise

    def init_tree(
        self,
        value: float | jax.Array,
        params: Any,
        *,
        real: bool,
        like: Callable[[Any], Any] | None = None,
    ) -> Any:
        leaves = pytrees.Arrays("params", params)
        selected = leaves.selected(self.mask, params) if leaves.leaves else []
        stored = [
            x
            if x is None
            else (self.storage if select else PLAIN).init_tree(value, x, real=real, like=like)
            for x, select in zip(leaves.leaves, selected, strict=True)
        ]
        return leaves.treedef.unflatten(stored)

    def from_names(self, stored: Mapping[str, Any], shape: tuple[int, ...], *, real: bool) -> Any:
        return self.storage.from_names(stored, shape, real=real)

    def encode(self, value: jax.Array, stored: Any, key: jax.Array | None) -> Any:
        return self.storage.encode(value, stored, key)

    def decode(self, stored: Any) -> jax.Array:
        return self.storage.decode(stored)

    def holds(self, stored: Any) -> bool:
        return self.storage.holds(stored) or PLAIN.holds(stored)
