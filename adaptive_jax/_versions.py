"""States and checkpoints of older versions, brought into the layout of this one.

Layout 1 is that of version 0.1.0: weight decay and learning rate were one rule, a velocity of steps
had weight decay after it even if there was none, and nothing kept the places of optax's `identity` and
`masked`. Layout 2 is optax's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from . import _check, _rule, optimizers, rules
from ._transform import Chained, Lifted, Transformation, inner_entry, shared

LAYOUT = 2
"""The layout of what this version saves."""


def older(layout: int, run: Any) -> Any:
    """A `TrainState`, or the shapes of one, as it was in that layout. Anything else as it is."""
    if layout == LAYOUT or not _is_run(run):
        return run
    tx, opt_state = _mapped(_older, run.tx, run.tx, run.opt_state)
    return dataclasses.replace(run, tx=tx, opt_state=opt_state)


def newer(layout: int, like: Any, run: Any) -> Any:
    """The reverse of `older`: a run in that layout, as one like `like` is in this."""
    if layout == LAYOUT or not _is_run(run):
        return run
    tx, opt_state = _mapped(_newer, like.tx, run.tx, run.opt_state)
    return dataclasses.replace(run, tx=tx, opt_state=opt_state)


def _is_run(state: Any) -> bool:
    return hasattr(state, "tx") and hasattr(state, "opt_state")


def _mapped(change: Callable[..., Any], like: Any, tx: Any, state: Any) -> tuple[Any, Any]:
    """A transformation and its state, with each optimizer of this library and its state changed."""
    if not isinstance(tx, Transformation):
        return tx, state
    kind, data = shared(like), shared(tx)
    if isinstance(kind, Lifted):
        data, state = change(kind, data, state)
    elif isinstance(kind, Chained):
        every = zip(kind.members, data.members, state, strict=True)
        pairs = [_mapped(change, *each) for each in every]
        data = Chained(tuple(member for member, _ in pairs))
        state = tuple(part for _, part in pairs)
    elif hasattr(kind, "inner"):
        entry = inner_entry(state)
        inner, part = _mapped(change, kind.inner, data.inner, getattr(state, entry))
        data, state = dataclasses.replace(data, inner=inner), state._replace(**{entry: part})
    _, functions = tx.tree_flatten_with_keys()
    return Transformation.tree_unflatten(functions, (data,)), state


def _older(lifted: Lifted, _: Lifted, state: Any) -> tuple[Lifted, Any]:
    old, sources = _of_layout_1(lifted)
    parts = lifted.split(state)
    entries = []
    for layout, places in zip(_layouts(old), sources, strict=True):
        known = {name: x for place in places for name, x in parts[place]._asdict().items()}
        entries.append(layout.make(**{name: known[name] for name in layout.fields}))
    return old, tuple(entries) if len(entries) > 1 else entries[0]


def _newer(lifted: Lifted, old: Lifted, state: Any) -> tuple[Lifted, Any]:
    _, sources = _of_layout_1(lifted)
    new = []
    for place, rule in enumerate(lifted.rules):
        was = [old.rules[i] for i, places in enumerate(sources) if place in places]
        names = _rule.fields(type(rule))[0] if was else ()
        held = [name for name in names if getattr(rule, name) is not None]
        new.append(_rule.replace(rule, **{name: getattr(was[0], name) for name in held}))
    return dataclasses.replace(lifted, rules=tuple(new)), state_of_layout_1(lifted, state)


def state_of_layout_1(lifted: Lifted, state: Any) -> Any:
    """The state of 0.1.0's optimizer as that of the same one now; a ValueError if it is none."""
    old, sources = _of_layout_1(lifted)
    entries = _check.state(state, [layout._replace(name=None) for layout in _layouts(old)])
    parts, given = [], set()

    def own(x: Any) -> Any:
        """An array of its own, where one count has become two: it cannot be donated twice."""
        first = id(x) not in given
        given.add(id(x))
        return x if first else jnp.copy(x)

    for place, layout in enumerate(lifted.layout()):
        was = [entry for entry, places in zip(entries, sources, strict=True) if place in places]
        parts.append(layout.make(**{name: own(getattr(was[0], name)) for name in layout.fields}))
    return lifted.join(parts)


def _layouts(old: Lifted) -> list[_rule.Layout]:
    return [layout._replace(masked=False) for layout in old.layout()]


def _of_layout_1(lifted: Lifted) -> tuple[Lifted, list[list[int]]]:
    """The optimizer of 0.1.0, and for each of its rules the places of those that it has become."""
    old: list[tuple[Any, list[int]]] = [(rule, [i]) for i, rule in enumerate(lifted.rules)]
    if getattr(lifted.factory, "__module__", None) == optimizers.__name__:
        old = [(rule, places) for rule, places in old if not isinstance(rule, rules.Identity)]
        kinds = [type(rule) for rule, _ in old[-2:]]
        if kinds == [rules.WeightDecay, rules.LearningRate]:
            *old, (decay, first), (rate, last) = old
            both = _rule.replace(rate, weight_decay=decay.weight_decay, mask=decay.mask)
            old.append((both, first + last))
        elif kinds == [rules.LearningRate, rules.Trace]:
            rate, places = old[-2]
            decay = _rule.replace(rules.WeightDecay(), learning_rate=rate.learning_rate)
            old.append((decay, places))
    made = dataclasses.replace(
        lifted,
        rules=tuple(rule for rule, _ in old),
        storages=tuple(lifted.storages[places[0]] if rule.slots else () for rule, places in old),
        order=tuple(range(len(old))),
    )
    return made, [places for _, places in old]
