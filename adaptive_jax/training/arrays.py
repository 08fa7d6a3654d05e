"""Where the arrays of a tree are in memory, and whether they have been computed or written over."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer


def arrays_of(tree: Any) -> list[Any]:
    """The arrays that are in a tree, but for those that are being traced."""
    leaves = jax.tree.leaves(tree)
    return [x for x in leaves if isinstance(x, jax.Array) and not isinstance(x, Tracer)]


def buffers_of(x: Any) -> set[Any]:
    """Where an array is in the memory of each device: two arrays can be one there."""
    try:
        if len(x.devices()) == 1:
            return {x.unsafe_buffer_pointer()}
        return {shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards}
    except Exception:  # Not every backend tells.
        return {id(x)}


def own_copies(opt_state: Any, others: Any) -> Any:
    """The optimizer's state without arrays that are elsewhere too, or there twice: copies of these.

    A step writes over each array once. Other libraries keep the parameters themselves in their states,
    and arrays of the user's, which are numbers usually.
    """
    taken = {buffer for x in arrays_of(others) for buffer in buffers_of(x)}

    def own(x: Any) -> Any:
        if not isinstance(x, jax.Array) or isinstance(x, Tracer):
            return x
        buffers = buffers_of(x)
        if x.ndim == 0 or buffers & taken:
            return jnp.copy(x)
        taken.update(buffers)
        return x

    return jax.tree.map(own, opt_state)


def is_spread(x: Any) -> bool:
    """Whether it is on several devices."""
    sharding = None if isinstance(x, Tracer) else getattr(x, "sharding", None)
    return sharding is not None and sharding.num_devices > 1


def is_used_up(tree: Any) -> bool:
    """Whether a step has written over an array."""
    return any(x.is_deleted() for x in arrays_of(tree))


def is_ready(x: Any) -> bool:
    """Whether an array has been computed. Random keys do not tell, and the step has them from others."""
    return not hasattr(x, "is_ready") or x.is_ready()


def has_arrived(tree: Any, seconds: float) -> bool:
    """Whether all arrays have been computed within so many seconds, or have failed."""
    end = time.monotonic() + seconds
    for x in arrays_of(tree):
        while not (x.is_deleted() or is_ready(x)):
            if time.monotonic() > end:
                return False
            time.sleep(0.001)
    return True


def is_there(tree: Any, wait: bool) -> bool:
    """Whether all arrays have been computed, without an error: in the end, or by now."""
    try:
        arrays = arrays_of(tree)
        if is_used_up(arrays) or not (wait or all(map(is_ready, arrays))):
            return False
        jax.block_until_ready(arrays)
    except Exception:
        return False
    return True


def is_lost(state: Any, wait: bool) -> bool:
    """Whether the state was written over by a step that failed, as far as is known by now."""
    arrays = arrays_of(state)
    if is_used_up(arrays):
        return True
    try:
        jax.block_until_ready([x for x in arrays if wait or is_ready(x)])
    except Exception:
        return True
    return False
