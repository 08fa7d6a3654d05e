"""Optimizer state that is split over devices, wherever the parameters are: ZeRO."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .._core import pytrees
from .._core.lifted import Lifted
from .._core.storage.blocks import Quantized
from .._core.storage.sharding import Split, on_mesh, split_of
from .._core.transformation import data_of, member
from .._core.wrapper import Wrapper

Axes = str | Sequence[str]


def state_shardings(tx: optax.GradientTransformation, params: Any, axes: Axes) -> Any:
    """Where the state of an optimizer lies if it is split over mesh axes. Nothing is allocated.

    Each array of the state that goes with a parameter is split as the parameter is, and over these axes
    besides: along the first axis of the array that so many devices divide; of codes in blocks, the first
    along which blocks stay whole, if there is one. What nothing divides is on every device, as are
    counts, and what another library keeps that has no parameter's shape.

        places = aj.state_shardings(tx, params, "data")
        opt_state = jax.jit(tx.init, out_shardings=places)(params)

    `TrainState.create(params, tx, shard="data")` is the same for `train_step`, which computes each
    update where its slots lie, and leaves parameters as they are.

    Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054: ZeRO, its first stage, and in `train_step`
    the second. Parameters that are split themselves, as in its third and FSDP, have a state that is split
    like them, without this.

    Args:
      tx: the optimizer, of this library or another.
      params: the parameters on a mesh, as arrays, or as shapes with a sharding.
      axes: the name of an axis of that mesh, or several: `("replica", "data")`.

    Returns:
      A tree like the state, with a `NamedSharding` for each array.

    Raises:
      ValueError: for an axis that the mesh does not have, an axis named twice, and parameters that are
        on no mesh, by their path.
      TypeError: for what is no optimizer or no name of an axis.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> everywhere = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec())
      >>> params = {"w": jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=everywhere)}
      >>> places = aj.state_shardings(aj.sgd(0.1, momentum=0.9), params, "data")
      >>> print(places[0].trace["w"].spec[0])
      data
    """
    tx = member(tx, "state_shardings")
    arrays = pytrees.Arrays("params", params)
    mesh, axes = _mesh_of(arrays), (axes,) if isinstance(axes, str) else tuple(axes)
    _check_axes(axes, mesh)
    state = jax.eval_shape(tx.init, jax.tree.map(_shape_of, params))
    kept = list(kept_of_params(tx, state, params))
    specs = {}
    for path, param in zip(arrays.paths(), arrays.leaves, strict=True):
        if param is not None:
            own = [each for at, each in kept if at == path]
            specs[path] = _spec(param, own, axes, mesh)
    places = {
        id(leaf): _of_leaf(leaf, specs[path], axes, mesh)
        for path, each in kept
        for leaf in jax.tree.leaves(each)
    }
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: places.get(id(leaf), everywhere), state)


def placed_state(tx: optax.GradientTransformation, params: Any, axes: Axes | None) -> Any:
    """The shapes of an optimizer's state, each with where it lies; those of parameters on a mesh.

    axes: to split it over besides; None for where `tx.init` puts it.
    """
    tx, mesh = member(tx, "placed_state"), _mesh_of(pytrees.Arrays("params", params))
    state = jax.eval_shape(tx.init, jax.tree.map(_shape_of, params))
    if axes is None:
        places = jax.tree.map(lambda x: on_mesh(mesh, _names(x)), state)
    else:
        places = state_shardings(tx, params, axes)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places
    )


def _names(x: Any) -> list[Any]:
    return [
        each if len(each) > 1 else each[0] if each else None
        for each in split_of(x.sharding, len(x.shape))
    ]


def kept_of_params(tx: Any, state: Any, params: Any) -> Iterator[tuple[str, Any]]:
    """All that a state keeps for each parameter, with the parameter's path: a slot, a mean, a correction.

    params: the parameters, or what a group of them sees.
    """
    data = data_of(tx)
    if isinstance(data, Lifted):
        arrays = pytrees.Arrays("params", params)
        for rule, part in zip(data.rules, data.split(state), strict=True):
            for name in rule.slots:
                row = arrays.treedef.flatten_up_to(getattr(part, name))
                yield from _given(arrays, row)
    elif isinstance(data, Wrapper):
        every = zip(data.wrapped(), data.states_in(state), data.params_in(params), strict=True)
        for each in every:
            yield from kept_of_params(*each)
        for name in getattr(state, "_fields", ()):
            if name not in data.wraps.values():
                yield from _like(params, getattr(state, name))
    else:
        yield from _like(params, state)


def _given(arrays: pytrees.Arrays, row: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """What there is of a row, with the path of each array."""
    for path, param, each in zip(arrays.paths(), arrays.leaves, row, strict=True):
        if param is not None and each is not None:
            yield path, each


def _like(params: Any, tree: Any) -> Iterator[tuple[str, Any]]:
    """What each tree like the parameters, somewhere in another tree, has for each of them."""
    arrays = pytrees.Arrays("params", params)
    try:
        row = arrays.treedef.flatten_up_to(tree)
    except ValueError:
        if not jax.tree_util.all_leaves([tree]):
            for child in pytrees.children(tree)[0]:
                yield from _like(params, child)
        return
    yield from _given(arrays, row)


def _mesh_of(arrays: pytrees.Arrays) -> Any:
    """The mesh that all parameters are on."""
    mesh = None
    for path, param in zip(arrays.paths(), arrays.leaves, strict=True):
        sharding = getattr(param, "sharding", None)
        if param is None:
            continue
        if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
            raise ValueError(
                f"params{path} is {pytrees.describe(param)}, on no mesh: to split the state of an "
                "optimizer over devices, put the parameters on them first, "
                'jax.device_put(params, NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec())).'
            )
        mesh = mesh or sharding.mesh
    if mesh is None:
        raise ValueError("there is no parameter, and so no mesh to split a state over.")
    return mesh


def _check_axes(axes: tuple[Any, ...], mesh: Any) -> None:
    known = ", ".join(map(repr, mesh.axis_names))
    for axis in axes:
        if not isinstance(axis, str):
            raise TypeError(f"{axis!r:.80} is no name of an axis of the mesh, which has {known}.")
        if axis not in mesh.axis_names:
            raise ValueError(f"the mesh of the parameters has no axis {axis!r}: it has {known}.")
        if axes.count(axis) > 1:
            raise ValueError(f"the axis {axis!r} of the mesh is named twice: once is enough.")
    if not axes:
        raise ValueError(f"no axis is named to split the state over: the mesh has {known}.")


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
    """The shape of an array, with its sharding in its type, so that what is made like it has that too."""
    sharding = x.sharding
    mesh = sharding.mesh.abstract_mesh
    mesh = mesh.update_axis_types(dict.fromkeys(mesh.axis_names, AxisType.Explicit))
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=NamedSharding(mesh, sharding.spec))


def _spec(
    param: Any, kept: Sequence[Any], axes: tuple[str, ...], mesh: Any
) -> tuple[Split, int | None]:
    """How a parameter is split, and which of its axes is split further; None for none of them."""
    spec = split_of(param.sharding, len(param.shape))
    if not set(axes).isdisjoint(sum(spec, ())):
        return spec, None  # It is over these already.
    nodes = [x for x in kept if isinstance(x, Quantized)]
    possible = [
        axis
        for axis, size in enumerate(param.shape)
        if size and size % _count((*spec[axis], *axes), mesh) == 0
    ]

    def cuts_blocks(axis: int) -> bool:
        """Whether a block would lie on several devices."""
        count = _count((*spec[axis], *axes), mesh)
        sizes = [(x.codes.shape[axis], x.scales.shape[axis]) for x in nodes]
        return any(codes % scales or scales % count for codes, scales in sizes)

    return spec, min(possible, key=lambda axis: (cuts_blocks(axis), axis), default=None)


def _of_leaf(
    leaf: Any, of_param: tuple[Split, int | None], axes: tuple[str, ...], mesh: Any
) -> NamedSharding:
    """Where one array that is kept for a parameter lies.

    of_param: how the parameter is split, and which of its axes is split further.
    """
    spec, axis = of_param
    own = list(split_of(leaf.sharding, len(leaf.shape)))
    if axis is not None:
        is_like = len(leaf.shape) == len(spec)
        order = [axis] if is_like else range(len(leaf.shape))
        for place in order:
            wanted = (*own[place], *axes)
            size = leaf.shape[place]
            if size > 1 and size % _count(wanted, mesh) == 0:
                own[place] = wanted
                break
    names = [each if len(each) > 1 else each[0] if each else None for each in own]
    return on_mesh(mesh, names)


def _count(names: Sequence[str], mesh: Any) -> int:
    """Over how many devices."""
    return math.prod(mesh.shape[name] for name in names)
