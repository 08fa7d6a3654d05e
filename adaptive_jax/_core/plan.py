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
from .step import RuleAtStep, dtype_for
from .storage import base


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rule", "step", "count", "scalars", "statistic"],
    meta_fields=["storages", "selected"],
)
@dataclass(frozen=True)
class Stage:
    """One rule of a plan.

    rule: with its hyperparameters as arrays of shape ().
    step: the number of the step; None for a rule that does not count them.
    count: of which keys are made; None for a rule whose storages round nothing at random.
    scalars: the rule's `scalars` after this step.
    statistic: what the rule wanted to know of the whole tree.
    storages: of each slot.
    selected: whether the rule's mask selects the arrays.
    """

    rule: Rule
    step: Any
    count: Any
    scalars: dict[str, jax.Array]
    statistic: Any
    storages: tuple[base.Storage, ...]
    selected: bool


class Adding(Protocol):
    """How an update is added to a parameter: a pytree."""

    @property
    def stochastic(self) -> bool:
        """Whether the sum may be rounded at random."""
        ...

    def key(self, param: jax.Array, index: Any) -> jax.Array | None:
        """A key for `maths.random_bits`; None where this parameter is not rounded at random."""
        ...

    def added(self, param: jax.Array, update: jax.Array, key: jax.Array | None) -> jax.Array:
        """The parameter after the update, in its own dtype."""
        ...


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["stages", "adding"],
    meta_fields=["dtype", "out_dtype"],
)
@dataclass(frozen=True)
class Plan:
    """What rules in a row do to one array, and to every other one of its kind.

    dtype: in which they compute.
    out_dtype: that of what the last one returns.
    adding: how that is added to the parameter, which then is what comes out; None to leave it apart.
    """

    stages: tuple[Stage, ...]
    dtype: Any
    out_dtype: Any
    adding: Adding | None = None

    @property
    def stochastic(self) -> bool:
        """Whether something is rounded at random, differently in each array."""
        rounds = self.adding is not None and self.adding.stochastic
        return rounds or any(stage.count is not None for stage in self.stages)


def plans(rules: Sequence[RuleAtStep], places: slice, leaves: Sequence[Leaf]) -> list[Plan | None]:
    """What a stretch of the rules does to each array: one plan for all arrays of one kind.

    places: those of the rules in the stretch, of which only the first may ask for a statistic.
    """
    stretch, is_last = rules[places], places.stop == len(rules)
    statistic = stretch[0].statistic([leaf.direction for leaf in leaves])
    known: dict[Any, Plan] = {}

    def plan(leaf: Leaf) -> Plan | None:
        if leaf.direction is None:
            return None
        dtype = dtype_for(leaf.direction, leaf.slots[places])
        kind = dtype, leaf.gradient.dtype if is_last else dtype, leaf.selected[places]
        if kind not in known:
            known[kind] = _plan(stretch, statistic, *kind)
        return known[kind]

    return [plan(leaf) for leaf in leaves]


def _plan(
    rules: Sequence[RuleAtStep],
    statistic: Any,
    dtype: Any,
    out_dtype: Any,
    selected: Sequence[bool],
) -> Plan:
    stages = [
        Stage(
            rule=rule.in_dtype(dtype),
            step=rule.step,
            count=rule.count if rule.stochastic else None,
            scalars=rule.scalars_in(dtype),
            statistic=statistic if place == 0 else None,
            storages=rule.storages,
            selected=select,
        )
        for place, (rule, select) in enumerate(zip(rules, selected, strict=True))
    ]
    return Plan(tuple(stages), dtype, out_dtype)


def stretches(rules: Sequence[Rule]) -> list[slice]:
    """Where to cut the rules: a statistic of the whole tree needs all arrays up to it first."""
    cuts = [0, *(i for i, rule in enumerate(rules) if i and rule.statistic is not None), len(rules)]
    return [slice(*cut) for cut in itertools.pairwise(cuts)]
