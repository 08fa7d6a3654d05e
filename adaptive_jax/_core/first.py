"""What the state of a rule holds before the first update."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from .. import maths
from . import errors, pytrees
from .rule import Rule, Slot, trees_of
from .storage import base
from .storage.sharding import explicit_sharding, with_axes
from .views import View, views_of_arrays

Own = Mapping[str, Sequence[Any]]
"""Of each hyperparameter that is a tree, what it is for each array, None among them."""


def first_numbers(rule: Rule, name: str, dtype: Any, params: Any, own: Own) -> Any:
    """What the state holds at first of one of a rule's scalars; for a layerwise rule a tree of them."""
    if pytrees.is_placeholder(params):
        return jnp.zeros((), dtype)  # For all parameters, the one number.
    first = rule.scalars[name]
    if isinstance(first, str) and first in own:
        if not rule.layerwise:
            raise ValueError(
                f"{first} is a tree in {type(rule).__name__}, and the first value of {name}, which is one "
                "number for all arrays: it must be one number, or an array of shape ()."
            )
        # Copies, here and below: a donated state holds no buffer twice, nor a hyperparameter's.
        numbers = [None if each is None else jnp.array(each, dtype) for each in own[first]]
        return pytrees.Arrays("params", params).treedef.unflatten(numbers)
    value = getattr(rule, first) if isinstance(first, str) else first
    if isinstance(value, tuple):
        number = jnp.stack([jnp.asarray(each, dtype) for each in value])
    else:
        number = jnp.array(value, dtype)
    if not rule.layerwise:
        return number
    return jax.tree.map(lambda _: jnp.array(number), params)


def first_values(rule: Rule, name: str, storage: base.Storage, params: Any, own: Own) -> Any:
    """What the state holds at first of one of a rule's slots, a tree like the parameters."""
    slot = rule.slots[name]
    initial: Any = slot.initial
    if isinstance(initial, str) and initial != "param":
        # Of a tree each array has its own, below, and a placeholder of all parameters none.
        is_tree = initial in own or (pytrees.is_placeholder(params) and trees_of(rule))
        initial = 0.0 if is_tree else getattr(rule, initial)
    is_number = not (isinstance(initial, str) or callable(initial))
    leaves, treedef = jax.tree.flatten(params)
    views = views_of_arrays(rule, "params", params)
    if slot.shape is not None and pytrees.is_placeholder(params):
        return jnp.zeros(())  # Of other shapes than the parameters: one array stands for all.

    def init_tree(value: Any, tree: Any) -> Any:
        """The slot of the arrays of a tree, which has None where it leaves one out."""
        if slot.shape is None:
            return storage.init_tree(value, tree, real=slot.nonnegative)
        arrays = jax.tree.leaves(tree, is_leaf=lambda x: x is None)
        in_order = iter(  # As `init_tree` goes through the arrays.
            [
                seen
                for seen, x in zip(views, arrays, strict=True)
                if seen is not None and x is not None
            ]
        )
        return storage.init_tree(
            value,
            tree,
            real=slot.nonnegative,
            like=lambda param: _like(slot, param, next(in_order)),
        )

    if isinstance(slot.initial, str) and slot.initial in own:
        return _of_each(init_tree, own[slot.initial], params)
    number: Any = initial if is_number else 0.0
    stored = init_tree(number, params)
    if is_number:
        return stored
    of_arrays = [seen for seen in views if seen is not None]
    found = zip(leaves, of_arrays, treedef.flatten_up_to(stored), strict=True)
    new = [
        None if like is None else _first_value(rule, name, storage, param, seen, like, index)
        for index, (param, seen, like) in enumerate(found)
    ]
    return treedef.unflatten(new)


def _of_each(init_tree: Callable[..., Any], firsts: Sequence[Any], params: Any) -> Any:
    """A slot of each array, where the hyperparameter that is its first value is a tree."""
    arrays = pytrees.Arrays("params", params)
    made: list[Any] = [None] * len(firsts)
    for value in {id(first): first for first in firsts if first is not None}.values():
        places = [place for place, first in enumerate(firsts) if first is value]
        part = [x if place in places else None for place, x in enumerate(arrays.leaves)]
        found = arrays.treedef.flatten_up_to(init_tree(value, arrays.treedef.unflatten(part)))
        for place in places:
            made[place] = found[place]
    return arrays.treedef.unflatten(made)


def _like(slot: Slot, param: Any, seen: View) -> Any:
    """An array of the shape of the slot, divided over devices as the axes that it has of the parameter."""
    own = seen.slot_shape(slot)
    if own is None:
        return None
    sharding = with_axes(param, own, seen.slot_axes(slot))
    return jnp.zeros(own, jnp.result_type(param), device=sharding)


def _first_value(
    rule: Rule, name: str, storage: base.Storage, param: Any, seen: View, stored: Any, index: int
) -> Any:
    slot = rule.slots[name]
    if slot.initial == "param" and slot.constant:
        return jnp.array(param, copy=True)
    dtype = maths.compute_dtype(jnp.result_type(param))
    value = lax.convert_element_type(param, dtype)
    if callable(slot.initial):
        what = f"the first value of {type(rule).__name__}'s slot {name}"
        with errors.of_function(what):
            value = slot.initial(seen.to_matrices(value))
        is_seen = slot.shape is None
        value = _filled(what, value, seen.shape if is_seen else seen.slot_shape(slot))
        value = seen.back(value) if is_seen else value
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
    if isinstance(new, Tracer) or isinstance(like, Tracer):
        sharding = explicit_sharding(like, like.shape)
        return new if sharding is None else jax.sharding.reshard(new, sharding)
    if not isinstance(like.sharding, jax.sharding.NamedSharding):
        return new
    return jax.device_put(new, like.sharding)
