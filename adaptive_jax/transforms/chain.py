"""Transformations one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import optax

from .._core import pytrees, states
from .._core.contract import has_rate
from .._core.extra import ARRAYS_BEFORE, FIRST_GRADIENT, asked, first_gradient, hands_on
from .._core.lifted import Lifted, with_complements
from .._core.rule import Rule
from .._core.tiles.row import Row, length_of_rates, length_of_row
from .._core.tiles.row import update_and_add as update_and_add_in_a_row
from .._core.transformation import Transformation, data_of
from .._core.update import update_tree
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
      ValueError: for a learning rate beside a rule that returns the step itself, and where a rule needs
        the learning rates before it and one of another library's, or of a wrapper, is not known.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.chain(aj.clip_by_global_norm(1.0), aj.sgd(0.1))
      chain(clip_by_global_norm(max_norm=1.0), sgd(learning_rate=0.1))
    """
    chained = Chained(transformations)
    check_one_evaluates(chained)
    check_rates_in_a_row(chained.members)
    _check_rates_are_known(chained.members)
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
        for places in self._groups(count):
            updates, new = self._update(places, updates, state[places], params, **extra_args)
            new_state += new
        result, rest = finish(updates, rest, params, **extra_args)
        return result, (*new_state, *rest)

    def _groups(self, count: int) -> list[slice]:
        """The first members, those that are one row together: one of them needs the rates before it."""
        members, stop, groups = [data_of(member) for member in self.members[:count]], count, []
        while stop:
            start = stop - length_of_rates(members[:stop])
            groups.insert(0, slice(start, stop))
            stop = start
        return groups

    def _update(
        self, places: slice, updates: Any, state: Any, params: Any, **extra_args: Any
    ) -> tuple[Any, Any]:
        if places.stop - places.start == 1:
            updates, new = self.members[places.start].update(updates, *state, params, **extra_args)
            return updates, (new,)
        row = Row(tuple(data_of(member) for member in self.members[places]))
        extra, before = asked(row.rules, extra_args), extra_args.get(ARRAYS_BEFORE, 0)
        return update_tree(
            with_complements(row), pytrees.gradients(updates), state, params, extra, before=before
        )

    def check(self, state: Any) -> None:
        states.check_chain(state, len(self.members))

    def states_in(self, state: Any) -> tuple[Any, ...]:
        return tuple(state)

    def with_states(self, state: Any, new: Iterable[Any]) -> Any:
        del state
        return tuple(new)


def _check_rates_are_known(members: Sequence[Any]) -> None:
    """Raises a ValueError for a rule that needs the learning rates before it, where these are not known."""
    for place, member in enumerate(map(data_of, members)):
        rules = member.rules if isinstance(member, Lifted) else ()
        if not any(rule.needs_learning_rate for rule in rules):
            continue
        start = place + 1 - length_of_rates([*map(data_of, members[: place + 1])])
        known = [rule for each in members[start:place] for rule in data_of(each).rules]
        if start and not any(map(has_rate, known)):
            raise ValueError(
                f"{member!r} needs the learning rate of what is before it in the chain, and cannot see "
                f"that of {data_of(members[start - 1])!r}: give it here too, as learning_rate=…."
            )


def _rules(data: Any) -> Iterator[Rule]:
    """The rules in it, at any depth."""
    for (each,) in walk(data):
        if isinstance(each, Lifted):
            yield from each.rules
