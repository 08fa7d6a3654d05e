"""The learning rate that is in force: the product of all factors, as far as they can be known."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import maths
from .._core import hyper
from .._core.step import reached
from .._core.transformation import Foreign
from .._core.wrapper import walk
from ..transforms.parts import parts
from . import origin


def learning_rate(transformation: Any, state: Any, new_state: Any) -> jax.Array:
    """The learning rate of an update, from its states before and after: the product of all factors.

    A member of another library counts as 1, but for those that are known to scale the update and those
    that hide what they are made of. These are asked for what they keep in their state.

    Raises:
      UnknownRate: if there is none, or one that cannot be known.
    """
    rates = list(_rates(transformation, state, new_state))
    if not rates:
        raise _unknown_rate(transformation)
    return functools.reduce(jax.lax.mul, rates)


class UnknownRate(Exception):
    """There is no learning rate, or one that cannot be known."""


def _unknown_rate(transformation: Any) -> UnknownRate:
    return UnknownRate(
        f"none is known of {transformation!r:.200}, which has none or, as optax does, keeps it in a "
        "function: take this library's optimizer, put together by aj.chain and not by optax.chain, or "
        "optax.inject_hyperparams(…), whose state tells it"
    )


def _rates(transformation: Any, state: Any, new_state: Any) -> Iterator[jax.Array]:
    for data, old, new in walk(transformation, state, new_state):
        if isinstance(data, Foreign):
            yield from _rates_of_foreign(data, new)
        for rule, _, part in parts(data, old):
            counts = "count" in getattr(part, "_fields", ())
            step = maths.incremented(reached(part.count)) if counts else None
            rates = hyper.each_of(rule.learning_rate_at(step))
            if rates := [jnp.asarray(rate, jnp.float32) for rate in rates if rate is not None]:
                yield functools.reduce(jax.lax.max, rates)  # Of a tree the largest.


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
