"""Arrays that are divided over devices, while they are encoded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import AxisType, NamedSharding, PartitionSpec

try:
    from jax.experimental.shard_alike import shard_alike
except ImportError:  # jax 0.12 has it no more.
    shard_alike = None


def sharding_of(param: Any, shape: tuple[int, ...]) -> Any:
    """The sharding for an array with the axes of param, split where it is if their lengths allow."""
    if isinstance(param, Tracer):
        return explicit_sharding(param, shape)
    return _split_like(getattr(param, "sharding", None), shape)


def explicit_sharding(x: Any, shape: tuple[int, ...]) -> Any:
    """The same for an array that is traced, if its type is sharded, on an explicit mesh; or None."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    if not any(axes is not None for axes in getattr(sharding, "spec", ())):
        return None
    return _split_like(sharding, shape)


def whole(x: jax.Array) -> jax.Array:
    """An array on every device, if its type is sharded: to be sorted, or joined with others."""
    return x if explicit_sharding(x, x.shape) is None else resharded(x, PartitionSpec())


def resharded(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    sharding: Any = jax.typeof(x).sharding if isinstance(x, Tracer) else x.sharding
    return jax.sharding.reshard(x, sharding.update(spec=spec))


def divided_as(old: jax.Array, new: jax.Array) -> jax.Array:
    """What takes the place of an array, divided over devices as that is.

    A product of matrices is divided as the compiler likes, and the next step would be another program.
    What is computed element by element is divided as it was without this.

    To be called where each array is traced by itself.
    """
    if shard_alike is None:
        return new
    # JAX lowers equal operations once, and all arrays of a shape would be divided as the first of them.
    with set_xla_metadata(array=str(next(_OPERATIONS))):
        return shard_alike(old, new)[1]


_OPERATIONS = itertools.count()


def _split_like(sharding: Any, shape: tuple[int, ...]) -> Any:
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return None
    spec = (*sharding.spec, *[None] * len(shape))[: len(shape)]
    split = []
    for size, axes in zip(shape, spec, strict=True):
        names = axes if isinstance(axes, tuple) else () if axes is None else (axes,)
        parts = math.prod(sharding.mesh.shape[name] for name in names)
        split.append(axes if size % parts == 0 else None)
    return on_mesh(sharding.mesh, split)


def on_mesh(mesh: Any, split: Sequence[Any]) -> NamedSharding:
    """How an array is split, written as JAX writes that of a result: else it would compile twice.

    split: for each axis of the array those of the mesh.
    """
    split = list(split)
    while split and split[-1] is None and AxisType.Explicit not in mesh.axis_types:
        split.pop()
    return NamedSharding(mesh, PartitionSpec(*split))


Split = tuple[tuple[str, ...], ...]
"""For each axis of an array the axes of the mesh that it is split over."""


def split_of(sharding: Any, ndim: int) -> Split:
    """How an array with so many axes is split; nowhere if its sharding is on no mesh."""
    spec = (*getattr(sharding, "spec", ()), *[None] * ndim)[:ndim]
    return tuple((each,) if isinstance(each, str) else tuple(each or ()) for each in spec)


def with_axes(param: Any, shape: tuple[int, ...], axes: Sequence[int | None]) -> Any:
    """The sharding for an array some of whose axes are those of param, and the others on every device.

    axes: for each axis of shape that of param, or None. An axis that it has twice is split once.
    """
    if isinstance(param, Tracer):
        sharding: Any = explicit_sharding(param, param.shape)
    else:
        sharding = getattr(param, "sharding", None)
    # That of a single device would bind the array to it, and compile a second time.
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return None
    spec = (*sharding.spec, *[None] * len(param.shape))
    first = [axis if axes.index(axis) == place else None for place, axis in enumerate(axes)]
    return on_mesh(sharding.mesh, [None if axis is None else spec[axis] for axis in first])
