"""The learning rate in force: the product of all factors, as far as they can be known; and another one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import maths
from .._core import hyper
from .._core.rule import Rule, replace
from .._core.schedule import Schedule
from .._core.step import reached
from .._core.transformation import Foreign, data_of
from .._core.wrapper import Wrapper
from ..schedules import constant_schedule
from ..transforms.mixing import Blend, Graft
from ..transforms.partition import Frozen, MaskedTransform, Partition
from ..transforms.parts import parts
from ..transforms.switching import Switch
from . import origin


def learning_rates(
    transformation: Any, state: Any, new_state: Any
) -> tuple[dict[str, jax.Array], UnknownRate | None]:
    """The learning rates of an update, from its states before and after: products of all factors.

    "learning_rate" is that of all parameters, the largest where they have several. Each group of a
    `partition`, alone, in a chain or in wrappers, has its own, "learning_rate/<label>".

    A member of another library counts as 1, but for those that are known to scale the update and those
    that hide what they are made of. These are asked for what they keep in their state.

    Returns:
      What is known, and why "learning_rate" is not: there is none, or one that cannot be known.
    """
    groups = _groups(transformation, state, new_state)
    unknown = [each for each in groups.values() if isinstance(each, UnknownRate)]
    rates = {
        labels: functools.reduce(jax.lax.mul, factors)
        for labels, factors in groups.items()
        if not isinstance(factors, UnknownRate) and factors
    }
    known = {
        "/".join(("learning_rate", *labels)): rate
        for labels, rate in rates.items()
        if labels and _UNNAMED not in labels
    }
    if not rates or unknown:
        return known, unknown[0] if unknown else _unknown_rate(transformation)
    return {"learning_rate": functools.reduce(jnp.maximum, rates.values()), **known}, None


class UnknownRate(Exception):
    """There is no learning rate, or one that cannot be known."""


def _unknown_rate(transformation: Any) -> UnknownRate:
    return UnknownRate(
        f"none is known of {transformation!r:.200}, which has none or, as optax does, keeps it in a "
        "function: take this library's optimizer, put together by aj.chain and not by optax.chain, or "
        "optax.inject_hyperparams(…), whose state tells it"
    )


_UNNAMED = ""  # In the place of a label, for what a mask selects.


Groups = Mapping[tuple[str, ...], "list[jax.Array] | UnknownRate"]
"""For each group of parameters, by its labels, the factors of its rate. Without labels, (), all others."""


def _groups(transformation: Any, state: Any, new_state: Any) -> Groups:
    data = data_of(transformation)
    if isinstance(data, Frozen):
        return {}
    if not isinstance(data, Wrapper):
        try:
            return {(): list(_factors(data, state, new_state))}
        except UnknownRate as error:
            return {(): error}
    each = zip(data.wrapped(), data.states_in(state), data.states_in(new_state), strict=True)
    inner = [_groups(*one) for one in each]
    if isinstance(data, Partition):
        labels = map(str, data.transforms)
        found: dict[tuple[str, ...], Any] = {
            (label, *more): factors
            for label, groups in zip(labels, inner, strict=True)
            for more, factors in groups.items()
        }
    elif isinstance(data, MaskedTransform):
        found = {(_UNNAMED, *more): factors for more, factors in inner[0].items()}
        found[()] = []
    elif isinstance(data, Graft):
        return inner[1]
    elif isinstance(data, (Switch, Blend)):
        return _weighted(transformation, data.rate_weights(state), inner)
    else:
        return functools.reduce(functools.partial(_product, transformation), inner, {(): []})
    # Preconditioners in groups, say: one rate for all may follow.
    return found if any(found.values()) else {(): []}


def _weighted(transformation: Any, weights: list[Any], inner: list[Groups]) -> Groups:
    """What several transformations at once do: the sum of their rates with weights."""
    if any(set(groups) != set(inner[0]) for groups in inner):
        text = "none is known of {!r:.200}, in which each divides the arrays in another way"
        return {(): UnknownRate(text.format(transformation))}
    found: dict[tuple[str, ...], Any] = {}
    for labels in inner[0]:
        rates: list[Any] = [groups[labels] for groups in inner]
        unknown = [each for each in rates if isinstance(each, UnknownRate)]
        if unknown or not any(rates):
            found[labels] = unknown[0] if unknown else []
            continue
        one = jnp.ones((), jnp.float32)
        products = [functools.reduce(jax.lax.mul, factors, one) for factors in rates]
        weighted = [jnp.asarray(w, jnp.float32) * x for w, x in zip(weights, products, strict=True)]
        found[labels] = [functools.reduce(jnp.add, weighted)]
    return found


def _product(transformation: Any, first: Groups, second: Groups) -> Groups:
    """What one transformation after the other does."""
    if set(first) == {()}:
        first, second = second, first
    if set(second) != {()}:
        text = "none is known of {!r:.200}, which has several partitions or masks of what has one"
        return {(): UnknownRate(text.format(transformation))}
    (more,) = second.values()
    return {labels: _times(factors, more) for labels, factors in first.items()}


def _times(first: Any, second: Any) -> list[jax.Array] | UnknownRate:
    unknown = [each for each in (first, second) if isinstance(each, UnknownRate)]
    return unknown[0] if unknown else first + second


def _factors(data: Any, state: Any, new_state: Any) -> Iterator[jax.Array]:
    if isinstance(data, Foreign):
        yield from _rates_of_foreign(data, new_state)
    every = zip(parts(data, state), parts(data, new_state), strict=True)
    for (rule, _, part), (_, _, new_part) in every:
        if rule.learning_rate_scalar is not None:
            yield jnp.asarray(getattr(new_part, rule.learning_rate_scalar), jnp.float32)
        counts = "count" in getattr(part, "_fields", ())
        step = maths.incremented(reached(part.count)) if counts else None
        rate = rule.learning_rate_at(step)
        if rate is not None:
            # Of a tree the largest.
            each = [jnp.asarray(leaf, jnp.float32) for leaf in jax.tree.leaves(rate)]
            yield functools.reduce(jnp.maximum, each)


def _rates_of_foreign(foreign: Foreign, state: Any) -> list[jax.Array]:
    """The learning rates that another library's state tells, as of the last update."""
    told = list(_told(foreign, state))
    hides = not _SCALING.isdisjoint(origin.names_of_optax(foreign))
    # A factor does not tell what else is inside.
    if hides and not any(is_injected for is_injected, _ in told):
        raise _unknown_rate(foreign)
    return [jnp.asarray(rate, jnp.float32) for _, rate in told]


