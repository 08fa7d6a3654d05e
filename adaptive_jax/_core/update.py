"""One update of a whole tree."""

from __future__ import annotations

from typing import Any

import jax

from .leaves import Piece, matched
from .lifted import Lifted
from .plan import plans, stretches
from .slots import update_array
from .step import RuleAtStep


@jax.jit
def update_tree(
    lifted: Lifted, updates: Any, state: Any, params: Any, piece: Piece | None = None
) -> tuple[Any, Any]:
    """One update of a whole tree. Jitted here, once: a single dispatch when called outside of jit.

    All checks run while it is traced, so from the second call on they cost nothing.

    piece: what there is to know of the larger tree whose arrays these are.
    """
    gradients, states, leaves = matched(lifted, updates, state, params, piece)
    rules = [RuleAtStep(*each) for each in zip(lifted.rules, lifted.storages, states, strict=True)]
    for places in stretches(lifted.rules):
        for leaf, plan in zip(leaves, plans(rules, places, leaves), strict=True):
            if plan is not None:
                index = leaf.index if plan.stochastic else None
                leaf.direction, leaf.slots[places] = update_array(
                    plan, leaf.direction, leaf.slots[places], leaf.param, index
                )
    new_states = []
    for i, (rule, old) in enumerate(zip(rules, states, strict=True)):
        slots = {
            name: gradients.slot_tree(getattr(old, name), [leaf.slots[i][name] for leaf in leaves])
            for name in lifted.rules[i].slots
        }
        new_states.append(rule.new_state(slots))
    return gradients.treedef.unflatten([leaf.direction for leaf in leaves]), lifted.join(new_states)
