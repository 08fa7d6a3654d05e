"""On which devices restored arrays go, and as what Orbax makes them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from ..._core.placement import is_key, put
from .entries import is_number


def placing(leaves: Iterable[Any], read: Callable[[], Any]) -> Callable[[str, Any], Any]:
    """A function from the name of an entry and its sharding, or None, to where to put it.

    read: a function that reads what the checkpoint says of its arrays, which takes time.
    """
    metadata = functools.cache(read)
    given = [getattr(leaf, "sharding", None) for leaf in leaves]
    meshes = [each.mesh for each in given if isinstance(each, NamedSharding)]

    @functools.cache
    def of_devices(mesh: Any) -> Any:
        """A mesh of devices: shapes that were made under an explicit mesh know its axes alone."""
        if not isinstance(mesh, AbstractMesh):
            return mesh
        if hasattr(jax.sharding, "get_mesh"):  # Since jax 0.9.
            here = jax.sharding.get_mesh()
            if here.abstract_mesh == mesh:
                return here
        return jax.make_mesh(mesh.axis_sizes, mesh.axis_names, axis_types=mesh.axis_types)

    def everywhere() -> Any:
        mesh = next((of_devices(mesh) for mesh in meshes if mesh.size > 1), None)
        if mesh is None and jax.process_count() == 1:
            return SingleDeviceSharding(jax.devices()[0])
        return NamedSharding(
            mesh or jax.make_mesh((jax.device_count(),), ("all",)), PartitionSpec()
        )

    def place(name: str, sharding: Any) -> Any:
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
            spec = list(sharding.spec)
            while spec and spec[-1] is None:  # P("x", None) is P("x"), but compiles once more.
                spec.pop()
            return NamedSharding(of_devices(sharding.mesh), PartitionSpec(*spec))
        if sharding is not None:
            return sharding
        if not meshes and (saved := metadata()[name].sharding) is not None:
            try:
                return saved.to_jax_sharding()
            except (ValueError, KeyError, IndexError):
                pass  # Of devices that are not there.
        return everywhere()

    return place


def abstract(name: str, leaf: Any, shape: Any, dtype: str, place: Callable[..., Any]) -> Any:
    """What Orbax is to make: an array with the sharding of leaf, or a NumPy array.

    leaf: what the state has; None for what it has no place for.
    """
    if dtype == "number":
        if is_number(leaf):
            return np.asarray(leaf)
        is_float = leaf is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
        return np.asarray(0.0 if is_float else 0)
    if is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, leaf)
        sharding = (jax.random.key_data(leaf) if isinstance(leaf, jax.Array) else leaf).sharding
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=place(name, sharding))
    dtype = dtype if leaf is None or is_number(leaf) else leaf.dtype
    sharding = place(name, getattr(leaf, "sharding", None))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def as_in_state(value: Any, leaf: Any) -> Any:
    """What was saved, as the state has it; a Python number as what it was."""
    if is_number(value):
        return value
    if is_number(leaf):
        return type(leaf)(value)
    if is_key(leaf):
        impl = jax.random.key_impl(jnp.empty((), leaf.dtype))
        return jax.random.wrap_key_data(value, impl=impl)
    return value


def fresh(value: Any, leaf: Any) -> jax.Array:
    """The value as an array of its own, like leaf: what a step donates is donated once."""
    new = jnp.array(value, leaf.dtype)
    sharding = getattr(leaf, "sharding", None)
    return new if sharding is None else put(new, sharding)


def room() -> dict[Any, int]:
    """The bytes that each device of this process has left. Not every device tells: CPUs do not."""
    found = {device: device.memory_stats() or {} for device in jax.local_devices()}
    return {
        device: stats["bytes_limit"] - stats["bytes_in_use"]
        for device, stats in found.items()
        if {"bytes_limit", "bytes_in_use"} <= stats.keys()
    }


def check_room(wanted: Mapping[str, Any], room: Mapping[Any, int]) -> None:
    """Raises a ValueError for arrays that are larger than what a device has left.

    wanted: by their names, with the shardings that they are to have.
    room: from devices to bytes.
    """
    needed = dict.fromkeys(room, 0)
    largest: dict[Any, tuple[int, str]] = dict.fromkeys(room, (0, ""))
    for name, x in wanted.items():
        if not isinstance(x, jax.ShapeDtypeStruct) or x.sharding is None:
            continue
        if x.sharding.memory_kind not in (None, "device"):  # In the memory of the host.
            continue
        size = math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for device in needed.keys() & x.sharding.device_set:
            needed[device] += size
            largest[device] = max(largest[device], (size, name))
    for device, size in needed.items():
        if size > room[device]:
            most, name = largest[device]
            raise ValueError(
                f"the checkpoint needs {size:,} bytes on {device}, which has {room[device]:,} left; the "
                f"most, {most:,}, are {name}. Give a state that is split over more devices (shard= of "
                "TrainState.create, or the parameters themselves), or let go of what is there: "
                "jax.eval_shape makes a state without arrays to restore into."
            )
