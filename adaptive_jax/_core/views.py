"""Arrays as matrices: which of their axes are rows and columns, and the way there and back."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.tree_util import keystr

from .paths import Pattern, path_name, some
from .pytrees import describe, is_placeholder


@dataclass(frozen=True, repr=False)
class MatrixAxes:
    """Which axes of an array are the rows of a matrix, and which its columns.

    All other axes count matrices: a rule with `matrix = True` sees (…, m, n), and one matrix alone as
    (m, n), as axes of length 1 are left out. Rows stand for inputs and columns for outputs, as in the
    kernels of Flax and Keras:

        dense (in, out)                                   MatrixAxes()
        the same of scanned layers (layers, in, out)      MatrixAxes()
        dense of PyTorch (out, in)                        MatrixAxes(rows=-1, columns=-2)
        convolution (height, width, in, out)              MatrixAxes(rows=(0, 1, 2), columns=3)
        the same, and every dense kernel                  MatrixAxes(rows=..., columns=-1)
        both of PyTorch, (out, in, height, width)         MatrixAxes(rows=..., columns=0)
        attention (in, heads, d), as one matrix           MatrixAxes(rows=0, columns=(1, 2))
        the same, one matrix for each head                MatrixAxes(rows=0, columns=2)
        its output (heads, d, out), as one matrix         MatrixAxes(rows=(0, 1), columns=2)
        queries, keys and values side by side (in, 3·d)   MatrixAxes(heads=3)
        the same, a matrix for each of 12 heads           MatrixAxes(heads=36)
        output of attention (heads·d, out), by head       MatrixAxes(heads=(12, 1))

    Args:
      rows: the axis of the rows, or several in a tuple, which become one, the first the outermost.
        Negative ones count from the last. An ellipsis, `...`, stands for all axes but those of the columns.
      columns: the same for the columns. One of both is an ellipsis at most.
      heads: into how many matrices of equal size the columns are cut, which lie side by side; or a pair,
        into how many the rows and the columns are cut. Of several axes it is the first that is cut.

    Raises:
      ValueError: for what is no axis, or no number of matrices; in `init`, by path, for an array that
        has no such axes, or whose length heads does not divide.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.MatrixAxes(rows=..., columns=-1).matrix_shape((3, 3, 16, 32))
      (144, 32)
      >>> aj.MatrixAxes(heads=3).matrix_shape((12, 256, 768))
      (12, 3, 256, 256)
    """

    rows: int | tuple[int, ...] | EllipsisType = -2
    columns: int | tuple[int, ...] | EllipsisType = -1
    heads: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "columns")[self.rows is ... :]:
            what = "must be an axis, such as -1, or a tuple of some"
            object.__setattr__(self, name, self._whole(name, None, what))
        if self.rows is ... and self.columns is ...:
            raise ValueError(
                "rows=... and columns=... in MatrixAxes: each would be all axes but those of the other. "
                "Say which axes one of them has."
            )
        if self.heads is not None:
            what = "must be None, a number of matrices, 1 or more, or a pair of such, for rows and columns"
            object.__setattr__(self, "heads", self._whole("heads", 1, what))
            if isinstance(self.heads, tuple) and len(self.heads) != 2:
                raise ValueError(f"heads={self.heads!r} in MatrixAxes {what}.")

    def _whole(self, name: str, least: int | None, what: str) -> Any:
        """A field's number or numbers as Python's, so that axes hash, compare and print as one kind."""
        value = getattr(self, name)
        if value is ... and least is None:
            return value
        is_many = isinstance(value, (tuple, list))
        try:
            found = tuple(map(_index, value if is_many else (value,)))
        except TypeError:
            found = ()
        if not found or (least is not None and min(found) < least):
            raise ValueError(f"{name}={value!r} in MatrixAxes {what}.")
        return found if is_many else found[0]

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape as which a rule for matrices sees an array of another.

        Example:
          >>> import adaptive_jax as aj
          >>> aj.MatrixAxes(rows=0, columns=(1, 2)).matrix_shape((512, 8, 64))
          (512, 512)
        """
        shape = tuple(shape)
        try:
            return view(self, shape).shape
        except ValueError as error:
            raise ValueError(f"of an array of shape {shape}, {self} {error}.") from None

    def __repr__(self) -> str:
        heads = "" if self.heads is None else f", heads={self.heads}"
        rows, columns = ("..." if x is ... else x for x in (self.rows, self.columns))
        return f"MatrixAxes(rows={rows}, columns={columns}{heads})"


def _index(value: Any) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError
    return operator.index(value)


OUTPUTS = MatrixAxes(rows=..., columns=-1)
"""The last axis is that of the outputs, and all others are inputs: the kernels of Flax and Keras."""


