"""Whole optimizers of a direction: weight decay and learning rate behind it, as optax chains them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .._core import hyper
from .._core.hyper import none_if_zero
from .._core.rule import Rule
from .._core.transform import build
from .._core.transformation import Transformation
from ._factory import OF_THE_RULE, Factory, check_rule, instance, listed, storage_of
from .scaling import LearningRate, WeightDecay

VELOCITIES = ("gradients", "steps")
"""What momentum may sum."""


def optimizer(
    rule: type[Rule], *, paper: Any = OF_THE_RULE, **differences: Any
) -> Callable[[Factory], Factory]:
    """θ ← θ - η(d + λθ) for a rule's direction d, under the signature of the stub below it.

    Where the stub's weight decay is a number and not None, it has a place in the state even if it is 0.
    """

    check_rule("optimizer", rule)

    def decorate(stub: Factory) -> Factory:
        parameters = inspect.signature(stub).parameters
        needed = ("learning_rate", "weight_decay", "mask", "storage")
        if missing := [name for name in needed if name not in parameters]:
            raise TypeError(
                f"{stub.__name__}: a whole optimizer takes {', '.join(needed)}: add {missing[0]}."
            )
        decays = parameters["weight_decay"].default is not None

        def make(factory: Factory, values: Mapping[str, Any]) -> Transformation:
            rate, decay, mask = (values[x] for x in ("learning_rate", "weight_decay", "mask"))
            direction, storage = instance(rule, values), storage_of(values)
            return descend(factory, direction, rate, decay, mask, storage, decays=decays)

        return listed(stub, rule, make, paper=paper, differences=differences, uses=needed[:3])

    return decorate


def descend(
    factory: Callable[..., Transformation],
    direction: Rule | tuple[Rule, ...],
    learning_rate: Any,
    weight_decay: Any,
    mask: Any,
    storage: Any,
    *,
    decays: bool = False,
    last: tuple[Rule, ...] = (),
    **options: Any,
) -> Transformation:
    """θ ← θ - η(d + λθ), for a direction d: by the rules that optax chains, so that the state is its.

    direction: a rule, or several in a row.
    decays: whether weight decay has a place in the state even if there is none.
    last: rules after the learning rate.
    """
    first = direction if isinstance(direction, tuple) else (direction,)
    decay = decays_by(factory, weight_decay, mask, decays)
    return build(
        factory, *first, *decay, LearningRate(learning_rate), *last, storage=storage, **options
    )


def descend_with_velocity(
    factory: Callable[..., Transformation],
    direction: Rule | None,
    learning_rate: Any,
    trace: Rule,
    of_steps: bool,
    weight_decay: Any,
    mask: Any,
    storage: Any,
    **options: Any,
) -> Transformation:
    """The same with momentum: a velocity of directions, or of steps, learning rate included."""
    first = () if direction is None else (direction,)
    rate = LearningRate(learning_rate)
    if not of_steps:
        rest = (trace, *decays_by(factory, weight_decay, mask), rate)
    else:  # The decay stays out of the velocity, and so comes after the learning rate.
        decay = decays_by(factory, weight_decay, mask, learning_rate=learning_rate)
        rest = (rate, trace, *decay)
    return build(factory, *first, *rest, storage=storage, **options)


def decays_by(
    factory: Callable[..., Transformation],
    weight_decay: Any,
    mask: Any,
    always: bool = False,
    learning_rate: Any = None,
) -> tuple[Rule, ...]:
    """The rule that decays weights, if one is needed.

    learning_rate: where it stands behind what made steps of directions.
    """
    weight_decay = none_if_zero(weight_decay)
    # The rule alone takes negative numbers too, as optax's does.
    hyper.checked(factory.__name__, "weight_decay", weight_decay, hyper.Interval(0.0))
    if weight_decay is None and mask is None and not always:
        return ()
    return (WeightDecay(weight_decay, mask, learning_rate),)
