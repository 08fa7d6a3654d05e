"""How the state of a rule is laid out, and whether the one that came is laid out so."""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from . import export, hyper
from .pytrees import ORDER, describe
from .rule import Rule, decay_names, fields, mask_of


def split(state: Any, expected: Sequence[Any]) -> tuple[Any, ...]:
    """The state as one entry for each `Layout`, out of its `MaskedState`, if it is laid out so."""
    entries = state if len(expected) > 1 else (state,)
    if isinstance(entries, (tuple, list)) and len(entries) == len(expected):
        entries = [
            getattr(entry, "inner_state", None) if layout.masked else entry
            for entry, layout in zip(entries, expected, strict=True)
        ]
        # A rule without state takes whatever comes, as in optax, but for an average that would be lost.
        if not _average_at_end(state, [layout.name for layout in expected]) and all(
            (not layout.fields and not (layout.masked and entry is None))
            or (
                getattr(entry, "_fields", None) == layout.fields
                and layout.name in (None, type(entry).__name__)
            )
            for entry, layout in zip(entries, expected, strict=True)
        ):
            return tuple(entries)
    wanted = ", ".join(map(str, expected))
    advice = _average_at_end(state, [layout.name for layout in expected]) or (
        "Make it with this optimizer's init(params), or, if the other one had the same rules with another "
        "storage, weight decay, mask or schedule, with aj.convert_storage, which takes states of version "
        "0.1.0 as well; where other arrays are trained than before, such as a group that was None, with "
        f"aj.carry_state, which keeps what fits.{_order(state)}"
    )
    raise ValueError(
        "the state was made by another optimizer, or is no state: expected "
        f"{wanted if len(expected) == 1 else f'({wanted})'}, got {_outline(state)}. {advice}"
    )


def check_chain(state: Any, length: int) -> None:
    """Raises a ValueError unless the state is a tuple of so many states."""
    if not isinstance(state, (tuple, list)) or len(state) != length:
        is_one_more = isinstance(state, (tuple, list)) and len(state) == length + 1
        advice = (is_one_more and _average_at_end(state)) or (
            f"Make it with this chain's init(params).{_order(state)}"
        )
        raise ValueError(
            f"the state of a chain of {length} is a tuple of {length} states, got {_outline(state)}. "
            f"{advice}"
        )


def check_wrapper(state: Any, expected: Any) -> None:
    """Raises a ValueError unless the state is the NamedTuple of this wrapper."""
    if not isinstance(state, expected):
        advice = _average_at_end(state) or (
            f"Make it with this optimizer's init(params).{_order(state)}"
        )
        raise ValueError(
            f"the state was made by another optimizer: expected {expected.__name__}"
            f"({', '.join(expected._fields)}), got {_outline(state)}. {advice}"
        )


def _average_at_end(state: Any, expected: Sequence[str | None] = ()) -> str:
    """What to do, where the state ends with that of an average which is not expected; else nothing."""
    if not isinstance(state, (tuple, list)) or hasattr(state, "_fields") or len(state) < 2:
        return ""
    name = type(state[-1]).__name__
    if not name.endswith("AverageState") or name in expected:
        return ""
    return (
        "The state ends with that of an average of the parameters, as TrainState.create(…, average=…) "
        "puts it there: the average belongs to the optimizer, and a new one needs it too, as the last of "
        "its chain: state.replace(tx=aj.chain(aj.adam(1e-3), aj.average(0.9)))."
    )


def _order(state: Any) -> str:
    """A reminder, where it does not look like any state."""
    return "" if isinstance(state, (tuple, list)) else f" {ORDER}"


def _outline(state: Any) -> str:
    if hasattr(state, "_fields"):
        return f"{type(state).__name__}({', '.join(state._fields)})"
    if isinstance(state, (tuple, list)):
        return f"({', '.join(map(_outline, state))})"
    if isinstance(state, dict):
        return f"a dict with the keys {list(state)}"
    return describe(state) if hasattr(state, "dtype") else type(state).__name__


def counts_steps(rule: Rule) -> bool:
    """Whether the rule's state holds the number of updates so far."""
    counts = rule.counts_steps if rule.counts_steps is not None else bool(rule.slots)
    return counts or any(
        hyper.has_schedules(getattr(rule, name)) for name in fields(type(rule)).data
    )


def scheduled_decays(rule: Rule) -> list[str]:
    """The decay rates under a schedule, whose bias correction must be carried in the state."""
    return [name for name in decay_names(type(rule)) if hyper.has_schedules(getattr(rule, name))]


class Layout(NamedTuple):
    """How the state of a rule is laid out: the name of its NamedTuple, its entries in order, whether
    it is in an `optax.MaskedState`, and whether the rule evaluates with other parameters."""

    name: str
    fields: tuple[str, ...]
    masked: bool
    evaluates: bool = False

    def make(self, **entries: Any) -> Any:
        """The state, of its entries; `optax.EmptyState()` without any."""
        if self.evaluates and self.fields:
            _evaluating.add(state_type(self.name, self.fields))
        return state_type(self.name, self.fields)(**entries) if self.fields else optax.EmptyState()

    def __str__(self) -> str:
        shown = f"{self.name}({', '.join(self.fields)})" if self.fields else "EmptyState()"
        return f"MaskedState({shown})" if self.masked else shown


def layout_of(rule: Rule, counts: bool = False) -> Layout:
    """How the rule's state is laid out.

    counts: whether it counts steps for the sake of its storage, if not for its own.
    """
    count = ("count",) if counts or counts_steps(rule) else ()
    corrections = (f"{name}_correction" for name in scheduled_decays(rule))
    return Layout(
        rule.state_type_name or f"{type(rule).__name__}State",
        (*count, *corrections, *rule.scalars, *rule.slots),
        rule.state_is_masked and mask_of(rule) is not None,
        rule.evaluate is not None,
    )


_evaluating: set[type] = set()


def evaluates(state: Any) -> bool:
    """Whether it is the state of a rule that evaluates with other parameters than it trains."""
    return type(state) in _evaluating


_NOT_EXPORTED: dict[str, Callable[[], optax.GradientTransformation]] = {
    "ScaleByOptimisticGradientState": optax.scale_by_optimistic_gradient,
    "ScaleByRmsWithCountState": functools.partial(optax.scale_by_rms, bias_correction=True),
    "ScaleByRStdDevWithCountState": functools.partial(optax.scale_by_stddev, bias_correction=True),
    "WeightDecaySchedule": functools.partial(optax.add_decayed_weights, lambda count: count),
}
"""States of optax that can be had only from what makes them."""


@functools.cache
def state_type(name: str, entries: tuple[str, ...]) -> Any:
    """The NamedTuple that holds a rule's state."""
    theirs: Any = getattr(optax, name, None)
    if name in _NOT_EXPORTED:
        theirs = type(jax.eval_shape(_NOT_EXPORTED[name]().init, ()))
    if getattr(theirs, "_fields", None) == entries:
        return export.state(theirs)  # The states of both libraries are then the same pytrees.
    cls = namedtuple(name, entries)
    # Pickled by how it is made: the type is not an attribute of any module.
    cls.__reduce__ = lambda self: (make_state, (name, entries, tuple(self)))  # type: ignore[method-assign]
    return export.state(cls, f"{name}({', '.join(entries)})")


def make_state(name: str, entries: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    """A state, as its pickle makes it again: the path of this function is a stable format."""
    return state_type(name, entries)(*values)