def _told(foreign: Foreign, state: Any) -> Iterator[tuple[bool, Any]]:
    """Each rate, after whether it is that of `inject_hyperparams`, which is the whole rate."""
    if isinstance(state, (optax.ScaleByScheduleState, optax.PartitionState)):
        raise _unknown_rate(foreign)
    hyperparams = getattr(state, "hyperparams", None)
    if isinstance(hyperparams, dict) and "learning_rate" in hyperparams:
        yield True, hyperparams["learning_rate"]
    elif isinstance(state, optax.contrib.ReduceLROnPlateauState):
        yield False, state.scale
    elif isinstance(state, _LINE_SEARCHES):
        yield False, state.learning_rate
    elif isinstance(state, (tuple, dict)):
        for each in state.values() if isinstance(state, dict) else state:
            yield from _told(foreign, each)


_SCALING = frozenset(
    (
        "scale", "scale_by_schedule", "scale_by_polyak", "scale_by_distance_over_gradients", "prodigy",
        "dadapt_adamw", "momo", "momo_adam", "sam", "schedule_free", "mechanize", "chain", "named_chain",
        "partition", "apply_if_finite", "flatten", "lookahead", "conditionally_mask", "MultiSteps",
        "conditionally_transform", "with_extra_args_support",
    )
)  # fmt: skip
"""What of optax scales all updates by a rate of its own, or may have in it what does."""


