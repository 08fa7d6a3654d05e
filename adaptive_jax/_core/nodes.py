"""Frozen dataclasses as pytrees: some of their fields are data, the others static."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax

from . import export

Names = tuple[str, ...]


def register(cls: type, names: Callable[[Any], tuple[Names, Names]]) -> None:
    """Registers a class as a pytree, before it has become a dataclass.

    names: its data fields and its static ones. Asked of the class when there is an instance.
    """

    def flatten(node: Any) -> tuple[list[Any], tuple[Any, ...]]:
        data, static = names(cls)
        values = node.__dict__
        return [values[name] for name in data], tuple([values[name] for name in static])

    def flatten_with_keys(node: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children, static = flatten(node)
        keys = [jax.tree_util.GetAttrKey(name) for name in names(cls)[0]]
        return list(zip(keys, children, strict=True)), static

    def unflatten(static_values: tuple[Any, ...], children: Iterable[Any]) -> Any:
        # Without __init__: children may be tracers, or any object that somebody maps over the tree.
        data, static = names(cls)
        node = object.__new__(cls)
        node.__dict__.update(zip(data, children, strict=True))
        node.__dict__.update(zip(static, static_values, strict=True))
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    export.node(cls)


def replace(node: Any, **values: Any) -> Any:
    """The same with other values in its fields, unchecked: they may be whatever is in a pytree."""
    new = object.__new__(type(node))
    new.__dict__.update(node.__dict__, **values)
    return new


def field_names(cls: type) -> list[str]:
    """The names of the fields of a frozen dataclass; a TypeError if the class is none."""
    if not (dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise TypeError(
            f"{cls.__name__} is not a frozen dataclass: write @dataclass(frozen=True) above it."
        )
    return [field.name for field in dataclasses.fields(cls)]
