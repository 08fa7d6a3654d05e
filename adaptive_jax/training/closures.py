"""What a function closes over, and what an optimizer was made with, as plain values by their names."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path

from .._core.mask import Selection
from .._core.schedule import Schedule
from .._core.transformation import Foreign, data_behind
from ..transforms.labels import Labels

_UPDATES = {"update", "update_fn"}


_LONGEST = 1000  # Nobody's hyperparameters are a longer list than that.


IN = " of "  # "init_value of learning_rate": what a function closes over, and the function.


def selected(
    mask: Any, params: Any, name: str | None = None, kind: Callable[[Any], Any] = bool
) -> dict[str, Any]:
    """Which arrays a mask selects, by their paths; its name alone where that cannot be told.

    kind: what makes plain data of a leaf: of labels, `str`.
    """
    try:
        tree = mask(params) if callable(mask) else mask
        if params is not None:
            tree = jax.tree.map(lambda x, part: jax.tree.map(lambda _: x, part), tree, params)
        return {keystr(path): kind(leaf) for path, leaf in tree_leaves_with_path(tree)}
    except Exception:  # It is one of some of the parameters, say, or the state has none.
        return {"": name or _name_of(mask)}


def closed_over(function: Any) -> dict[str, Any]:
    """What a function has in its closure, a partial in itself, and optax's MultiSteps in an object."""
    if isinstance(function, functools.partial):
        args = {str(index): each for index, each in enumerate(function.args)}
        return {"function": function.func, **args, **function.keywords}
    function = getattr(function, "__wrapped__", function)
    owner = getattr(function, "__self__", None)
    if isinstance(owner, optax.MultiSteps):
        return vars(owner)
    if not hasattr(function, "__code__") or not function.__closure__:
        return {}
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__, strict=True):
        try:
            cells[name] = cell.cell_contents
        except ValueError:  # A name that has no value yet.
            continue
    return cells


def is_update(value: Any) -> bool:
    """Whether it is the update of an optimizer of another library, by its name."""
    return callable(value) and getattr(value, "__name__", "") in _UPDATES


def is_optimizer(value: Any) -> bool:
    """Whether it is an optimizer, of this library or another."""
    return isinstance(value, (optax.GradientTransformation, Foreign))


def add_value(values: dict[str, Any], inner: list[Any], key: str, value: Any, params: Any) -> None:
    """Puts what a value says into values, under names that begin with key, and optimizers into inner."""
    is_measure = hasattr(value, "update") and dataclasses.is_dataclass(value)
    if is_optimizer(value) or is_update(value) or is_measure:
        inner.append(value)
    elif (own := data_behind(value)) is not None:
        inner.append(own)  # The update of an optimizer of this library.
    elif isinstance(value, (Selection, Labels)):
        kind = str if isinstance(value, Labels) else bool
        chosen = selected(value.tree, params, repr(value), kind)
        values |= {f"{key}{path}": each for path, each in chosen.items()}
    elif key.lstrip("_") == "mask" and value is not None:
        values |= {f"mask{path}": each for path, each in selected(value, params).items()}
    elif value is None or isinstance(value, (bool, int, float, str)):
        values[key] = value
    elif isinstance(value, (np.ndarray, np.generic, jax.Array)):
        known = np.shape(value) == () and not isinstance(value, Tracer)
        number = value.item() if known else None
        is_real = isinstance(number, (bool, int, float))
        values[key] = number if is_real else f"{value.dtype}{list(np.shape(value))}"
    elif isinstance(value, np.dtype):
        values[key] = str(value)
    elif isinstance(value, (Mapping, tuple, list)) and len(value) > _LONGEST:
        values[key] = f"{len(value)} entries"
    elif isinstance(value, Mapping):
        for name, each in value.items():
            add_value(values, inner, f"{key}[{name!r}]", each, params)
    elif isinstance(value, (tuple, list)):
        for index, each in enumerate(value):
            add_value(values, inner, f"{key}[{index}]", each, params)
    elif isinstance(value, Schedule):
        values[key] = {"function": type(value).__name__}
        for name, each in value.arguments().items():
            add_value(values, [], f"{name}{IN}{key}", each, params)
    elif callable(value) and not isinstance(value, type):
        values[key] = {"function": _name_of(value)}
        if key.count(IN) < 8:  # A function may close over itself.
            for name, each in closed_over(value).items():
                add_value(values, [], f"{name}{IN}{key}", each, params)


def _name_of(function: Callable[..., Any]) -> str:
    function = getattr(function, "func", function)
    return str(getattr(function, "__qualname__", type(function).__name__))
