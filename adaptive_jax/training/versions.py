"""States and checkpoints of older versions, brought into the layout of this one.

Layout 1 is that of version 0.1.0: weight decay and learning rate were one rule, a velocity of steps
had weight decay after it even if there was none, and nothing kept the places of optax's `identity` and
`masked`. Layout 2 is optax's.

With the optimizer at hand, as in a run, its rules tell the old layout. A state alone is brought into
that which the names of what was saved show.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr

from .. import rules
from .._core import states
from .._core.lifted import Lifted
from .._core.placement import put
from .._core.rule import Rule, fields, replace
from .._core.wrapper import rebuilt
from ..transforms.skip import SkipNonfiniteState

LAYOUT = 2
"""The layout of what this version saves."""


def older(layout: int, tree: Any, names: Collection[str]) -> Any:
    """A tree, or its shapes, as a version with that layout would have made it.

    names: what it saved, by paths. Without its optimizer, a state is known by these alone.
    """
    tree = _without_new_entries(tree, "", names)
    if layout == LAYOUT:
        return tree

    def change(path: Any, node: Any) -> Any:
        if _is_run(node):
            tx, state = rebuilt(_older, node.tx, node.tx, node.opt_state)
            return dataclasses.replace(node, tx=tx, opt_state=state)
        return _older_state(keystr(path), node, names) if _is_state(node) else node

    return jax.tree_util.tree_map_with_path(change, tree, is_leaf=_is_node)


def newer(layout: int, like: Any, tree: Any) -> Any:
    """The reverse of `older`: what was restored in that layout, with the structure of `like`."""

    def change(node: Any, old: Any) -> Any:
        if isinstance(node, SkipNonfiniteState):
            return old._replace(inner_state=changed(node.inner_state, old.inner_state))
        if _is_run(node):
            tx, state = rebuilt(_newer, node.tx, old.tx, old.opt_state)
            return dataclasses.replace(old, tx=tx, opt_state=state)
        return _newer_state(node, old) if _is_state(node) else old

    def changed(node: Any, old: Any) -> Any:
        is_leaf = lambda x: _is_node(x) or isinstance(x, SkipNonfiniteState)  # noqa: E731
        return jax.tree.map(change, node, old, is_leaf=is_leaf)

    return with_new_entries(like, tree if layout == LAYOUT else changed(like, tree))


def with_new_entries(like: Any, tree: Any) -> Any:
    """What was restored, with the entries that it did not have then, as they are at first.

    Since 0.1.0 `skip_nonfinite` knows the number of its steps: it is that of the run, where there is one.
    """

    def filled(node: Any, old: Any, step: Any) -> Any:
        if _is_run(node):
            return dataclasses.replace(
                old, opt_state=through(node.opt_state, old.opt_state, old.step)
            )
        if not isinstance(node, SkipNonfiniteState):
            return old
        inner = through(node.inner_state, old.inner_state, step)
        return with_new_entries_itself(node, old._replace(inner_state=inner), step)

    def through(node: Any, old: Any, step: Any) -> Any:
        is_leaf = lambda x: _is_run(x) or isinstance(x, SkipNonfiniteState)  # noqa: E731
        return jax.tree.map(lambda x, y: filled(x, y, step), node, old, is_leaf=is_leaf)

    return through(like, tree, None)


def with_new_entries_itself(like: Any, state: Any, step: Any = None) -> Any:
    """The same of the state of one wrapper, and not of those in it.

    step: the number of the run's; None where it is not known.
    """
    is_old = isinstance(like, SkipNonfiniteState) and state.nonfinite is None
    if not is_old or like.nonfinite is None:
        return state
    updates, nonfinite = jax.tree.map(_zeros_like, (like.updates, like.nonfinite))
    return state._replace(updates=updates if step is None else jnp.copy(step), nonfinite=nonfinite)


def _without_new_entries(tree: Any, prefix: str, names: Collection[str]) -> Any:
    """The same without those entries, where what was saved has none of them."""

    def emptied(path: Any, node: Any) -> Any:
        if not isinstance(node, SkipNonfiniteState):
            return node
        own = prefix + keystr(path)
        node = node._replace(
            inner_state=_without_new_entries(node.inner_state, f"{own}.inner_state", names)
        )
        return node if f"{own}.updates" in names else node._replace(updates=None, nonfinite=None)

    return jax.tree_util.tree_map_with_path(
        emptied, tree, is_leaf=lambda x: isinstance(x, SkipNonfiniteState)
    )


def _zeros_like(x: Any) -> Any:
    zeros = jnp.zeros(x.shape, x.dtype)
    sharding = getattr(x, "sharding", None)
    return zeros if sharding is None else put(zeros, sharding)


def state_of_layout_1(lifted: Lifted, state: Any) -> Any:
    """The state of 0.1.0's optimizer as that of the same one now; a ValueError if it is none."""
    old = [layout._replace(name=None) for layout in _layouts(_of_layout_1(lifted))]
    held = [entry._asdict() for entry in states.split(state, old)]
    layouts = lifted.layout()
    entries = _matched([layout.fields for layout in layouts], held)
    return lifted.join([x.make(**each) for x, each in zip(layouts, entries, strict=True)])


