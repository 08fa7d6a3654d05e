"""Traced numbers that functions close over, taken out and put back: so what is called can be data too.

`optax.lion(learning_rate)` keeps its learning rate in closures. Under `jax.vmap` that is a tracer, which
must not outlive the transformation that made it: it becomes a leaf, and the closures are made again.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial


@dataclass(frozen=True)
class Hole:
    """Where a traced number was."""

    index: int


class Unreachable(Exception):
    """A traced number is where no closure can be made again. Its argument says where."""


def take_out(x: Any) -> tuple[Any, tuple[Any, ...]]:
    """x with a `Hole` for each tracer that it closes over, and the tracers; x itself if there are none."""
    tracers: dict[int, Any] = {}

    def hole(value: Any) -> Any:
        if not isinstance(value, Tracer):
            return value
        tracers.setdefault(id(value), value)
        return Hole(list(tracers).index(id(value)))

    return _Copy(Tracer, hole)(x), tuple(tracers.values())


def put_back(x: Any, values: Sequence[Any]) -> Any:
    """The reverse of `take_out`, with other values if you like."""
    if not values:
        return x
    return _Copy(Hole, lambda y: values[y.index] if isinstance(y, Hole) else y)(x)


def as_partial(function: Callable[..., Any]) -> Partial:
    """A function as a pytree whose leaves are the traced numbers that it closes over."""
    try:
        emptied, values = take_out(function)
    except (
        Unreachable
    ):  # It is static, and works as long as the numbers do: within the vmap or jit.
        return Partial(function)
    return Partial(_Filled(emptied), *values) if values else Partial(function)


@dataclass(frozen=True)
class _Filled:
    """A function of the values that it closes over, and of its argument."""

    function: Callable[..., Any]

    @property
    def __name__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))

    def __call__(self, *values_and_argument: Any) -> Any:
        *values, argument = values_and_argument
        return put_back(self.function, values)(argument)


class _Copy:
    """A copy of what holds values of a type, in which others take their places; the rest is shared."""

    def __init__(self, kind: type, swap: Callable[[Any], Any]) -> None:
        self._kind, self._swap = kind, swap
        self._made: dict[int, Any] = {}
        self._known: dict[int, bool] = {}
        self._alive: list[Any] = []  # What was seen, or its id would be given to something else.

    def __call__(self, x: Any) -> Any:
        if isinstance(x, self._kind):
            return self._swap(x)
        if not self._holds(x):
            return x
        if id(x) not in self._made:
            self._made[id(x)] = self._copy(x)
        return self._made[id(x)]

    def _holds(self, x: Any) -> bool:
        """Whether a value of the type can be reached from x."""
        if id(x) not in self._known:
            seen, queue, found = {id(x)}, deque([x]), False
            self._alive.append(x)
            # The nearest first, and not for ever: some objects make new ones whenever they are asked.
            while queue and not found and len(seen) <= _MOST_SEEN:
                each = queue.popleft()
                found = isinstance(each, self._kind)
                for part in _parts(each):
                    if id(part) not in seen:
                        seen.add(id(part))
                        queue.append(part)
                        self._alive.append(part)
            self._known[id(x)] = found
        return self._known[id(x)]

    def _copy(self, x: Any) -> Any:
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, types.MethodType):
            return types.MethodType(self(x.__func__), self(x.__self__))
        if isinstance(x, functools.partial):
            keywords = {name: self(value) for name, value in x.keywords.items()}
            return type(x)(self(x.func), *map(self, x.args), **keywords)
        if isinstance(x, dict):
            return self._filled(x, {key: self(value) for key, value in x.items()})
        if isinstance(x, list):
            return list(map(self, x))
        if isinstance(x, tuple):
            return type(x)(*map(self, x)) if hasattr(x, "_fields") else tuple(map(self, x))
        if _is_node(x):
            children, treedef = jax.tree_util.tree_flatten(x, is_leaf=lambda y: y is not x)
            return jax.tree_util.tree_unflatten(treedef, list(map(self, children)))
        if hasattr(x, "__wrapped__") or not hasattr(x, "__dict__"):
            raise Unreachable(f"{getattr(x, '__name__', type(x).__name__)}, a {type(x).__name__}")
        new = self._made[id(x)] = copy.copy(x)
        for name, value in vars(x).items():
            object.__setattr__(new, name, self(value))
        return new

    @staticmethod
    def _filled(x: dict[Any, Any], values: dict[Any, Any]) -> dict[Any, Any]:
        """A dict of the same type, an OrderedDict or one with a default."""
        new = copy.copy(x)
        new.update(values)
        return new

    def _function(self, x: types.FunctionType) -> types.FunctionType:
        cells = tuple(map(self._cell, x.__closure__ or ()))
        new = types.FunctionType(x.__code__, x.__globals__, x.__name__, None, cells)
        self._made[id(x)] = new  # Before its parts: it may be one of them.
        new.__defaults__ = None if x.__defaults__ is None else tuple(map(self, x.__defaults__))
        new.__kwdefaults__ = {k: self(v) for k, v in (x.__kwdefaults__ or {}).items()} or None
        new.__dict__.update({name: self(value) for name, value in x.__dict__.items()})
        new.__qualname__, new.__doc__, new.__module__ = x.__qualname__, x.__doc__, x.__module__
        for old, cell in zip(x.__closure__ or (), cells, strict=True):
            if cell is not old and not _contents(cell):
                cell.cell_contents = self(old.cell_contents)
        return new

    def _cell(self, x: types.CellType) -> types.CellType:
        """An empty cell for one whose contents will be others: functions may share it."""
        if not any(map(self._holds, _contents(x))):
            return x
        return self._made.setdefault(id(x), types.CellType())


def _contents(cell: types.CellType) -> tuple[Any, ...]:
    """What is in a cell; nothing before the variable is assigned."""
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def _is_node(x: Any) -> bool:
    return not jax.tree_util.all_leaves([x])


_SKIPPED = (
    str, bytes, int, float, complex, bool, type(None), type, types.ModuleType,
    types.BuiltinFunctionType, np.ndarray, np.generic, jax.Array, np.dtype,
)  # fmt: skip


_LONGEST = 1000  # What is longer is data, and not looked through.


_MOST_SEEN = (
    5000  # An optimizer is not made of more: whatever holds these holds half of the program.
)


def _parts(x: Any) -> Iterator[Any]:
    """What an object holds, as far as a copy of it can hold something else, or must be refused."""
    if isinstance(x, (Tracer, *_SKIPPED)):
        return
    if isinstance(x, types.FunctionType):
        yield from (value for cell in x.__closure__ or () for value in _contents(cell))
        yield from x.__defaults__ or ()
        yield from (x.__kwdefaults__ or {}).values()
        yield from x.__dict__.values()
    elif isinstance(x, types.MethodType):
        yield from (x.__func__, x.__self__)
    elif isinstance(x, functools.partial):
        yield from (x.func, *x.args, *x.keywords.values())
    elif isinstance(x, (dict, list, tuple)):
        if len(x) <= _LONGEST:
            yield from x.values() if isinstance(x, dict) else x
    elif _is_node(x):
        yield from jax.tree_util.tree_leaves(x, is_leaf=lambda y: y is not x)
    else:
        wrapped = getattr(x, "__wrapped__", None)
        if wrapped is not None:
            yield wrapped
        yield from _values(x)


def _values(x: Any) -> Iterable[Any]:
    try:
        return tuple(vars(x).values())
    except TypeError:
        return ()
