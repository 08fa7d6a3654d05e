"""What an optimizer does with each array of the parameters, before it does it."""

from __future__ import annotations

import dataclasses
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
from .._core.rule import Rule, mask_of
from .._core.storage import base
from .._core.transformation import data_of, member
from .._core.views import MatrixAxes, axes_of_arrays
from .._core.wrapper import Wrapper
from .partition import Frozen, MaskedTransform, Partition


@dataclass(frozen=True)
class DescribedSlot:
    """What is kept of one slot of a rule for one array.

    name: that of the slot.
    storage: how it is kept where the array is large enough for that.
    kept: what the state holds, as shapes and dtypes; None where the array has no such slot.
    nbytes: how many bytes that is, on all devices together.
    """

    name: str
    storage: base.Storage
    kept: Any
    nbytes: int

    def __str__(self) -> str:
        if self.kept is None:
            return f"no {self.name}"
        arrays = jax.tree.leaves(self.kept)
        shown = " + ".join(f"{x.dtype.name}{list(x.shape)}{_split(x)}" for x in arrays)
        return f"{self.name} {shown}"


def _split(x: Any) -> str:
    """How an array is divided over devices; nothing if it is not."""
    spec = getattr(getattr(x, "sharding", None), "spec", ())
    return f" by {PartitionSpec(*spec)}" if any(axes is not None for axes in spec) else ""


@dataclass(frozen=True)
class DescribedArray:
    """What one rule does with one array.

    path: that of the array, "['dense']['kernel']".
    array: its shape, dtype and sharding.
    rule: the rule, or the transformation of another library; None for an array that nothing updates.
    why: why it is this one: the label of `partition` or the mask that leads here, and the rule's own
      mask. Empty where every array comes here.
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
        """The shape as which the rule sees the array as matrices; None for any other rule."""
        return None if self.axes is None else self.axes.matrix_shape(self.array.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes the slots are."""
        return sum(slot.nbytes for slot in self.slots)

    @property
    def shown(self) -> tuple[str, str, str, str]:
        """What the table has of it in columns: the rule, why, its slots, and their bytes."""
        why = list(self.why)
        if self.axes is not None:
            why.append(f"as {list(self.matrix_shape or ())} by {self.axes}")
        rule = "nothing" if self.rule is None else f"{self.rule!r}"
        if len(rule) > _WIDTH:
            rule = f"{rule[: _WIDTH - 1]}…"
        size = f"{self.nbytes:,}" if self.slots else ""
        return rule, "; ".join(why), ", ".join(map(str, self.slots)), size


_WIDTH = 60


@dataclass(frozen=True, repr=False)
class Description:
    """What an optimizer does with each array; `print` shows it as a table.

    rows: one for each array and each rule that sees it, array by array. The table shows arrays of one
      shape and dtype together, of which the same is done.
    other: how many bytes of the state are no slots, such as counts, or what wrappers keep.
    """

    rows: tuple[DescribedArray, ...]
    other: int

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
        alike: dict[Any, list[str]] = {}
        for path in dict.fromkeys(row.path for row in self.rows):
            rows = self[path]
            array = rows[0].array
            kind = f"{array.dtype.name}{list(array.shape)}{_split(array)}"
            alike.setdefault((kind, tuple(row.shown for row in rows)), []).append(path)
        table = [("array", "", "rule", "why", "slots", "bytes")]
        for (kind, rows), paths in alike.items():
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            for index, (*shown, size) in enumerate(rows):
                first = (f"{paths[0] or 'the one array'}{more}", kind) if index == 0 else ("", "")
                each = f"{len(paths)} x {size}" if size and more else size
                table.append((*first, *shown, each))
        if self.other:
            table.append(("other", "", "", "", "", f"{self.other:,}"))
        table.append(("total", "", "", "", "", f"{self.total:,}"))
        return _aligned(table)

    __repr__ = __str__


