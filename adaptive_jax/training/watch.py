"""An optimizer that remembers of each array what came in and what went out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path

from .. import maths
from .._core.wrapper import Wrapper
from ..transforms.finite import finite_after_by_path, finite_by_path
from ..transforms.skip import Nonfinite, Paths


class WatchState(NamedTuple):
    """What was seen of the arrays, in their order.

    has_gradient: whether a gradient was not 0, of each array.
    has_update: whether an update was not 0.
    total: the sums of the updates, in float32.
    count: how many steps there were.
    first_nonfinite: the number of the first one that was not finite; 0 for none.
    nonfinite: what it was in that one.
    """

    has_gradient: jax.Array
    has_update: jax.Array
    total: Any
    count: jax.Array
    first_nonfinite: jax.Array
    nonfinite: Nonfinite
    inner_state: Any


def seen_at_first(params: Any, inner_state: Any) -> WatchState:
    """Before the first step."""
    names = tuple(keystr(path) for path, _ in tree_leaves_with_path(params))
    return WatchState(
        jnp.zeros(len(names), jnp.bool_),
        jnp.zeros(len(names), jnp.bool_),
        jax.tree.map(lambda x: jnp.zeros_like(x, maths.compute_dtype(jnp.result_type(x))), params),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
        Nonfinite(jnp.zeros(len(names), jnp.uint8), Paths(names)),
        inner_state,
    )


@dataclass(frozen=True)
class Watch(Wrapper):
    """A transformation whose updates are multiplied by a number, and looked at.

    factor: the number; 0 leaves the parameters as they are.
    """

    inner: Any
    factor: Any

    wraps = {"inner": "inner_state"}
    data_fields = ("factor",)
    state_type = WatchState

    def init(self, params: Any) -> WatchState:
        """Nothing seen so far."""
        return seen_at_first(params, self.inner.init(params))

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, WatchState]:
        """The updates of the transformation times the factor."""
        new, inner_state = self.inner.update(updates, state.inner_state, params, **extra_args)
        new = jax.tree.map(lambda x: x * jnp.asarray(self.factor).astype(x.dtype), new)
        names = state.nonfinite.paths.names
        of_gradients = _vector(names, finite_by_path(updates), True)
        of_updates = _vector(names, finite_after_by_path(params, new), True)
        kinds = (~of_gradients).astype(jnp.uint8) | ((~of_updates).astype(jnp.uint8) << 1)
        count = state.count + 1
        is_first = jnp.any(kinds > 0) & (state.first_nonfinite == 0)
        return new, WatchState(
            state.has_gradient | _vector(names, _nonzero_by_path(updates), False),
            state.has_update | _vector(names, _nonzero_by_path(new), False),
            _sums(state.total, new),
            count,
            jnp.where(is_first, count, state.first_nonfinite),
            Nonfinite(jnp.where(is_first, kinds, state.nonfinite.kinds), state.nonfinite.paths),
            inner_state,
        )


def _nonzero_by_path(tree: Any) -> dict[str, jax.Array]:
    return {keystr(path): jnp.any(x != 0) for path, x in tree_leaves_with_path(tree)}


def _vector(names: tuple[str, ...], found: dict[str, jax.Array], otherwise: bool) -> jax.Array:
    """One bool for each array; of one that has none, what it is otherwise."""
    if not names:
        return jnp.zeros(0, jnp.bool_)
    return jnp.stack([found.get(name, jnp.asarray(otherwise)) for name in names])


def _sums(totals: Any, updates: Any) -> Any:
    """The totals with the updates added, where there are any."""
    by_path = {keystr(path): x for path, x in tree_leaves_with_path(updates)}
    return jax.tree_util.tree_map_with_path(
        lambda path, total: (
            total + by_path[keystr(path)].astype(total.dtype) if keystr(path) in by_path else total
        ),
        totals,
    )
