"""Optimizers one after the other as one row of rules: a gradient is read once for all of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..contract import has_rate
from ..extra import asked
from ..lifted import Lifted, with_complements
from ..plan import Adding
from ..rule import Rule
from ..sharing import places_for
from ..storage import base
from ..update import update_tree


def update_and_add(
    lifted: Any,
    updates: Any,
    state: Any,
    params: Any,
    adding: Adding,
    backend: Any,
    extra_args: Mapping[str, Any],
) -> tuple[Any, Any]:
    """The parameters after an update, and the new state.

    lifted: an optimizer, or a `Row`.
    adding: how updates are added.
    backend: of tiles; None for whole arrays.
    """
    extra = asked(lifted.rules, extra_args)
    trees, places = (updates, state, params, extra), places_for(lifted.rules)
    return update_tree(
        with_complements(lifted), *trees, adding=adding, backend=backend, places=places
    )


@functools.partial(jax.tree_util.register_dataclass, data_fields=["members"], meta_fields=[])
@dataclass(frozen=True)
class Row:
    """Optimizers one after the other, to `update_tree` as one."""

    members: tuple[Lifted, ...]

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules of all of them."""
        return tuple(rule for member in self.members for rule in member.rules)

    @property
    def storages(self) -> tuple[tuple[base.Storage, ...], ...]:
        """Of each rule those of its slots."""
        return tuple(each for member in self.members for each in member.storages)

    def split(self, state: Any) -> tuple[Any, ...]:
        """Each rule's part of the tuple of their states."""
        pairs = zip(self.members, state, strict=True)
        return tuple(each for member, own in pairs for each in member.split(own))

    def join(self, rule_states: Sequence[Any]) -> Any:
        """The reverse of `split`."""
        rest, states = list(rule_states), []
        for member in self.members:
            own, rest = rest[: len(member.rules)], rest[len(member.rules) :]
            states.append(member.join(own))
        return tuple(states)

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.members))})"


def length_of_row(members: Sequence[Any], gradients: Any) -> int:
    """How many of a chain's members, from the last one on, can be one row and give the same.

    members: what each is made of.
    gradients: that come to the chain. One of 16 bits would be rounded from member to member.
    """
    least = length_of_rates(members)
    if any(jnp.result_type(x) != jnp.float32 for x in jax.tree.leaves(gradients)):
        return least
    count = 0
    for member in reversed(members):
        # A rule sees the product of the learning rates before it in its own row.
        rates = count and isinstance(member, Lifted) and any(map(has_rate, member.rules))
        if not isinstance(member, Lifted) or rates:
            break
        count += 1
    return max(least, count)


def length_of_rates(members: Sequence[Any]) -> int:
    """How many of a chain's members are one row for the sake of the last: it needs their learning rates."""
    last = members[-1]
    if not (isinstance(last, Lifted) and any(rule.needs_learning_rate for rule in last.rules)):
        return 1
    before = itertools.takewhile(lambda member: isinstance(member, Lifted), reversed(members))
    return sum(1 for _ in before)
