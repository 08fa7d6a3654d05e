"""What the author of a rule has to keep, and what is said where it is not kept."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from .errors import of_function
from .pytrees import describe


def check_slot_name(name: str, known: Iterable[str]) -> None:
    """Raises a ValueError for a slot that the rule does not declare."""
    if name not in known:
        raise ValueError(f"the rule has no slot {name!r}: its slots are {list(known)}.")


@functools.cache
def check_update(rule: type) -> None:
    """Raises a TypeError unless a rule's update takes what the lift gives it."""
    taken = inspect.signature(rule.update)  # type: ignore[attr-defined]
    try:
        taken.bind("self", "grad", "slots", "param", "ctx")
    except TypeError:
        raise TypeError(
            f"{rule.__name__}.update takes {taken}: it must take (self, grad, slots, param, ctx), where "
            "ctx keeps slots with ctx.store and knows the step."
        ) from None


@contextlib.contextmanager
def of_update(rule: Any) -> Iterator[None]:
    """Says what to write instead where a rule's update fails at what Python or NumPy cannot do."""
    name = type(rule).__name__
    try:
        with of_function(f"{name}.update"):
            yield
    except KeyError as error:
        raise ValueError(
            f"{name}.update asks for {error}, and the slots are {list(rule.slots)}: declare what a rule "
            'keeps, slots = {"mu": aj.Slot()}.'
        ) from error


def checked_result(rule: Any, gradient: Any, result: Any) -> tuple[Any, Any]:
    """What a rule's update returned, if it is a direction like its gradient, and all its slots."""
    name = type(rule).__name__
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(
            f"{name}.update must return (direction, slots), the slots a dict, which is empty for a rule "
            f"without any; got a {type(result).__name__}."
        )
    direction, slots = result
    if not isinstance(slots, Mapping) or set(slots) != set(rule.slots):
        got = list(slots) if isinstance(slots, Mapping) else type(slots).__name__
        raise ValueError(
            f"{name}.update must return (direction, slots) with the slots {list(rule.slots)}, got {got}."
        )
    for what, value in (("direction", direction), *slots.items()):
        if np.shape(value) != np.shape(gradient) or not hasattr(value, "dtype"):
            raise ValueError(
                f"{name}.update returned for {what} {describe(value)}, where the array has the shape "
                f"{np.shape(gradient)}."
            )
    return direction, slots
