"""What an optimizer does with each array of the parameters, before it does it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .._core import pytrees
from .._core.lifted import Lifted
from .._core.rule import Rule, fields, mask_of, replace, values_of_arrays
from .._core.storage import base
from .._core.transformation import data_of, member
from .._core.views import MatrixAxes, axes_of_arrays
from .._core.wrapper import Wrapper
from .memory import nbytes
from .partition import Frozen, MaskedTransform, Partition
from .shards import Axes, state_shardings


@dataclass(frozen=True)
class DescribedSlot:
    """What is kept of one slot of a rule for one array.

    name: that of the slot.
    storage: how it is kept where the array is large enough for that.
    kept: what the state holds, as shapes; None where the array has no such slot.
    nbytes: how many bytes that is, on all devices together.
    """

    name: str
    storage: base.Storage
    kept: Any
    nbytes: int


@dataclass(frozen=True)
class DescribedArray:
    """What one rule does with one array.

    path: that of the array, "['dense']['kernel']".
    array: its shape, dtype and sharding.
    rule: the rule, of trees of hyperparameters with the number of this array; or the transformation of
      another library; None for an array that nothing updates.
    why: what leads the array here: labels of `partition`, and masks. Empty where every array comes.
    selected: whether the rule's own mask selects the array; True without a mask.
    axes: those of a rule that sees matrices; None for any other.
    slots: what is kept.
    """

    path: str
    array: jax.ShapeDtypeStruct
    rule: Any
    why: tuple[str, ...] = ()
    selected: bool = True
    axes: MatrixAxes | None = None
    slots: tuple[DescribedSlot, ...] = ()

    @property
    def matrix_shape(self) -> tuple[int, ...] | None:
        """The shape as which the rule sees the array, if it sees matrices."""
        return None if self.axes is None else self.axes.matrix_shape(self.array.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes the slots are."""
        return sum(slot.nbytes for slot in self.slots)


@dataclass(frozen=True, repr=False)
class Description:
    """What an optimizer does with each array, as `aj.describe` finds it; it prints as a table.

    rows: one for each array and each rule that sees it, array by array. A row has path, array (shape,
      dtype, sharding), rule, why (labels and masks), selected (by the rule's mask), axes and matrix_shape
      (of a rule that sees matrices), slots, nbytes; a slot has name, storage, kept (shapes), nbytes.
    other: how many bytes of the state are no slots: counts, and what wrappers keep.
    on_each_device: how many bytes of the state each device holds, of parameters on a mesh; else None.
    """

    rows: tuple[DescribedArray, ...]
    other: int
    on_each_device: int | None = None

    @property
    def total(self) -> int:
        """How many bytes the state takes."""
        return self.other + sum(row.nbytes for row in self.rows)

    def __getitem__(self, path: str) -> tuple[DescribedArray, ...]:
        """The rows of one array."""
        found = tuple(row for row in self.rows if row.path == path)
        if not found:
            paths = ", ".join(dict.fromkeys(row.path for row in self.rows))
            raise KeyError(f"{path!r} is no path of an array: these are {paths}.")
        return found

    def __str__(self) -> str:
        """The table. Arrays of one shape and dtype, of which the same is done, are in it once."""
        alike: dict[Any, list[str]] = {}
        for path, rows in itertools.groupby(self.rows, lambda row: row.path):
            first, *others = rows
            lines = (line for row in (first, *others) for line in _lines(row))
            alike.setdefault((_outline(first.array), *lines), []).append(path)
        table = [["array", "", "rule", "why", "slot", "kept as", "bytes"]]
        for (kind, *lines), paths in alike.items():
            more, times = "", ""
            if len(paths) > 1:
                more, times = f" and {len(paths) - 1} more", f"{len(paths)} x "
            names = f"{paths[0] or 'the one array'}{more}", kind
            for index, (*line, size) in enumerate(lines):
                table.append([*(("", "") if index else names), *line, size and f"{times}{size}"])
        if self.other:
            table.append(["other", *[""] * 5, f"{self.other:,}"])
        table.append(["total", *[""] * 5, f"{self.total:,}"])
        if self.on_each_device is not None:
            table.append(["on each device", *[""] * 5, f"{self.on_each_device:,}"])
        return _aligned(table)

    __repr__ = __str__


def _outline(array: jax.ShapeDtypeStruct) -> str:
    by = _split(array)
    return f"{array.dtype.name}{list(array.shape)}{by and f' by {by}'}"


