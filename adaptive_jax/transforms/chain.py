"""Transformations one after the other."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.tree_util import Partial

from .._core import export, pytrees, states
from .._core.transformation import Transformation, member


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
    chained = Chained(tuple(member(each, "chain") for each in transformations))
    return Transformation(Partial(_chain_init, chained), Partial(_chain_update, chained))


@export.node
@functools.partial(jax.tree_util.register_dataclass, data_fields=["members"], meta_fields=[])
@dataclass(frozen=True, repr=False)
class Chained:
    """The members of a chain."""

    members: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.members))})"


def _chain_init(chained: Chained, params: Any) -> Any:
    return tuple(member.init(params) for member in chained.members)


def _chain_update(
    chained: Chained, updates: Any, state: Any, params: Any = None, **extra_args: Any
) -> tuple[Any, Any]:
    states.check_chain(state, len(chained.members))
    updates = pytrees.gradients(updates)
    new_state = []
    for each, old in zip(chained.members, state, strict=True):
        updates, new = each.update(updates, old, params, **extra_args)
        new_state.append(new)
    return updates, tuple(new_state)
