"""Matrices whose state is divided over devices: each device works on a share of them, which it has whole.

A compiler divides each product of matrices that are divided, and has them gathered for each: for Muon some
twenty times in an update. Here the devices exchange their parts of many equal matrices once, so that each
has some as a whole, and once more afterwards. A rule sees what it sees on one device.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .plan import Plan
from .storage.sharding import Split, split_of
from .views import view


@dataclass(frozen=True)
class KnownPlaces:
    """Where arrays lie that go with parameters, on a mesh whose axes are not in their types.

    items: for the path of a parameter and the shape of an array that goes with it, its sharding.
    """

    items: frozenset[tuple[tuple[str, tuple[int, ...]], NamedSharding]]

    @functools.cached_property
    def of(self) -> Mapping[tuple[str, tuple[int, ...]], NamedSharding]:
        """The same to look things up in."""
        return dict(self.items)


_known: ContextVar[KnownPlaces | None] = ContextVar("_known", default=None)


@contextlib.contextmanager
def known_places(places: KnownPlaces | None) -> Iterator[None]:
    """Tells the updates that are traced meanwhile where their arrays lie."""
    token = _known.set(places)
    try:
        yield
    finally:
        _known.reset(token)


def places_for(rules: Sequence[Any]) -> KnownPlaces | None:
    """What is known of where arrays lie, for rules some of which see matrices; no others ask for it."""
    return _known.get() if any(rule.matrix for rule in rules) else None


def in_shares(
    function: Callable[..., tuple[Any, Any]],
    arrays: Mapping[int, tuple[Plan, tuple[Any, ...]]],
    paths: Sequence[str],
    places: KnownPlaces | None,
) -> dict[int, tuple[Any, Any]]:
    """The results for those arrays that devices share out, by their places.

    All others are left: those that are not divided or only into whole matrices, as layers are; those that
    no rule multiplies; and few equal ones, for which devices would wait: these the compiler divides.

    function: the update, of a plan and what there is of an array: the gradient, what is kept for it, and
      all else. It returns what comes of the first two.
    arrays: the arguments for each, by its place. Equal arrays have one and the same plan.
    paths: those of all parameters.
    places: where arrays lie, if their types do not say it.
    """
    equal: dict[Any, list[int]] = {}
    for at, (plan, arguments) in arrays.items():
        sharing = _sharing_of(plan, arguments, paths[at], places)
        if sharing is not None:
            leaves, structure = jax.tree.flatten(arguments)
            kinds = tuple([(np.shape(x), jnp.result_type(x)) for x in leaves])
            equal.setdefault((id(plan), sharing, structure, kinds), []).append(at)
    results = {}
    for (_, sharing, *_), group in equal.items():
        plan, arguments = arrays[group[0]]
        is_worth_it = len(group) >= min(sharing.parts / 2, _MANY)
        if is_worth_it and _multiplies(jax.make_jaxpr(function)(plan, *arguments).jaxpr):
            found = _shared_out(function, sharing, plan, [arrays[at][1] for at in group])
            results |= zip(group, found, strict=True)
    return results


_MANY = 8
"""So many equal matrices are shared out among any number of devices, if most of these have none at all."""


@dataclass(frozen=True)
class _Sharing:
    """How equal arrays are shared out among the devices of a mesh, and how each lies before and after.

    names: the axes of the mesh over which something of them is divided, in the order in which they are
      shared out: of several along one axis of an array, the last one first.
    splits: how each leaf of the arguments of an update is divided.
    """

    mesh: Any
    names: tuple[str, ...]
    splits: tuple[Split, ...]

    @property
    def parts(self) -> int:
        """Over how many devices."""
        return math.prod(self.mesh.shape[name] for name in self.names)


def _sharing_of(
    plan: Plan, arguments: tuple[Any, ...], path: str, places: KnownPlaces | None
) -> _Sharing | None:
    """How arrays like this one would be shared out; None for one that is no matrix, or whole somewhere."""
    axes = [stage.axes for stage in plan.stages if stage is not None and stage.axes is not None]
    leaves = jax.tree.leaves(arguments)
    found = [_sharding(leaf, path, places) for leaf in leaves]
    meshes = {sharding.mesh for sharding in found if sharding is not None}
    if not axes or len(meshes) != 1:
        return None
    [mesh] = meshes
    if set(mesh.axis_types) not in ({AxisType.Auto}, {AxisType.Explicit}):
        return None
    splits = tuple(split_of(x, np.ndim(leaf)) for leaf, x in zip(leaves, found, strict=True))
    names, shape = _in_order(splits), np.shape(leaves[0])
    divided = {
        axis
        for leaf, split in zip(leaves, splits, strict=True)
        for axis, over in enumerate(split)
        if over and np.shape(leaf) == shape
    }
    are_whole = divided and all(divided <= {*view(each, shape).kept[:-2]} for each in axes)
    return None if not names or are_whole else _Sharing(mesh, names, splits)


def _sharding(x: Any, path: str, places: KnownPlaces | None) -> Any:
    """How an array lies on a mesh, by its type or as it is known; None on none."""
    own = getattr(jax.typeof(x), "sharding", None)
    if own is not None and not own.mesh.empty and AxisType.Auto not in own.mesh.axis_types:
        return own
    return None if places is None else places.of.get((path, np.shape(x)))


def _in_order(splits: Sequence[Split]) -> tuple[str, ...]:
    """All axes of a mesh over which arrays are divided, inner ones first; none where they disagree."""
    groups = {over[::-1] for split in splits for over in split if over}
    order = tuple(dict.fromkeys(itertools.chain(*sorted(groups, key=lambda x: (-len(x), x)))))
    agree = all([*group] == sorted(group, key=order.index) for group in groups)
    return order if agree else ()


def _multiplies(jaxpr: Any) -> bool:
    """Whether matrices are multiplied in it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general" and equation.outvars[0].aval.ndim > 1:
            return True
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns") and _multiplies(inner):
                    return True
    return False


