"""What the slots of a rule hold before the first update."""

from __future__ import annotations

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from .. import maths
from . import errors, pytrees
from .rule import Rule, Slot
from .storage import base
from .storage.sharding import with_axes


def first_values(rule: Rule, name: str, storage: base.Storage, params: Any) -> Any:
    """What the state holds at first of one of a rule's slots, a tree like the parameters."""
    slot = rule.slots[name]
    initial: Any = slot.initial
    if isinstance(initial, str) and initial != "param":
        initial = getattr(rule, initial)
    is_number = not (isinstance(initial, str) or callable(initial))
    like = {}
    if slot.shape is not None:
        if pytrees.is_placeholder(params):
            return jnp.zeros(())  # Of other shapes than the parameters: one array stands for all.
        like = {"like": functools.partial(_like, slot)}
    number: Any = initial if is_number else 0.0
    stored = storage.init_tree(number, params, real=slot.nonnegative, **like)
    if is_number:
        return stored
    leaves, treedef = jax.tree.flatten(params)
    found = zip(leaves, treedef.flatten_up_to(stored), strict=True)
    new = [
        None if like is None else _first_value(rule, name, storage, param, like, index)
        for index, (param, like) in enumerate(found)
    ]
    return treedef.unflatten(new)


def _like(slot: Slot, param: Any) -> Any:
    """An array of the shape of the slot, divided over devices as the axes that it has of the parameter."""
    shape = np.shape(param)
    own = slot.shape_for(shape)
    if own is None:
        return None
    sharding = with_axes(param, own, slot.axes_for(shape))
    return jnp.zeros(own, jnp.result_type(param), device=sharding)


def _first_value(
    rule: Rule, name: str, storage: base.Storage, param: Any, stored: Any, index: int
) -> Any:
    slot = rule.slots[name]
    if slot.initial == "param" and slot.constant:
        return jnp.array(param, copy=True)
    dtype = maths.compute_dtype(jnp.result_type(param))
    value = lax.convert_element_type(param, dtype)
    if callable(slot.initial):
        what = f"the first value of {type(rule).__name__}'s slot {name}"
        with errors.of_function(what):
            value = slot.initial(value)
        value = _filled(what, value, slot.shape_for(np.shape(param)))
    value = maths.saturating_cast(value, jnp.finfo(dtype).dtype if slot.nonnegative else dtype)
    key = None
    if storage.stochastic:
        salt = zlib.crc32(name.encode())
        key = maths.random_key(jnp.zeros((), jnp.int32), np.uint32(index), salt)
    new = storage.encode(value, stored, key)
    # A donated state must not hold the user's parameters, nor one array twice.
    return jax.tree.map(_placed, new, stored)


def _filled(what: str, value: Any, shape: Any) -> jax.Array:
    value = jnp.asarray(value)
    try:
        if jnp.broadcast_shapes(value.shape, shape) == shape:
            return value if value.shape == shape else jnp.full(shape, value)
    except ValueError:
        pass
    raise ValueError(f"{what} is {pytrees.describe(value)}, and the slot has the shape {shape}.")


def _placed(new: jax.Array, like: jax.Array) -> jax.Array:
    """A copy on the devices of another array."""
    new = jnp.array(new, like.dtype, copy=True)
    is_placed = isinstance(new, Tracer) or isinstance(like, Tracer)
    if is_placed or not isinstance(like.sharding, jax.sharding.NamedSharding):
        return new
    return jax.device_put(new, like.sharding)
