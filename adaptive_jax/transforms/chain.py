"""Transformations one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import optax

from .._core import pytrees, states
from .._core.extra import FIRST_GRADIENT, first_gradient, hands_on
from .._core.lifted import Lifted
from .._core.rule import Rule
from .._core.tiles.row import Row, length_of_row
from .._core.tiles.row import update_and_add as update_and_add_in_a_row
from .._core.transformation import Transformation, data_of
from .._core.wrapper import Wrapper, check_one_evaluates, check_rates_in_a_row, walk
from .precision import update_and_add


def chain(*transformations: optax.GradientTransformation) -> Transformation:
    """Transformations one after the other: `optax.chain`, as a pytree.

    Each gets the updates of the one before it. Members of this library keep their hyperparameters
    as leaves; any other optax transformation is static data, compared by identity, but for the traced
    numbers in its closures, as in `jax.vmap(lambda lr: aj.chain(optax.lion(lr)))`: these are leaves.

    Args:
      *transformations: at least one optax gradient transformation.

    Returns:
      The transformation. Its state is the tuple of the members' states, as in `optax.chain`.

    Raises:
      TypeError: for something that is not an optax gradient transformation.
      ValueError: for a learning rate beside a rule that returns the step itself.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.chain(aj.clip_by_global_norm(1.0), aj.sgd(0.1))
      chain(clip_by_global_norm(max_norm=1.0), sgd(learning_rate=0.1))
    """
    chained = Chained(transformations)
    check_one_evaluates(chained)
    check_rates_in_a_row(chained.members)
    return Transformation.of(chained)


@dataclass(frozen=True)
class Chained(Wrapper):
    """The members of a chain. Its state is no NamedTuple, but the tuple of theirs."""

    members: tuple[Any, ...]

    wraps = {"members": ""}
    label = "chain"

    def init(self, params: Any) -> Any:
        return tuple(member.init(params) for member in self.members)

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        def finish(updates: Any, state: Any, params: Any, **extra_args: Any) -> tuple[Any, Any]:
            return updates, state

        return self._in_a_row(len(self.members), finish, updates, state, params, **extra_args)

    def update_and_add(
        self, updates: Any, state: Any, params: Any, adding: Any, backend: Any, **extra_args: Any
    ) -> tuple[Any, Any]:
        """The parameters after an update, and the new state.

        adding: how updates are added.
        backend: of tiles; None for whole arrays.
        """
        self.check(state)
        updates = pytrees.gradients(updates)
        members = [data_of(member) for member in self.members]
        start = len(members) - length_of_row(members, updates)

        def finish(updates: Any, state: Any, seen: Any, **extra_args: Any) -> tuple[Any, Any]:
            trees = params, adding, backend
            if start < len(members) - 1:
                row = Row(tuple(members[start:]))
                return update_and_add_in_a_row(row, updates, state, *trees, extra_args)
            last = self.members[-1]
            result, new = update_and_add(last, updates, state[0], *trees, **extra_args)
            return result, (new,)

        return self._in_a_row(start, finish, updates, state, adding.seen_in(params), **extra_args)

    @hands_on
    def _in_a_row(
        self,
        count: int,
        finish: Callable[..., tuple[Any, Any]],
        updates: Any,
        state: Any,
        params: Any,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        """The updates of so many members, and what is made of them, with the states of the others."""
        asking = [rule for rule in _rules(self) if rule.needs_gradient]
        if asking:
            first = first_gradient(asking[0], extra_args)
            extra_args[FIRST_GRADIENT] = updates if first is None else first
        new_state, rest = [], tuple(state[count:])
        for each, old in zip(self.members[:count], state[:count], strict=True):
            updates, new = each.update(updates, old, params, **extra_args)
            new_state.append(new)
        result, rest = finish(updates, rest, params, **extra_args)
        return result, (*new_state, *rest)

    def check(self, state: Any) -> None:
        states.check_chain(state, len(self.members))

    def states_in(self, state: Any) -> tuple[Any, ...]:
        return tuple(state)

    def with_states(self, state: Any, new: Iterable[Any]) -> Any:
        del state
        return tuple(new)


def _rules(data: Any) -> Iterator[Rule]:
    """The rules in it, at any depth."""
    for (each,) in walk(data):
        if isinstance(each, Lifted):
            yield from each.rules