_LINE_SEARCHES = (optax.ScaleByBacktrackingLinesearchState, optax.ScaleByZoomLinesearchState)


def rate_setter(tx: Any, opt_state: Any) -> Callable[[Any], Any]:
    """A function from a learning rate to the optimizer that has it, with a state of the same structure.

    The rate is that which `train_step` measures. Where arrays have different ones, it is the largest, and
    the others keep their proportions. A schedule becomes a constant one.

    Raises:
      ValueError: for an optimizer without a rate, or with one that cannot be set.
    """
    _, unknown = learning_rates(tx, opt_state, opt_state)
    if unknown is not None:
        raise ValueError(f"the learning rate must be one that can be set, and {unknown}.")
    factors = _proportions(tx, opt_state)

    def with_rate(rate: Any) -> Any:
        def of_rule(rule: Any) -> Any:
            name = getattr(rule, "learning_rate_field", None)
            if not isinstance(rule, Rule) or name is None or getattr(rule, name, None) is None:
                return rule
            old, new = getattr(rule, name), []
            for each, factor in zip(hyper.each_of(old), factors[id(rule)], strict=True):
                own = None if each is None else rate * factor
                new.append(constant_schedule(own) if hyper.is_schedule(each) else own)
            return replace(rule, **{name: hyper.rebuilt(old, new)})

        return jax.tree.map(of_rule, tx, is_leaf=lambda x: isinstance(x, Rule))

    half = learning_rates(with_rate(0.5), opt_state, opt_state)[0]["learning_rate"]
    if not np.isclose(float(half), 0.5, rtol=1e-3):
        raise ValueError(
            f"the learning rate of {tx!r:.200} is a product of several factors, and cannot be set in one "
            f"place: with 0.5 it is {float(half):.3g} in force. Find it of an optimizer that has it once."
        )
    return with_rate


def _proportions(tx: Any, opt_state: Any) -> dict[int, list[float]]:
    """Of each rule with a learning rate, that of each of its arrays relative to the largest of all."""
    found: dict[int, list[Any]] = {}
    now: dict[int, list[float]] = {}
    for rule, _, part in parts(data_of(tx), opt_state):
        rate = None
        if rule.learning_rate_field is not None:
            rate = getattr(rule, rule.learning_rate_field, None)
        if rate is None:
            continue
        counts = "count" in getattr(part, "_fields", ())
        count = reached(part.count) if counts else jnp.zeros((), jnp.int32)
        found[id(rule)] = hyper.each_of(rate)
        now[id(rule)] = [_at(each, count) for each in found[id(rule)]]
    every = [each for ones in found.values() for each in ones if each is not None]
    if not every:
        raise ValueError(f"{tx!r:.200} has no learning rate that can be set: it finds its own.")
    if all(_is_same(each, every[0]) for each in every):
        return {key: [1.0] * len(ones) for key, ones in found.items()}
    largest = max(max(values) for values in now.values())
    if not largest > 0:
        raise ValueError(
            f"arrays have learning rates of their own in {tx!r:.200}, and all of them are 0 at this step: "
            "give an optimizer with the rates that they have later, as numbers, so that they can keep "
            "their proportions."
        )
    return {key: [value / largest for value in values] for key, values in now.items()}


def _at(rate: Any, count: Any) -> float:
    """A rate at a count; 0 for none."""
    if rate is None:
        return 0.0
    return float(rate(count) if hyper.is_schedule(rate) else rate)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two rates are the same number, or the same schedule."""
    leaves, treedef = jax.tree.flatten(one)
    others, structure = jax.tree.flatten(other)
    if not isinstance(one, Schedule) and hyper.is_schedule(one) and not leaves:
        return one == other
    return treedef == structure and all(
        bool(np.all(np.asarray(x) == np.asarray(y))) for x, y in zip(leaves, others, strict=True)
    )
