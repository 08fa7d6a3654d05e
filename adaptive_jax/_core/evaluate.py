"""The parameters to evaluate with, where a rule says that they are not those that it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import maths
from . import contract
from .context import Context
from .leaves import matched
from .lifted import Lifted
from .plan import Plan, plans
from .slots import decoded
from .step import RuleAtStep, cast, in_precision, product_of_rates
from .views import view


@jax.jit
def evaluate_tree(lifted: Lifted, params: Any, state: Any) -> Any:
    """What the rules make of the parameters, from the last rule to the first, as of the last update."""
    arrays, states, leaves = matched(lifted, params, state, params, evaluates=True)
    rules = [
        RuleAtStep(*each, {}, is_past=True)
        for each in zip(lifted.rules, lifted.storages, states, strict=True)
    ]
    for place in reversed(range(len(rules))):
        if rules[place].rule.evaluate is None:
            continue
        own = slice(place, place + 1)
        for leaf, plan in zip(leaves, plans(rules, own, leaves), strict=True):
            if plan is not None:
                leaf.direction = evaluate_array(
                    plan, leaf.direction, leaf.entries[place], leaf.index
                )
    return arrays.treedef.unflatten([leaf.direction for leaf in leaves])


@jax.jit
def evaluate_array(
    plan: Plan, param: jax.Array, entries: Mapping[str, Any], index: Any
) -> jax.Array:
    """What the one rule of a plan makes of one parameter."""
    (stage,) = plan.stages
    if stage is None:  # An array without elements, of a rule that measures.
        return param
    rule: Any = stage.rule
    wide = maths.compute_dtype(jnp.result_type(param), plan.dtype)
    param, seen = cast(param, wide), view(stage.axes, param.shape)
    scalars = stage.scalars
    if rule.layerwise:
        scalars = in_precision({name: entries[name] for name in rule.scalars}, plan.dtype)
    context = Context(
        f"{type(rule).__name__}.evaluate",
        index=index,
        step=stage.step,
        scalars=scalars,
        extra={},
        selected=stage.selected,
        **product_of_rates(stage.learning_rate, plan.dtype),
    )
    with contract.of_method(rule, "evaluate", scalars, complex_of=plan.dtype):
        slots = decoded(stage, entries, plan.dtype, param.shape)
        found = rule.evaluate(seen.to_matrices(param), slots, context)
    found = contract.checked_parameter(rule, seen.to_matrices(param), found)
    found = cast(seen.back(found), wide)
    # Before the first update there is nothing else to evaluate with.
    return found if stage.step is None else jnp.where(stage.step == 0, param, found)
