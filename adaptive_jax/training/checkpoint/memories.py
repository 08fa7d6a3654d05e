"""What callbacks remember, which a checkpoint keeps beside the state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .entries import is_number
from .placement import placing

ITEM = "callbacks"
"""Under which name Orbax keeps the arrays, and the layout the rest."""

_HOST, _DEVICE = "host", "device"


def named(callbacks: Iterable[Any]) -> dict[str, Any]:
    """The callbacks by their names in a checkpoint: the class, the attribute `name`, and of equal ones the
    place among these.
    """
    found: dict[str, Any] = {}
    for each in callbacks:
        name = type(each).__name__
        if isinstance(looks_at := getattr(each, "name", None), str):
            name += f"({looks_at!r})"
        count = sum(other == name or other.startswith(f"{name} ") for other in found)
        found[f"{name} {count + 1}" if count else name] = each
    return found


def memories_of(callbacks: Iterable[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the callbacks want to be saved: what the layout says of it, and the arrays by their names.

    Raises:
      TypeError: for what is no dict of numbers, strings and arrays of numbers.
      ValueError: for an array that a step wrote over.
    """
    layout: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for owner, callback in named(callbacks).items():
        memory = callback.to_save()
        if not isinstance(memory, Mapping):
            raise TypeError(
                f"{owner}.to_save() returned {memory!r:.80} of type {type(memory).__name__}: it must "
                "return a dict of numbers, strings and arrays."
            )
        if not memory:
            continue
        layout[owner] = {"numbers": {}, "arrays": {}}
        for name, x in memory.items():
            x = x.item() if isinstance(x, np.generic) else x
            if isinstance(x, jax.Array) and x.is_deleted():
                raise ValueError(
                    f"{owner}.to_save() returned an array that is deleted for {name!r:.80}: a step wrote "
                    "over it. Keep a copy, jnp.copy(x), of what belongs to a state."
                )
            if not isinstance(name, str) or not _can_be_saved(x):
                raise TypeError(
                    f"{owner}.to_save() returned {x!r:.80} of type {type(x).__name__} for {name!r:.80}: a "
                    "checkpoint keeps numbers, strings and arrays of numbers, each under a string."
                )
            if is_number(x) or isinstance(x, str):
                layout[owner]["numbers"][name] = x
                continue
            place = _DEVICE if isinstance(x, jax.Array) else _HOST
            layout[owner]["arrays"][name] = [list(x.shape), str(x.dtype), place]
            if x.size:  # Orbax saves no arrays without elements, and needs none.
                arrays[f"{owner}.{name}"] = x
    return layout, arrays


def _can_be_saved(x: Any) -> bool:
    # Of a masked array, the mask would be lost.
    is_array = isinstance(x, (jax.Array, np.ndarray)) and not isinstance(x, np.ma.MaskedArray)
    is_of_numbers = is_array and any(jnp.issubdtype(x.dtype, kind) for kind in (np.number, bool))
    return is_number(x) or isinstance(x, str) or is_of_numbers


def restored(orbax: Any, manager: Any, step: int, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The memories in the checkpoint of a step, by the names of their callbacks.

    saved: what the layout says of them.
    """
    place = placing([], lambda: manager.item_metadata(step)[ITEM])
    wanted = {
        f"{owner}.{name}": np.empty(shape, dtype)
        if on == _HOST
        else jax.ShapeDtypeStruct(shape, dtype, sharding=place(f"{owner}.{name}", None))
        for owner, each in saved.items()
        for name, (shape, dtype, on) in each["arrays"].items()
        if 0 not in shape
    }
    arrays: Mapping[str, Any] = {}
    if wanted:
        standard = orbax.args.StandardRestore(wanted)
        arrays = manager.restore(step, args=orbax.args.Composite(**{ITEM: standard}))[ITEM]

    def array(place: str, shape: Any, dtype: str, on: str) -> Any:
        if 0 in shape:
            return (np if on == _HOST else jnp).zeros(shape, dtype)
        return arrays[place]

    return {
        owner: {
            **each["numbers"],
            **{name: array(f"{owner}.{name}", *kind) for name, kind in each["arrays"].items()},
        }
        for owner, each in saved.items()
    }
