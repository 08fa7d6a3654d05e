"""Whether updates are finite, and what they leave finite."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .precision import added


def all_finite(tree: Any) -> jax.Array:
    """Whether no number in the tree is infinite or NaN, shape ()."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, leaves, jnp.ones((), jnp.bool_))


def finite_after(params: Any, updates: Any) -> jax.Array:
    """Whether no update is infinite or NaN, nor makes a parameter so that was not, shape ().

    params may be None: then it is about the updates alone.
    """
    if params is None:
        return all_finite(updates)
    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    finite = [
        _is_finite_after(old, update)
        for old, update in zip(treedef.flatten_up_to(params), leaves, strict=True)
        if update is not None
    ]
    return functools.reduce(jnp.logical_and, finite, jnp.ones((), jnp.bool_))


@jax.jit
def _is_finite_after(param: jax.Array, update: jax.Array) -> jax.Array:
    """Whether all of u is finite, and of θ + u where θ was, shape (). One dispatch outside of jit."""
    total = added(param, update)
    return jnp.all(jnp.isfinite(total) | (jnp.isfinite(update) & ~jnp.isfinite(param)))


def no_update(x: jax.Array) -> jax.Array:
    """-0.0: added to any number, 0.0 and -0.0 among them, it leaves every bit as it is."""
    return jnp.full_like(x, -0.0)