def _split(x: jax.ShapeDtypeStruct) -> str:
    """How an array is divided over devices; nothing if it is not."""
    spec = getattr(x.sharding, "spec", ())
    return f"{PartitionSpec(*spec)}" if any(axes is not None for axes in spec) else ""


def _lines(row: DescribedArray) -> Iterator[tuple[str, ...]]:
    """What the table has of a row: the rule, and why, then of each slot its name, form and bytes."""
    rule = "nothing" if row.rule is None else f"{row.rule!r}"
    if len(rule) > _WIDTH:
        rule = f"{rule[: _WIDTH - 1]}…"
    why = "; ".join(row.why)
    if row.axes is not None:
        why = f"{why}{why and '; '}{list(row.matrix_shape or ())} by {row.axes}"
    for slot in row.slots:
        kept = " + ".join(_kept(x, row.array) for x in jax.tree.leaves(slot.kept))
        yield rule, why, slot.name, kept or "nothing", f"{slot.nbytes:,}"
        rule = why = ""
    if not row.slots:
        yield rule, why, "", "", ""


_WIDTH = 60


def _kept(x: jax.ShapeDtypeStruct, array: jax.ShapeDtypeStruct) -> str:
    """The dtype of what is kept, and of its shape and sharding what is not as in the array."""
    shape = "" if x.shape == array.shape else list(x.shape)
    by = _split(x)
    sharding = "" if by == _split(array) else f" by {by}" if by else " on each device"
    return f"{x.dtype.name}{shape}{sharding}"


def _aligned(table: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns, without those that are empty; the last one is of numbers."""
    columns = [column for column in zip(*table, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        cells = [f"{text:<{width}}" for text, width in zip(row[:-1], widths, strict=False)]
        lines.append("  ".join([*cells, f"{row[-1]:>{widths[-1]}}"]).rstrip())
    return "\n".join(lines)


def describe(
    tx: optax.GradientTransformation, params: Any, *, shard: Axes | None = None
) -> Description:
    """What an optimizer does with each array: which rules take it, why, and what they keep.

    Nothing is computed or allocated.

    Args:
      tx: the optimizer. Those of this library are looked into, through its chains, wrappers and
        partitions; what another library's transformation keeps counts as "other".
      params: the parameters, as arrays or as shapes (`jax.eval_shape`, `jax.ShapeDtypeStruct`). Where
        these are sharded, so are the slots, as `tx.init` makes them.
      shard: axes of the mesh that the state is split over besides, as in `TrainState.create`.

    Returns:
      A `Description`: `print` shows a table, `rows` has the same as data.

    Raises:
      TypeError, ValueError: for what is no optimizer, and for parameters that `tx.init` refuses, by
        their path.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> params = {"w": jax.ShapeDtypeStruct((512, 256), jnp.float32), "b": jnp.ones(256)}
      >>> tx = aj.partition({"a": aj.sgd(0.1, momentum=0.9), "frozen": None}, {"w": "a", "b": "frozen"})
      >>> print(aj.describe(tx, params))
      array                     rule                             why             slot   kept as    bytes
      ['b']  float32[256]       nothing                          label 'frozen'
      ['w']  float32[512, 256]  Trace(decay=0.9)                 label 'a'       trace  float32  524,288
                                LearningRate(learning_rate=0.1)  label 'a'
      total                                                                                      524,288
    """
    tx = member(tx, "describe")
    arrays = pytrees.Arrays("params", params)
    shapes = jax.tree.map(_shape, params)
    leaves = arrays.treedef.flatten_up_to(shapes)
    given = {path: x for path, x in zip(arrays.paths(), leaves, strict=True) if x is not None}
    shapes = jax.tree.map(_with_explicit_sharding, shapes)
    state = jax.eval_shape(tx.init, shapes)
    if shard is not None:
        state = jax.tree.map(_at, state, state_shardings(tx, params, shard))
    found: dict[str, list[DescribedArray]] = {path: [] for path in given}
    for part in _parts(tx, state, shapes, ()):
        for path, row in _rows(*part):
            found[path].append(row)
    rows = [
        _placed(row, path, array)
        for path, array in given.items()
        for row in found[path] or [_NOTHING]
    ]
    meshes = [x.sharding.mesh for x in given.values() if isinstance(x.sharding, NamedSharding)]
    on_each = sum(map(_on_each_device, jax.tree.leaves(state))) if meshes else None
    return Description(tuple(rows), nbytes(state) - sum(row.nbytes for row in rows), on_each)


def _at(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _on_each_device(x: jax.ShapeDtypeStruct) -> int:
    """How many bytes of an array a device has."""
    is_placed = isinstance(x.sharding, NamedSharding)
    shape = x.sharding.shard_shape(x.shape) if is_placed else x.shape
    return math.prod(shape) * x.dtype.itemsize


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(x, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        sharding = None
    return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=sharding)


def _with_explicit_sharding(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The shape of an array whose sharding is in its type: so is that of what is made like it."""
    if not isinstance(x.sharding, NamedSharding):
        return x
    mesh = x.sharding.mesh.abstract_mesh
    mesh = mesh.update_axis_types(dict.fromkeys(mesh.axis_names, AxisType.Explicit))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, x.sharding.spec))


