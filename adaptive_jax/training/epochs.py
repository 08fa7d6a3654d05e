"""The batches of a loop, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from .._core.arguments import whole
from .returned import outlined, shown


class Epochs:
    """The batches of so many epochs, one after the other; of one, as long as they last, if epochs is None.

    The first one is made right away: what gives no batches is refused before the first step.
    """

    def __init__(self, batches: Any, epochs: Any) -> None:
        if epochs is not None:
            hint = " None is for going once through the batches."
            epochs = whole("epochs", epochs, 0, hint=hint)
        self._batches, self.count, self._started = batches, epochs, 0
        self._iterator, self._has_begun = self._next(), False

    def next(self) -> Any:
        """The next batch; END where an epoch ends."""
        batch = next(self._iterator, END)
        if batch is not END:
            self._has_begun = True
        elif not self._has_begun and self._started > 1:
            raise ValueError(
                f"there are no batches in epoch {self._started} of {self.count}: "
                f"{shown(self._batches)} was used up by the one before. Give a list, or a function that "
                "makes the batches of an epoch from its number."
            )
        return batch

    def go_on(self) -> bool:
        """Starts the next epoch, if there is one."""
        if self.count is None or self._started >= self.count:
            return False
        self._iterator, self._has_begun = self._next(), False
        return True

    def _next(self) -> Iterator[Any]:
        made: Any = () if self.count == 0 else self._batches
        if self.count is not None and _makes_batches(made):
            made = made(self._started)
        iterator = iterator_of(made, self.count is not None)
        if iterator is made is self._batches and (self.count or 1) > 1:
            raise TypeError(
                f"batches is {shown(made)}, which can be gone through once, and epochs={self.count}: give "
                "a list, or a function that makes the batches of an epoch from its number, 0 for the "
                "first: batches=lambda epoch: shuffled(epoch)."
            )
        self._started += 1
        return iterator


END = object()


def _makes_batches(batches: Any) -> bool:
    return callable(batches) and not hasattr(batches, "__iter__")


def _is_one_batch(batches: Any) -> bool:
    """Whether it is a tuple of arrays with as many rows, which are not alike otherwise: (x, y)."""
    if not isinstance(batches, tuple) or len(batches) < 2:
        return False
    if not all(isinstance(x, (np.ndarray, jax.Array)) and x.ndim for x in batches):
        return False
    is_named = hasattr(batches, "_fields")
    kinds = {(x.shape[1:], x.dtype) for x in batches}
    return len({len(x) for x in batches}) == 1 and (is_named or len(kinds) > 1)


def iterator_of(batches: Any, has_epochs: bool = False) -> Iterator[Any]:
    """Goes once through the batches; a TypeError for what is one batch, or none."""
    if isinstance(batches, (Mapping, str)):
        raise TypeError(
            f"batches is {shown(batches)}, which is one batch: give a list of them, or a generator."
        )
    if _is_one_batch(batches):
        raise TypeError(
            f"batches is {outlined(batches)}, which looks like one batch of {len(batches[0])} rows: give a "
            "list of batches, [batch], or a generator. Those that are in a tuple are list(batches)."
        )
    try:
        return iter(batches)
    except TypeError:
        hint = (
            " A function that makes those of an epoch is for epochs=." if callable(batches) else ""
        )
        if has_epochs:
            hint = " Or a function that makes such ones from the number of the epoch."
        raise TypeError(
            f"batches={batches!r:.200} must be an iterable with one batch for each step: a list, or a "
            f"generator.{hint}"
        ) from None