def _shared_out(
    function: Callable[..., tuple[Any, Any]],
    sharing: _Sharing,
    plan: Plan,
    arrays: Sequence[tuple[Any, ...]],
) -> list[tuple[Any, Any]]:
    """The results of a function for equal arrays, each found by one device as if there were no other.

    Where the number of devices does not divide that of the arrays, the last one is computed more than once.

    arrays: what there is of each.
    """
    structure, like = jax.tree.structure(arrays[0]), arrays[0][:2]
    columns = [[*column] for column in zip(*map(jax.tree.leaves, arrays), strict=True)]
    specs = [[PartitionSpec(*split)] * len(arrays) for split in sharing.splits]
    results = sharing.splits[: len(jax.tree.leaves(like))]
    share = -(-len(arrays) // sharing.parts)

    def of_device(plan: Plan, columns: Any) -> Any:
        own = [
            _taken(column, share * sharing.parts, split, sharing)
            for column, split in zip(columns, sharing.splits, strict=True)
        ]
        each = [
            jax.tree.leaves(function(plan, *jax.tree.unflatten(structure, [x[i] for x in own])))
            for i in range(share)
        ]
        return [
            _given_back(jnp.stack(column), len(arrays), split, sharing)
            for column, split in zip(zip(*each, strict=True), results, strict=True)
        ]

    if AxisType.Explicit in sharing.mesh.axis_types:
        plan = jax.tree.map(lambda x: _resharded(x, sharing.mesh, PartitionSpec()), plan)
        columns = [
            [_resharded(x, sharing.mesh, spec) for x, spec in zip(*each, strict=True)]
            for each in zip(columns, specs, strict=True)
        ]
    found = jax.shard_map(
        of_device,
        mesh=sharing.mesh,
        in_specs=(PartitionSpec(), specs),
        out_specs=specs[: len(results)],
        check_vma=False,  # What every device has is alike: all are given the same.
    )(plan, columns)
    of_each = zip(*found, strict=True)
    return [jax.tree.unflatten(jax.tree.structure(like), leaves) for leaves in of_each]


def _resharded(x: Any, mesh: Any, spec: PartitionSpec) -> jax.Array:
    return jax.sharding.reshard(jnp.asarray(x), NamedSharding(mesh, spec))


def _taken(column: Sequence[Any], count: int, split: Split, sharing: _Sharing) -> jax.Array:
    """A device's share of equal arrays, of what it has of all of them."""
    x = jnp.stack([*column, *[column[-1]] * (count - len(column))])
    for name in sharing.names:
        axis, size = _axis(split, name), x.shape[0] // sharing.mesh.shape[name]
        if axis is None:
            x = lax.dynamic_slice_in_dim(x, lax.axis_index(name) * size, size)
        else:
            x = lax.all_to_all(x, name, split_axis=0, concat_axis=axis + 1, tiled=True)
    return x


def _given_back(x: jax.Array, count: int, split: Split, sharing: _Sharing) -> list[jax.Array]:
    """The reverse of `_taken`, of so many arrays."""
    for name in reversed(sharing.names):
        axis = _axis(split, name)
        if axis is None:
            x = lax.all_gather(x, name, axis=0, tiled=True)
        else:
            x = lax.all_to_all(x, name, split_axis=axis + 1, concat_axis=0, tiled=True)
    return [x[i] for i in range(count)]


def _axis(split: Split, name: str) -> int | None:
    """Which axis of an array is divided over an axis of the mesh; None for none."""
    return next((axis for axis, names in enumerate(split) if name in names), None)