def _placed(row: DescribedArray, path: str, array: jax.ShapeDtypeStruct) -> DescribedArray:
    """The row of an array, with its slots on the same mesh."""

    def placed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if not isinstance(array.sharding, NamedSharding):
            return x
        spec = x.sharding.spec if isinstance(x.sharding, NamedSharding) else PartitionSpec()
        sharding = NamedSharding(array.sharding.mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    slots = [dataclasses.replace(each, kept=jax.tree.map(placed, each.kept)) for each in row.slots]
    return dataclasses.replace(row, path=path, array=array, slots=tuple(slots))


def _parts(tx: Any, state: Any, seen: Any, why: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Everything that wraps nothing: its data, its part of the state, what it sees, and why that."""
    data = data_of(tx)
    if not isinstance(data, Wrapper) or not data.wraps:
        yield data, state, seen, why
        return
    inner = zip(data.wrapped(), data.states_in(state), data.params_in(seen), strict=True)
    reasons: Sequence[tuple[str, ...]] = [()] * len(data.wrapped())
    if isinstance(data, Partition):
        reasons = [(f"label {label!r}",) for label in data.transforms]
    elif isinstance(data, MaskedTransform):
        reasons = [("selected by the mask of masked",)]
    for each, reason in zip(inner, reasons, strict=True):
        yield from _parts(*each, (*why, *reason))


def _rows(
    data: Any, state: Any, seen: Any, why: tuple[str, ...]
) -> Iterator[tuple[str, DescribedArray]]:
    """What is done with each array that is seen, by its path."""
    arrays = pytrees.Arrays("params", seen)
    paths = [path for path, x in zip(arrays.paths(), arrays.leaves, strict=True) if x is not None]
    if not isinstance(data, Lifted):
        rule = None if isinstance(data, Frozen) else data
        yield from ((path, dataclasses.replace(_NOTHING, rule=rule, why=why)) for path in paths)
        return
    for rule, storages, part in zip(data.rules, data.storages, data.split(state), strict=True):
        yield from zip(paths, _of_rule(rule, storages, part, arrays, seen, why), strict=True)


def _of_rule(
    rule: Rule,
    storages: Sequence[base.Storage],
    state: Any,
    arrays: pytrees.Arrays,
    seen: Any,
    why: tuple[str, ...],
) -> Iterator[DescribedArray]:
    mask = mask_of(rule)
    selected = arrays.selected(mask, seen)
    axes = axes_of_arrays(rule, "params", seen)
    kept = [arrays.treedef.flatten_up_to(getattr(state, name)) for name in rule.slots]
    own = values_of_arrays(rule, arrays)
    data = [name for name in own if name in fields(type(rule)).data]
    for place, leaf in enumerate(arrays.leaves):
        if leaf is None:
            continue
        slots = [
            DescribedSlot(name, storage, of_slot[place], nbytes(of_slot[place]))
            for name, storage, of_slot in zip(rule.slots, storages, kept, strict=True)
        ]
        reason = f"{'selected' if selected[place] else 'left out'} by its mask"
        yield dataclasses.replace(
            _NOTHING,
            rule=replace(rule, **{name: own[name][place] for name in data}),
            why=why if mask is None else (*why, reason),
            selected=selected[place],
            axes=axes[place],
            slots=tuple(slots),
        )


_NOTHING = DescribedArray("", jax.ShapeDtypeStruct((), jnp.float32), None)
