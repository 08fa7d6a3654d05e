"""Arrays on the devices where others are, of which some may be those of other processes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding

from .storage.sharding import on_mesh


def is_key(x: Any) -> bool:
    """Whether it is a random key, or the shape of one; not one of the old, which are integers."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def put(x: Any, sharding: Any) -> Any:
    """An array of this process on the devices of a sharding, of which some may be those of others."""
    if is_key(x):
        data = put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    # `device_put` onto one device of each of several processes makes arrays that cannot be saved.
    whole = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: whole[index])


def beside(params: Any, tree: Any) -> Any:
    """A tree as a step leaves it, which else would be compiled once more for what it returned.

    What is on one device, such as a count, goes onto all those of the mesh of the parameters; and how an
    array is divided is written as JAX writes it.
    """
    shardings = [_sharding(x) for x in jax.tree.leaves(params)]
    meshes = (x.mesh for x in shardings if isinstance(x, NamedSharding))
    mesh = next((mesh for mesh in meshes if isinstance(mesh, Mesh)), None)
    if mesh is None:
        return tree

    def placed(x: Any) -> Any:
        sharding = _sharding(x)
        if isinstance(sharding, SingleDeviceSharding):
            return put(x, on_mesh(mesh, [None] * x.ndim))
        if isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types:
            missing = [None] * (x.ndim - len(sharding.spec))
            if missing and not is_key(x):
                return jax.device_put(x, sharding.update(spec=(*sharding.spec, *missing)))
        return x

    return jax.tree.map(placed, tree)


def _sharding(x: Any) -> Any:
    """Where an array lies; None for one that is being traced, and for what is none."""
    return x.sharding if isinstance(x, jax.Array) and not isinstance(x, Tracer) else None
