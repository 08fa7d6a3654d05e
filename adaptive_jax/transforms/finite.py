"""Whether updates are finite, and what they leave finite."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from .precision import added


def all_finite(tree: Any) -> jax.Array:
    """Whether no number in the tree is infinite or NaN, shape ()."""
    return every(finite_by_path(tree).values())


def finite_after(params: Any, updates: Any) -> jax.Array:
    """Whether no update is infinite or NaN, nor makes a parameter so that was not, shape ().

    params may be None: then it is about the updates alone.
    """
    return every(finite_after_by_path(params, updates).values())


def finite_by_path(tree: Any) -> dict[str, jax.Array]:
    """Of each array whether no number in it is infinite or NaN, shape ()."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): jnp.all(jnp.isfinite(leaf)) for path, leaf in leaves}


def finite_after_by_path(params: Any, updates: Any) -> dict[str, jax.Array]:
    """Of each update whether it is finite, and what it makes of a parameter that was, shape ()."""
    if params is None:
        return finite_by_path(updates)
    is_none = lambda x: x is None  # noqa: E731
    leaves = jax.tree_util.tree_leaves_with_path(updates, is_leaf=is_none)
    olds = jax.tree.structure(updates, is_leaf=is_none).flatten_up_to(params)
    return {
        jax.tree_util.keystr(path): _is_finite_after(old, update)
        for (path, update), old in zip(leaves, olds, strict=True)
        if update is not None
    }


def every(finite: Iterable[jax.Array]) -> jax.Array:
    """Whether all of them are true, shape ().

    By a quotient, which XLA computes once: what is cheap it computes once more for each array that is
    chosen by it, and compiles for 100 arrays what it compiles for one a hundred times.
    """
    others = functools.reduce(jnp.add, (1 - x.astype(jnp.float32) for x in finite), jnp.float32(0))
    return 1 / (1 + others) == 1


@jax.jit
def _is_finite_after(param: jax.Array, update: jax.Array) -> jax.Array:
    """Whether all of u is finite, and of θ + u where θ was, shape (). One dispatch outside of jit."""
    total = added(param, update)
    return jnp.all(jnp.isfinite(total) | (jnp.isfinite(update) & ~jnp.isfinite(param)))


def no_update(x: jax.Array) -> jax.Array:
    """-0.0: added to any number, 0.0 and -0.0 among them, it leaves every bit as it is."""
    return jnp.full_like(x, -0.0)
