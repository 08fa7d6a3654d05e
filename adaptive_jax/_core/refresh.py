"""What is computed every so many steps, whatever is mapped over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import eval_jaxpr
from jax.custom_batching import custom_vmap

from . import arguments
from .pytrees import describe


def refreshed(
    of: str,
    step: Any,
    index: Any,
    k: Any,
    function: Callable[..., Any],
    old: Any,
    args: tuple[Any, ...],
    first: Callable[..., Any] | None,
    spread: bool,
) -> Any:
    """`Context.refresh`, of the step and the place of the array. of: who calls it."""
    if step is None:
        raise ValueError(
            f"{of} asks for ctx.refresh, which counts steps, and its rule does not: counts_steps = True."
        )
    is_told = isinstance(k, jax.Array) and k.shape == () and k.dtype == bool
    if not is_told:
        k = arguments.whole("k", k, 1, f" in ctx.refresh, in {of}")
    elif spread:
        raise ValueError(
            f"{of} asks for ctx.refresh, with k saying whether it is due, and spread=True, which is for "
            "every k steps: leave it out."
        )
    old, args = lax.stop_gradient((old, args))
    usual = _whole_or_old(of, function)
    if is_told:
        due: Any = k
    elif k == 1:
        due = True
    else:
        place = lax.convert_element_type(jnp.asarray(index) % np.uint32(k), jnp.int32)
        due = (step - 1) % k == (place if spread else 0)
        if spread and first is None:
            due = due | (step == 1)
    if first is None:
        return usual(old, *args) if due is True else _cond(due, usual, old, args)
    is_first = step == 1
    later = _cond(~is_first if due is True else due & ~is_first, usual, old, args)
    return _cond(is_first, _whole_or_old(of, first), later, args)


def _whole_or_old(of: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of old values and others that keeps the old ones where it gives one that is not finite."""

    def new_or_old(old: Any, *args: Any) -> Any:
        new = function(old, *args)
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (old, new)]
        if shapes[0] != shapes[1]:
            shown = [jax.tree.map(describe, tree) for tree in (new, old)]
            raise ValueError(
                f"the function of ctx.refresh, in {of}, returned {shown[0]}, where the old value is "
                f"{shown[1]}: it must return the same structure and shapes."
            )
        new = jax.tree.map(_like, new, old)
        is_whole = jnp.array(True)
        for leaf, before in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
            if leaf is not before and jnp.issubdtype(leaf.dtype, jnp.inexact):
                is_whole = is_whole & jnp.all(jnp.isfinite(leaf))
        # Of what is handed on too: JAX takes what a branch does not touch past it, and nothing would wait.
        return jax.tree.map(lambda x, y: jnp.where(is_whole, x, y), new, old)

    return new_or_old


def _like(new: Any, old: jax.Array) -> jax.Array:
    """A value in the dtype of another one, and on an explicit mesh divided as it is."""
    new = lax.convert_element_type(new, old.dtype)
    sharding = getattr(jax.typeof(old), "sharding", None)
    if sharding is None or jax.typeof(new).sharding == sharding or sharding.mesh.empty:
        return new
    return jax.sharding.reshard(new, sharding)


def _cond(due: Any, function: Callable[..., Any], old: Any, args: tuple[Any, ...]) -> Any:
    """function(old, *args) where it is due, and else old: under `vmap` a branch still.

    `lax.cond` of many conditions computes both sides for all of them. Here the function is computed for
    all where it is due for one.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(old, *args)
    numbers = lax.stop_gradient(closed.consts)  # Which the function closes over.
    structure = jax.tree.structure(shape)

    def new(old: Any, numbers: Any, args: Any) -> Any:
        leaves = jax.tree.leaves((old, args))
        return structure.unflatten(eval_jaxpr(closed.jaxpr, numbers, *leaves))

    return _branch(new)(due, old, list(numbers), args)


def _branch(new: Callable[..., Any]) -> Callable[..., Any]:
    @custom_vmap
    def branch(due: Any, old: Any, numbers: Any, args: Any) -> Any:
        return lax.cond(due, new, lambda old, *_: old, old, numbers, args)

    @branch.def_vmap
    def many(size: int, batched: Any, due: Any, old: Any, numbers: Any, args: Any) -> Any:
        is_many, *are_many = batched
        # What comes out is of many: what goes in as well.
        old = jax.tree.map(
            lambda x, has: x if has else jnp.broadcast_to(x, (size, *x.shape)), old, are_many[0]
        )
        axes = (0, *(jax.tree.map(lambda has: 0 if has else None, each) for each in are_many[1:]))

        def of_many(old: Any, due: Any, rest: Any) -> Any:
            found = jax.vmap(new, in_axes=axes, axis_size=size)(old, *rest)

            def chosen(x: jax.Array, y: jax.Array) -> jax.Array:
                return jnp.where(lax.expand_dims(due, range(1, x.ndim)), x, y)

            return jax.tree.map(chosen, found, old) if is_many else found

        any_due = jnp.any(due) if is_many else due
        result = _branch(of_many)(any_due, old, due, (numbers, args))
        return result, jax.tree.map(lambda _: True, result)

    return branch


def branch(due: Any, function: Callable[[Any], Any], old: Any) -> Any:
    """function(old) where it is due, and else old: a branch under `vmap` too, as of `Context.refresh`.

    Nothing is differentiated through what the function closes over.
    """
    return _cond(due, function, old, ())