def _aligned(table: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns, without those that are empty; the last one is of numbers."""
    columns = [column for column in zip(*table, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        *texts, size = zip(row, widths, strict=True)
        cells = [f"{text:<{width}}" for text, width in texts]
        lines.append("  ".join([*cells, f"{size[0]:>{size[1]}}"]).rstrip())
    return "\n".join(lines)


def describe(tx: optax.GradientTransformation, params: Any) -> Description:
    """What an optimizer does with each array: which rules take it, why, and what they keep.

    Nothing is computed or allocated.

    Args:
      tx: the optimizer. Looked into are those of this library, and its chains, wrappers and partitions;
        what another library's transformation keeps counts as "other".
      params: the parameters, as arrays or as shapes (`jax.eval_shape`, `jax.ShapeDtypeStruct`). If these
        are sharded, so are the slots, as `init(params)` makes them.

    Returns:
      A `Description`, which prints as a table.

    Raises:
      TypeError, ValueError: for what is no optimizer, and for parameters that its `init` refuses, by
        their path.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
      >>> params = {"kernel": shape(512, 256), "bias": shape(256)}
      >>> tx = aj.sgd(0.1, momentum=0.9, storage="int8")
      >>> print(aj.describe(tx, params))
    """
    tx = member(tx, "describe")
    arrays = pytrees.Arrays("params", params)
    shapes = jax.tree.map(_shape, params)
    leaves = arrays.treedef.flatten_up_to(shapes)
    given = {path: x for path, x in zip(arrays.paths(), leaves, strict=True) if x is not None}
    shapes = jax.tree.map(_with_explicit_sharding, shapes)
    state = jax.eval_shape(tx.init, shapes)
    found: dict[str, list[DescribedArray]] = {path: [] for path in given}
    for part in _parts(tx, state, shapes, ()):
        for path, row in _rows(*part):
            found[path].append(row)
    rows = [
        dataclasses.replace(row, path=path, array=array)
        for path, array in given.items()
        for row in found[path] or [_NOTHING]
    ]
    return Description(tuple(rows), _size(state) - sum(row.nbytes for row in rows))


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(x, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        sharding = None
    return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=sharding)


def _with_explicit_sharding(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The shape of an array whose sharding is part of its type, so that what is made like it has it."""
    if not isinstance(x.sharding, NamedSharding):
        return x
    mesh = x.sharding.mesh.abstract_mesh
    mesh = mesh.update_axis_types(dict.fromkeys(mesh.axis_names, AxisType.Explicit))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, x.sharding.spec))


def _parts(tx: Any, state: Any, seen: Any, why: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Everything that wraps nothing: its data, its part of the state, what it sees, and why that."""
    data = data_of(tx)
    if not isinstance(data, Wrapper):
        yield data, state, seen, why
        return
    inner = zip(data.wrapped(), data.states_in(state), data.params_in(seen), strict=True)
    reasons: Sequence[tuple[str, ...]] = [()] * len(data.wrapped())
    if isinstance(data, Partition):
        reasons = [(f"label {label!r}",) for label in data.transforms]
    elif isinstance(data, MaskedTransform):
        reasons = [(f"mask {data.mask!r} of masked",)]
    for each, reason in zip(inner, reasons, strict=True):
        yield from _parts(*each, (*why, *reason))


def _rows(
    data: Any, state: Any, seen: Any, why: tuple[str, ...]
) -> Iterator[tuple[str, DescribedArray]]:
    """What is done with each array, by its path."""
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
    axes = axes_of_arrays(rule, "params", seen) if rule.matrix else [None] * len(selected)
    kept = [arrays.treedef.flatten_up_to(getattr(state, name)) for name in rule.slots]
    for place, leaf in enumerate(arrays.leaves):
        if leaf is None:
            continue
        slots = [
            DescribedSlot(name, storage, of_slot[place], _size(of_slot[place]))
            for name, storage, of_slot in zip(rule.slots, storages, kept, strict=True)
        ]
        reason = () if mask is None else (f"{'in' if selected[place] else 'not in'} its mask",)
        yield dataclasses.replace(
            _NOTHING,
            rule=rule,
            why=(*why, *reason),
            selected=selected[place],
            axes=axes[place],
            slots=tuple(slots),
        )


_NOTHING = DescribedArray("", jax.ShapeDtypeStruct((), jnp.float32), None)


def _size(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