def _matched(
    wanted: Iterable[Collection[str]], held: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Entries by name: what is wanted first from the first that holds it, the next from the next.

    Where fewer hold an entry than want it, the last gives a copy: arrays are donated, once each.
    """
    taken: collections.Counter[str] = collections.Counter()
    found = []
    for names in wanted:
        entries = {}
        for name in names:
            holders = [each[name] for each in held if name in each]
            is_copy = taken[name] >= len(holders) and isinstance(holders[-1], jax.Array)
            value = holders[min(taken[name], len(holders) - 1)]
            entries[name] = jnp.copy(value) if is_copy else value
            taken[name] += 1
        found.append(entries)
    return found


def _is_run(node: Any) -> bool:
    return hasattr(node, "tx") and hasattr(node, "opt_state")


def _older(lifted: Any, _: Any, state: Any) -> tuple[Any, Any]:
    if not isinstance(lifted, Lifted):
        return lifted, state
    old = _of_layout_1(lifted)
    held = [part._asdict() for part in lifted.split(state)]
    layouts = _layouts(old)
    entries = _matched([layout.fields for layout in layouts], held)
    parts = [x.make(**each) for x, each in zip(layouts, entries, strict=True)]
    return old, tuple(parts) if len(parts) > 1 else parts[0]


def _newer(lifted: Any, old: Any, state: Any) -> tuple[Any, Any]:
    if not isinstance(lifted, Lifted):
        return old, state
    values = _matched(map(_given, lifted.rules), [_given(rule) for rule in old.rules])
    new = [replace(rule, **each) for rule, each in zip(lifted.rules, values, strict=True)]
    return dataclasses.replace(lifted, rules=tuple(new)), state_of_layout_1(lifted, state)


def _given(rule: Rule) -> dict[str, Any]:
    """The hyperparameters of a rule that are not None."""
    values = {name: getattr(rule, name) for name in fields(type(rule))[0]}
    return {name: value for name, value in values.items() if value is not None}


def _layouts(old: Lifted) -> list[states.Layout]:
    return [layout._replace(masked=False) for layout in old.layout()]


def _of_layout_1(lifted: Lifted) -> Lifted:
    """The optimizer that 0.1.0 made of the same call."""
    old: list[Any] = list(zip(lifted.rules, lifted.storages, strict=True))
    if getattr(lifted.factory, "__module__", "").startswith(f"{rules.__name__}."):
        old = [each for each in old if not isinstance(each[0], rules.Identity)]
        kinds = [type(rule) for rule, _ in old[-2:]]
        if kinds == [rules.WeightDecay, rules.LearningRate]:
            *old, (decay, _), (rate, _) = old
            both = replace(rate, weight_decay=decay.weight_decay, mask=decay.mask)
            old.append((both, ()))
        elif kinds == [rules.LearningRate, rules.Trace]:
            rate, _ = old[-2]
            decay = replace(rules.WeightDecay(), learning_rate=rate.learning_rate)
            old.append((decay, ()))
    made, storages = zip(*old, strict=True)
    return dataclasses.replace(lifted, rules=made, storages=storages, order=tuple(range(len(made))))


def _is_state(node: Any) -> bool:
    """Whether a node is the state of several rules: a tuple of their NamedTuples."""
    return type(node) is tuple and bool(node) and all(map(_is_part, node))


def _is_part(node: Any) -> bool:
    if isinstance(node, optax.MaskedState):
        return True
    is_wrapper = any(name.startswith("inner") for name in getattr(node, "_fields", ("inner",)))
    return not is_wrapper and type(node).__name__.endswith(("State", "Schedule"))


def _is_node(node: Any) -> bool:
    return _is_run(node) or _is_state(node)


def _older_state(prefix: str, state: tuple[Any, ...], names: Collection[str]) -> Any:
    """A state in the layout that the names of what was saved show; as it is if it is saved so."""
    own = {prefix + keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
    saved = [name for name in names if name.startswith((prefix + "[", prefix + "."))]
    held = [part._asdict() for part in map(_unmasked, state)]
    # Of each entry of the old state, its fields; None for one that was the whole state.
    entries: dict[int | None, dict[str, None]] = {}
    for name in saved:
        if found := re.match(r"(?:\[(\d+)\])?\.(\w+)", name.removeprefix(prefix)):
            place = None if found[1] is None else int(found[1])
            entries.setdefault(place, {})[found[2]] = None
    named = {field for each in entries.values() for field in each}
    if own == set(saved) or any(not any(field in each for each in held) for field in named):
        return state
    layouts = [states.Layout("State", tuple(each), False) for each in entries.values()]
    made = _matched([layout.fields for layout in layouts], held)
    parts = {
        place: layout.make(**each)
        for place, layout, each in zip(entries, layouts, made, strict=True)
    }
    if None in parts:
        return parts[None]
    count = 1 + max([i for i in parts if i is not None], default=-1)
    return tuple(parts.get(i, optax.EmptyState()) for i in range(count))


def _newer_state(like: tuple[Any, ...], old: Any) -> Any:
    if jax.tree.structure(old) == jax.tree.structure(like):
        return old
    held = [part._asdict() for part in (old if type(old) is tuple else (old,))]
    parts = [_unmasked(part) for part in like]
    entries = _matched([part._fields for part in parts], held)
    new = [part._replace(**each) for part, each in zip(parts, entries, strict=True)]
    return tuple(
        optax.MaskedState(part) if isinstance(each, optax.MaskedState) else part
        for part, each in zip(new, like, strict=True)
    )


def _unmasked(part: Any) -> Any:
    return part.inner_state if isinstance(part, optax.MaskedState) else part
