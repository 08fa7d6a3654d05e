"""What goes wrong where a step writes over its state, said in the user's words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

from .._core import pytrees
from .arrays import arrays_of, buffers_of
from .state import TrainState


def explain_failure(error: Exception, state: TrainState, batch: Any) -> None:
    """Raises an error in the user's words where a step failed because of what it was given."""
    if "has been deleted" in str(error):  # Before: that is not what failed just now.
        _check_not_used_up(state)
    if isinstance(error, TypeError):
        for each in dataclasses.fields(state):
            pytrees.check_arrays(f"state.{each.name}", getattr(state, each.name))
        pytrees.check_arrays("batch", batch)
    if "donate" in str(error):
        _refuse_repeated(state, batch, buffers_of)


def _check_not_used_up(state: TrainState) -> None:
    step = state.step
    if isinstance(step, jax.Array) and not isinstance(step, Tracer) and step.is_deleted():
        raise ValueError(
            "this state was used up by a step before, which wrote over its arrays: go on with the "
            "state that it returned. (TrainState.create makes a new one, of its own copies.)"
        ) from None


def check_repeated(state: TrainState, batch: Any) -> None:
    """Raises a ValueError, with both paths, for an array that a step would have to write over twice.

    With several devices XLA does not refuse it, and ends the process. So a state is looked at, unless it
    comes from a step: it then is marked, and `check_read` will do.
    """
    if isinstance(state.step, Tracer):
        return
    arrays = list(map(id, arrays_of(_written(state))))
    others = map(id, arrays_of((state.tx, state.rng, batch)))
    if len(set(arrays)) < len(arrays) or not set(arrays).isdisjoint(others):
        _refuse_repeated(state, batch, lambda x: {id(x)})


def check_read(state: TrainState, batch: Any) -> None:
    """The same for a state that comes from a step, which returns no array twice: for what else it reads.

    In every step on several devices, and so it is quick.
    """
    if isinstance(state.step, Tracer):
        return
    read = jax.tree.leaves((state.tx, state.rng, batch))
    written = jax.tree.leaves(
        (state.params, state.opt_state, state.model_state, state.step, state.loss_scale)
    )
    if not {*map(id, read)}.isdisjoint(map(id, written)):
        check_repeated(state, batch)


def _written(state: TrainState) -> TrainState:
    """What a step writes over."""
    return dataclasses.replace(state, tx=None, rng=None, skipped=None)


def _refuse_repeated(state: TrainState, batch: Any, buffers: Callable[[Any], set[Any]]) -> None:
    """Raises a ValueError for two arrays with a buffer in common, one of which is written over."""
    owners: dict[Any, str] = {}

    def refuse(x: Any, first: str, second: str) -> None:
        raise ValueError(
            f"{first} and {second} are one array, {pytrees.describe(x)}. A step writes over the arrays "
            "of its state, each of which must be there once: put a copy, jnp.copy(…), in one of the two "
            "places. The state is as it was."
        ) from None

    for path, x in jax.tree_util.tree_leaves_with_path(_written(state)):
        name = f"state{jax.tree_util.keystr(path)}"
        for buffer in buffers(x) if arrays_of(x) else ():
            if owners.setdefault(buffer, name) != name:
                refuse(x, owners[buffer], name)
    # These are only read, and may have an array twice.
    for root, tree in (("state.tx", state.tx), ("state.rng", state.rng), ("batch", batch)):
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            for buffer in buffers(x) if arrays_of(x) else ():
                if buffer in owners:
                    refuse(x, owners[buffer], f"{root}{jax.tree_util.keystr(path)}")
