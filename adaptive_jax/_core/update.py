"""One update of a whole tree."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from .leaves import Piece, matched
from .lifted import Lifted
from .plan import Adding, plans, stretches
from .slots import update_array
from .step import RuleAtStep


@functools.partial(jax.jit, static_argnames="backend")
def update_tree(
    lifted: Lifted,
    updates: Any,
    state: Any,
    params: Any,
    piece: Piece | None = None,
    adding: Adding | None = None,
    backend: Any = None,
) -> tuple[Any, Any]:
    """One update of a whole tree. Jitted here, once: a single dispatch when called outside of jit.

    All checks run while it is traced, so from the second call on they cost nothing.

    piece: what there is to know of the larger tree whose arrays these are.
    adding: how updates are added to the parameters, which then come out in their place.
    backend: what compiles kernels for tiles; None for whole arrays.
    """
    gradients, states, leaves = matched(lifted, updates, state, params, piece)
    rules = [RuleAtStep(*each) for each in zip(lifted.rules, lifted.storages, states, strict=True)]
    tiling = None
    if backend is not None:  # Pallas is imported where it is used.
        from .tiles.lift import Tiling

        tiling = Tiling(backend)
    for places in stretches(lifted.rules):
        is_last = places.stop == len(rules)
        # What is not added to the parameters in the kernel would have to be written out.
        run = tiling.update_array if tiling is not None and is_last else update_array
        for leaf, plan in zip(leaves, plans(rules, places, leaves), strict=True):
            if plan is None:
                continue
            if is_last and adding is not None:
                plan = dataclasses.replace(plan, adding=adding)
            index = leaf.index if plan.stochastic else None
            arguments = plan, leaf.direction, leaf.slots[places], leaf.param, index
            leaf.direction, leaf.slots[places] = run(*arguments)
    if tiling is not None:
        tiling.tell(lifted)
    new_states = []
    for i, (rule, old) in enumerate(zip(rules, states, strict=True)):
        slots = {
            name: gradients.slot_tree(getattr(old, name), [leaf.slots[i][name] for leaf in leaves])
            for name in lifted.rules[i].slots
        }
        new_states.append(rule.new_state(slots))
    results = [leaf.direction for leaf in leaves]
    if adding is not None:
        results = [leaf.param if leaf.gradient is None else leaf.direction for leaf in leaves]
    return gradients.treedef.unflatten(results), lifted.join(new_states)