@dataclass(frozen=True)
class View:
    """Arrays of one shape as matrices. What needs no moving is not moved.

    original: the shape of the arrays.
    shape: that of the matrices, (…, m, n).
    kept: of each axis of these, the axis of the arrays that it is; None where it was cut or merged.
    pieces: the lengths of the arrays' axes, cut where heads are, without those of length 1.
    order: which of these come first, in the order in which they are merged.
    """

    original: tuple[int, ...]
    shape: tuple[int, ...]
    kept: tuple[int | None, ...]
    pieces: tuple[int, ...]
    order: tuple[int, ...]

    def to_matrices(self, x: jax.Array) -> jax.Array:
        """(…, m, n) of an array."""
        x = _reshaped(x, self.pieces)
        if self._moves:
            x = lax.transpose(x, self.order)
        return _reshaped(x, self.shape)

    def slot_shape(self, slot: Any) -> tuple[int, ...] | None:
        """The shape in which the state keeps a `Slot` of an array; None for no such slot."""
        return self.original if slot.shape is None else slot.shape_for(self.shape)

    def slot_axes(self, slot: Any) -> list[int | None]:
        """Which axis of the array each axis of a `Slot` is that has a shape of its own; None for none."""
        axes = slot.axes_for(self.shape)
        return [None if axis is None else self.kept[axis] for axis in axes]

    def back(self, x: jax.Array) -> jax.Array:
        """The array of its matrices."""
        x = _reshaped(x, tuple([self.pieces[place] for place in self.order]))
        if self._moves:
            x = lax.transpose(x, tuple(map(int, np.argsort(self.order))))
        return _reshaped(x, self.original)

    @property
    def _moves(self) -> bool:
        return self.order != tuple(range(len(self.order)))


