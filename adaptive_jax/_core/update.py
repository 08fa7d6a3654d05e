"""One update of a whole tree."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from . import pytrees
from .lifted import Lifted
from .rule import Rule
from .slots import update_array
from .step import Step, dtype_for


@functools.partial(jax.jit, static_argnames="selected")
def update_tree(
    lifted: Lifted,
    updates: Any,
    state: Any,
    params: Any,
    indices: Sequence[Any] | None = None,
    selected: Sequence[Sequence[bool]] | None = None,
) -> tuple[Any, Any]:
    """One update of a whole tree. Jitted here, once: a single dispatch when called outside of jit.

    All checks run while it is traced, so from the second call on they cost nothing. For a piece of a
    larger tree, indices are the places of its arrays in that, and selected what the rules' masks say.
    """
    rules = lifted.rules
    gradients, param_leaves, states, slots = matched(lifted, updates, state, params)
    if selected is None:
        selected = selection(lifted, gradients, params)
    if indices is None:
        indices = [np.uint32(i) for i in range(len(gradients.leaves))]
    rounds = [any(storage.stochastic for storage in each) for each in lifted.storages]
    steps = [Step(*each) for each in zip(rules, lifted.layout(), states, rounds, strict=True)]

    directions = list(gradients.leaves)
    for start, stop in _stretches(rules):
        part = slice(start, stop)
        statistic = steps[start].statistic(directions)
        for i, (gradient, direction) in enumerate(zip(gradients.leaves, directions, strict=True)):
            if direction is None:
                continue
            stored = tuple(
                {name: leaves[i] for name, leaves in each.items()} for each in slots[part]
            )
            dtype = dtype_for(direction, stored)
            stochastic = any(codec.stochastic for each in lifted.storages[part] for codec in each)
            directions[i], new = update_array(
                tuple(step.rule_in(dtype) for step in steps[part]),
                tuple(step.count for step in steps[part]),
                tuple(step.scalars for step in steps[part]),
                statistic,
                direction,
                stored,
                param_leaves[i],
                indices[i] if stochastic else None,
                storages=lifted.storages[part],
                selected=tuple(each[i] for each in selected[part]),
                dtypes=(dtype, gradient.dtype if stop == len(rules) else dtype),
            )
            for each, values in zip(slots[part], new, strict=True):
                for name, value in values.items():
                    each[name][i] = value

    new_states = [
        step.state(
            old,
            {
                name: gradients.slot_tree(getattr(old, name), leaves)
                for name, leaves in each.items()
            },
        )
        for step, old, each in zip(steps, states, slots, strict=True)
    ]
    return gradients.treedef.unflatten(directions), lifted.join(new_states)


def matched(lifted: Lifted, updates: Any, state: Any, params: Any) -> tuple[Any, ...]:
    """All trees of an update, checked, as lists in the order of the gradients.

    These are the gradients, the parameters, and of each rule its state and its slots.
    """
    rules = lifted.rules
    gradients = pytrees.Arrays("gradients", updates)
    pytrees.no_complex("gradients", updates, rules)
    param_leaves = gradients.params(params, [rule for rule in rules if rule.needs_params])
    states = lifted.split(state)
    slots = [
        {
            name: gradients.slot(name, getattr(old, name), storage, slot.nonnegative, param_leaves)
            for (name, slot), storage in zip(rule.slots.items(), storages, strict=True)
        }
        for rule, storages, old in zip(rules, lifted.storages, states, strict=True)
    ]
    return gradients, param_leaves, states, slots


def selection(lifted: Lifted, gradients: pytrees.Arrays, params: Any) -> list[Sequence[bool]]:
    """Of each rule, which arrays its mask selects."""
    return [gradients.selected(getattr(rule, "mask", None), params) for rule in lifted.rules]


def _stretches(rules: Sequence[Rule]) -> list[tuple[int, int]]:
    """Where to cut the rules: a statistic of the whole tree needs all arrays up to it first."""
    cuts = [0, *(i for i, rule in enumerate(rules) if i and rule.statistic is not None), len(rules)]
    return list(itertools.pairwise(cuts))
