"""Transformations one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import optax

from .._core import pytrees, states
from .._core.transformation import Transformation
from .._core.wrapper import Wrapper
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

    Example:
      >>> import adaptive_jax as aj
      >>> aj.chain(aj.clip_by_global_norm(1.0), aj.sgd(0.1))
      chain(clip_by_global_norm(max_norm=1.0), sgd(learning_rate=0.1))
    """
    return Transformation.of(Chained(transformations))


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
        new_state = []
        for each, old in zip(self.members, state, strict=True):
            updates, new = each.update(updates, old, params, **extra_args)
            new_state.append(new)
        return updates, tuple(new_state)

    def update_and_add(
        self, updates: Any, state: Any, params: Any, adding: Any, backend: Any, **extra_args: Any
    ) -> tuple[Any, Any]:
        """The parameters after an update, and the new state: the last member adds its update."""
        self.check(state)
        updates, new_state = pytrees.gradients(updates), []
        for each, old in zip(self.members[:-1], state, strict=False):
            updates, new = each.update(updates, old, params, **extra_args)
            new_state.append(new)
        params, new = update_and_add(
            self.members[-1], updates, state[-1], params, adding, backend, **extra_args
        )
        return params, (*new_state, new)

    def check(self, state: Any) -> None:
        states.check_chain(state, len(self.members))

    def states_in(self, state: Any) -> tuple[Any, ...]:
        return tuple(state)

    def with_states(self, state: Any, new: Iterable[Any]) -> Any:
        del state
        return tuple(new)