def _reshaped(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return x if x.shape == shape else lax.reshape(x, shape)


@functools.lru_cache(maxsize=4096)
def view(axes: MatrixAxes | None, shape: tuple[int, ...]) -> View:
    """The view of arrays of a shape; without axes, of a rule that sees arrays as they are.

    Raises:
      ValueError: what the axes do that arrays of this shape do not allow, "names the axis 3, …".
    """
    if axes is None:
        places = tuple(range(len(shape)))
        return View(original=shape, shape=shape, kept=places, pieces=shape, order=places)
    rows, columns = (_places(axes, name, len(shape)) for name in ("rows", "columns"))
    if twice := sorted({at for at in (*rows, *columns) if (*rows, *columns).count(at) > 1}):
        raise ValueError(f"names the axis {twice[0]} twice")
    heads = axes.heads or 1
    of_rows, of_columns = heads if isinstance(heads, tuple) else (1, heads)
    cut = {rows[0]: of_rows, columns[0]: of_columns}
    # Each axis as (number, length) of a head, if it is cut, and of what is in it.
    lengths: dict[tuple[int, bool], int] = {}
    for at, length in enumerate(shape):
        number = cut.get(at, 1)
        if length % number:
            raise ValueError(f"cuts the axis {at} into {number} parts, which are not equal")
        lengths[at, True], lengths[at, False] = number, length // number
    counted = [(at, False) for at in range(len(shape)) if at not in (*rows, *columns)]
    counted += [(rows[0], True), (columns[0], True)]
    merged = [[(at, False) for at in group] for group in (rows, columns)]

    pieces = [piece for piece, length in lengths.items() if length != 1]
    batch, *matrix = ([piece for piece in group if piece in pieces] for group in (counted, *merged))
    order = [*batch, *matrix[0], *matrix[1]]
    whole = {piece: piece[0] for piece in pieces if cut.get(piece[0], 1) == 1}
    return View(
        original=shape,
        shape=(
            *(lengths[piece] for piece in batch),
            *(math.prod(lengths[piece] for piece in group) for group in matrix),
        ),
        kept=(
            *(whole.get(piece) for piece in batch),
            *(whole.get(group[0]) if len(group) == 1 else None for group in matrix),
        ),
        pieces=tuple(lengths[piece] for piece in pieces),
        order=tuple(pieces.index(piece) for piece in order),
    )


def _places(axes: MatrixAxes, name: str, ndim: int) -> tuple[int, ...]:
    value = getattr(axes, name)
    if value is ...:
        others = _places(axes, "columns" if name == "rows" else "rows", ndim)
        if len(others) == ndim:
            raise ValueError(f"leaves no axis for the {name}")
        return tuple(at for at in range(ndim) if at not in others)
    places = value if isinstance(value, tuple) else (value,)
    for at in places:
        if not -ndim <= at < ndim:
            raise ValueError(f"names the axis {at}, which it does not have")
    return tuple(at % ndim for at in places)


@dataclass(frozen=True)
class AxesByPath:
    """The axes of arrays by what is found in their paths, a/b/c: static data that hashes.

    patterns: what a user gives, each of which must be found somewhere.
    usual: a function of the path, and of the shapes of all arrays by their paths, for all others; None for
      the usual ones of the rule.
    """

    patterns: tuple[tuple[Pattern, MatrixAxes], ...]
    usual: Callable[[str, Mapping[str, tuple[int, ...]]], MatrixAxes] | None = None

    def at(self, path: str, shapes: Mapping[str, tuple[int, ...]], usual: MatrixAxes) -> MatrixAxes:
        """Those of the first pattern that is found; the usual ones without any."""
        found = (axes for pattern, axes in self.patterns if pattern.is_in(path))
        own = next(found, None)
        if own is None:
            return usual if self.usual is None else self.usual(path, shapes)
        return own

    def __repr__(self) -> str:
        return repr({pattern.given: axes for pattern, axes in self.patterns})


def axes_of_field(rule: str, axes: Any) -> MatrixAxes | AxesByPath | None:
    """What a rule's field `axes` holds, of what a user gives for it.

    Raises:
      TypeError, ValueError: for what is none of these, and patterns that do not compile.
    """
    if axes is None or isinstance(axes, (MatrixAxes, AxesByPath)):
        return axes
    if not isinstance(axes, Mapping) or not all(isinstance(x, MatrixAxes) for x in axes.values()):
        raise TypeError(
            f"axes={axes!r:.80} is out of place in {rule}: it must be aj.MatrixAxes(…), None for the last "
            "two axes, or a dict from regular expressions, which are looked for in the paths of arrays, to "
            '`aj.MatrixAxes`, {"conv": aj.MatrixAxes(rows=(0, 1, 2), columns=3)}; all others have the last '
            "two axes without an entry."
        )
    patterns = [
        (Pattern.of(pattern, f"axes of {rule} has the key {pattern!r}"), each)
        for pattern, each in axes.items()
    ]
    return AxesByPath(tuple(patterns))


def axes_of_arrays(rule: Any, what: str, tree: Any) -> list[MatrixAxes | None]:
    """For each array of a tree its axes for a rule, where this sees a matrix; else, and of None, None.

    Raises:
      ValueError: by its path, for an array that is no matrix, or not with these axes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
    if not rule.matrix or is_placeholder(tree):
        return [None] * len(leaves)
    usual = rule.usual_axes
    field = getattr(rule, "axes", None) or usual
    found: list[MatrixAxes | None] = []
    shapes = {path_name(path): np.shape(leaf) for path, leaf in leaves if leaf is not None}
    for path, leaf in leaves:
        if leaf is None or (rule.takes_vectors and np.ndim(leaf) < 2):
            found.append(None)
            continue
        name = path_name(path)
        axes = field.at(name, shapes, usual) if isinstance(field, AxesByPath) else field
        _check(type(rule).__name__, f"{what}{keystr(path)}", name, leaf, axes)
        found.append(axes)
    return found


def views_of_arrays(rule: Any, what: str, tree: Any) -> list[View | None]:
    """For each array of a tree its view for a rule; None where it is None."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: x is None)
    return [
        None if leaf is None else view(axes, np.shape(leaf))
        for axes, leaf in zip(axes_of_arrays(rule, what, tree), leaves, strict=True)
    ]


def _check(rule: str, where: str, name: str, leaf: Any, axes: MatrixAxes) -> None:
    if np.ndim(leaf) < 2:
        raise ValueError(
            f"{where} is {describe(leaf)}, and {rule} takes matrices: arrays with two axes or more. Give "
            'all others to another optimizer: aj.partition({"matrices": tx, "rest": aj.adam(1e-3)}, '
            'lambda params: jax.tree.map(lambda x: "matrices" if x.ndim > 1 else "rest", params)), where '
            "tx is this one."
        )
    try:
        view(axes, tuple(np.shape(leaf)))
    except ValueError as error:
        raise ValueError(
            f"{where} is {describe(leaf)}, of which {axes} of {rule} {error}. Arrays have axes of their "
            f'own by what is found in their paths: axes={{"{name or ".*"}": aj.MatrixAxes(…)}}.'
        ) from None


def check_all_found(rule: Any, params: Any) -> None:
    """Raises a ValueError for a pattern of a rule's axes that is found in no path of the parameters."""
    field = getattr(rule, "axes", None)
    if not isinstance(field, AxesByPath) or is_placeholder(params):
        return
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern, _ in field.patterns if names else ():
        if not any(map(pattern.is_in, names)):
            raise ValueError(
                f"the key {pattern.text!r} in axes of {type(rule).__name__} is found in no path of the "
                f"parameters, {some(names)}: correct it, or leave it out."
            )
