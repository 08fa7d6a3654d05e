"""Transformations one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import optax

from .._core import states
from .._core.extra import FIRST_GRADIENT, first_gradient, hands_on
from .._core.lifted import Lifted
from .._core.rule import Rule
from .._core.transformation import Transformation
from .._core.wrapper import Wrapper, check_one_evaluates, walk


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

    Example:
      >>> import adaptive_jax as aj
      >>> aj.chain(aj.clip_by_global_norm(1.0), aj.sgd(0.1))
      chain(clip_by_global_norm(max_norm=1.0), sgd(learning_rate=0.1))
    """
    chained = Chained(transformations)
    check_one_evaluates(chained)
    return Transformation.of(chained)


@dataclass(frozen=True)
class Chained(Wrapper):
    """The members of a chain. Its state is no NamedTuple, but the tuple of theirs."""

    members: tuple[Any, ...]

    wraps = {"members": ""}
    label = "chain"

    def init(self, params: Any) -> Any:
        return tuple(member.init(params) for member in self.members)

    @hands_on
    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        asking = [rule for rule in _rules(self) if rule.needs_gradient]
        if asking:
            first = first_gradient(asking[0], extra_args)
            extra_args[FIRST_GRADIENT] = updates if first is None else first
        new_state = []
        for each, old in zip(self.members, state, strict=True):
            updates, new = each.update(updates, old, params, **extra_args)
            new_state.append(new)
        return updates, tuple(new_state)

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
