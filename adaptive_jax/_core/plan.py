"""The plan of an update: what is the same for many arrays, settled before the first of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from .leaves import Leaf
from .rule import Rule
from .step import RuleAtStep, dtype_for, in_precision, learning_rate
from .storage import base
from .views import MatrixAxes


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rule", "advancing", "step", "count", "scalars", "extra", "learning_rate"],
    meta_fields=["storages", "selected", "axes"],
)
@dataclass(frozen=True)
class Stage:
    """One rule of a plan.

    rule: with its hyperparameters as arrays of shape ().
    advancing: the same in the precision of its scalars, where each array has its own; else None.
    step: the number of the step; None for a rule that does not count them.
    count: of which keys are made; None for a rule whose storages round nothing at random.
    scalars: what `advance` returned, or what is to be measured with; empty where each array has its own.
    extra: the numbers among the extra arguments that the rule asks for.
    learning_rate: the product of those of the rules before it; None if they have none.
    storages: of each slot.
    selected: whether the rule's mask selects the arrays.
    axes: those of the arrays, if the rule sees matrices; else None.
    """

    rule: Rule
    advancing: Rule | None
    step: Any
    count: Any
    scalars: dict[str, jax.Array]
    extra: dict[str, jax.Array]
    learning_rate: Any
    storages: tuple[base.Storage, ...]
    selected: bool
    axes: MatrixAxes | None


class Adding(Protocol):
    """How updates are added to the parameters of a tree: a pytree."""

    def seen_in(self, params: Any) -> Any:
        """All parameters as optimizers see them."""
        ...

    def of_array(self, place: int) -> AddingToOne:
        """How it is done to one array, by its place in the tree."""
        ...


class AddingToOne(Protocol):
    """How an update is added to one parameter: a pytree."""

    def seen(self, param: jax.Array) -> jax.Array:
        """The parameter as the rules see it."""
        ...

    def key(self, param: jax.Array, index: Any) -> jax.Array | None:
        """A key for `maths.random_bits`; None where this parameter is not rounded at random."""
        ...

    def added(self, param: jax.Array, update: jax.Array, key: jax.Array | None) -> Any:
        """The parameter after the update, in its own dtype; or a tuple of it and what is kept besides."""
        ...


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["stages", "adding"],
    meta_fields=["dtype", "out_dtype"],
)
@dataclass(frozen=True)
class Plan:
    """What rules in a row do to one array, and to every other one of its kind.

    stages: of each rule; None for one that leaves these arrays alone.
    dtype: in which they compute.
    out_dtype: that of what the last one returns.
    adding: how that is added to the parameter, which then is what comes out; None to leave it apart.
    """

    stages: tuple[Stage | None, ...]
    dtype: Any
    out_dtype: Any
    adding: AddingToOne | None = None

    @property
    def stochastic(self) -> bool:
        """Whether slots are rounded at random, differently in each array."""
        return any(stage is not None and stage.count is not None for stage in self.stages)


def plans(rules: Sequence[RuleAtStep], places: slice, leaves: Sequence[Leaf]) -> list[Plan | None]:
    """What a stretch of the rules does to each array: one plan for all arrays of one kind.

    places: those of the rules in the stretch.
    """
    stretch, is_last = rules[places], places.stop == len(rules)
    known: dict[Any, Plan] = {}

    def plan(leaf: Leaf) -> Plan | None:
        if leaf.direction is None:
            return None
        kept = zip(stretch, leaf.entries[places], strict=True)
        dtype = dtype_for(
            leaf.direction, [of[name] for rule, of in kept for name in rule.rule.slots]
        )
        out_dtype = leaf.gradient.dtype if is_last else dtype
        own = leaf.own[: places.stop]
        choices = leaf.selected[places], own, leaf.axes[places]
        kind = dtype, out_dtype, *choices, leaf.direction.size == 0
        if kind not in known:
            known[kind] = _plan(rules, places, *kind)
        return known[kind]

    return [plan(leaf) for leaf in leaves]


def _plan(
    rules: Sequence[RuleAtStep],
    places: slice,
    dtype: Any,
    out_dtype: Any,
    selected: Sequence[bool],
    own: Sequence[tuple[int, ...]],
    axes: Sequence[MatrixAxes | None],
    is_empty: bool,
) -> Plan:
    stages = [
        # What is measured, and a matrix, has elements: others are left alone.
        None
        if is_empty and (rule.rule.measure is not None or rule.rule.layerwise or rule.rule.matrix)
        else Stage(
            rule=rule.in_dtype(dtype, own[place]),
            advancing=rule.in_dtype(rule.numbers_dtype(dtype), own[place])
            if rule.rule.layerwise
            else None,
            step=rule.step,
            count=rule.count if rule.stochastic else None,
            scalars=in_precision(rule.scalars, dtype),
            extra=in_precision(rule.extra, dtype),
            learning_rate=learning_rate(rules[:place], dtype, own[:place]),
            storages=rule.storages,
            selected=select,
            axes=of_rule,
        )
        for place, (rule, select, of_rule) in enumerate(
            zip(rules[places], selected, axes, strict=True), places.start
        )
    ]
    return Plan(tuple(stages), dtype, out_dtype)


def stretches(rules: Sequence[Rule]) -> list[slice]:
    """Where to cut the rules: what is measured of all arrays needs all of them up to it first."""
    cuts = [0, *(i for i, rule in enumerate(rules) if i and sees_all(rule)), len(rules)]
    return [slice(*cut) for cut in itertools.pairwise(cuts)]


def sees_all(rule: Rule) -> bool:
    """Whether a rule measures all arrays before it updates the first of them."""
    return rule.measure is not None and not rule.layerwise
