"""One update of a whole tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from .extra import Extra
from .leaves import Leaf, Piece, matched, per_array
from .lifted import Lifted
from .plan import plans, sees_all, stretches
from .slots import measure_array, update_array
from .step import RuleAtStep


@jax.jit
def update_tree(
    lifted: Lifted,
    updates: Any,
    state: Any,
    params: Any,
    extra: Extra | None = None,
    piece: Piece | None = None,
) -> tuple[Any, Any]:
    """One update of a whole tree. Jitted here, once: a single dispatch when called outside of jit.

    All checks run while it is traced, so from the second call on they cost nothing.

    extra: the extra arguments that the rules ask for.
    piece: what there is to know of the larger tree whose arrays these are.
    """
    trees = matched(lifted, updates, state, params, extra, piece)
    numbers = {} if extra is None else extra.numbers
    rules = [
        RuleAtStep(*each, numbers)
        for each in zip(lifted.rules, lifted.storages, trees.states, strict=True)
    ]
    every = zip(*(rule.keys([leaf.index for leaf in trees.leaves]) for rule in rules), strict=True)
    for leaf, keys in zip(trees.leaves, every, strict=True):
        leaf.keys = keys
    for places in stretches(lifted.rules):
        _advance(rules, places, trees.leaves)
        for leaf, plan in zip(trees.leaves, plans(rules, places, trees.leaves), strict=True):
            if plan is not None:
                leaf.direction, leaf.entries[places] = update_array(plan, *_of(leaf, places, rules))
    new_states = [
        rule.new_state(trees.state_entries(place, per_array(rule.rule)))
        for place, rule in enumerate(rules)
    ]
    treedef = trees.gradients.treedef
    return treedef.unflatten([leaf.direction for leaf in trees.leaves]), lifted.join(new_states)


def _advance(rules: Sequence[RuleAtStep], places: slice, leaves: Sequence[Leaf]) -> None:
    """Moves on the scalars of a stretch of the rules, the first of which may measure all arrays."""
    for place in range(places.start, places.stop):
        rule, own = rules[place], slice(place, place + 1)
        if rule.rule.advance is None or rule.rule.layerwise:
            continue
        of_each = plans(rules, own, leaves)
        dtypes = [plan.dtype for plan in of_each if plan is not None]
        measured = []
        if sees_all(rule.rule):
            measured = [
                measure_array(plan, *_of(leaf, own, rules))
                for leaf, plan in zip(leaves, of_each, strict=True)
                if plan is not None and leaf.direction.size
            ]
            if not measured:
                continue
        rule.advance(measured, rules[:place], dtypes)


def _of(leaf: Leaf, places: slice, rules: Sequence[RuleAtStep]) -> tuple[Any, ...]:
    """What a stretch of the rules gets of an array."""
    needs_first = any(rule.rule.needs_gradient for rule in rules[places])
    first = leaf.first if needs_first else None
    return (
        leaf.direction, leaf.entries[places], leaf.keys[places], leaf.param, leaf.index, leaf.extra,
        first,
    )  # fmt: skip
