"""The storages by name, and that of each slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..rule import Slot
from .base import PLAIN, BFloat16, Float, Storage
from .blocks import Blocks
from .constant import Constant
from .factored import Factored

NAMED: dict[str, Storage] = {
    "float32": PLAIN,
    "bfloat16": BFloat16(),
    "int8": Blocks(bits=8),
    "int16": Blocks(bits=16),
    "int8_tiles": Blocks(bits=8, block=(8, 128)),
    "int16_tiles": Blocks(bits=16, block=(8, 128)),
    "factored": Factored(),
}
"""The storages that `storage=` knows by name."""


def resolve(storage: Any) -> Storage:
    if storage is None:
        return NAMED["float32"]
    if isinstance(storage, Storage):
        return storage
    known = ", ".join(repr(name) for name in NAMED)
    if isinstance(storage, str):
        if storage in NAMED:
            return NAMED[storage]
        raise ValueError(f"storage={storage!r} is not known: it is one of {known}.")
    raise TypeError(
        f"storage={storage!r} is a {type(storage).__name__}: it must be one of {known}, a "
        "Storage, or a mapping from slot names to these."
    )


def per_slot(storage: Any, slots: Mapping[str, Slot]) -> dict[str, Storage]:
    """The storage of each slot, from the `storage=` argument of a transformation."""
    if isinstance(storage, Mapping):
        found = {name: resolve(storage.get(name)) for name in slots}
    else:
        found = dict.fromkeys(slots, resolve(storage))
    found |= {name: Constant() for name, slot in slots.items() if slot.constant}
    for name, slot in slots.items():
        if found[name].nonnegative_only and not slot.nonnegative:
            fit = {name: storage for name, slot in slots.items() if slot.nonnegative}
            raise ValueError(
                f"storage={storage!r} is for slots that are never negative, and the slot {name!r} has a "
                f"sign: give each slot its own, such as storage={{{name!r}: 'bfloat16'"
                + "".join(f", {each!r}: 'factored'" for each in fit)
                + "}."
            )
    return found


def check_slot_names(storage: Any, names: set[str]) -> None:
    """Raises a ValueError for a mapping that names a slot which no rule has."""
    if isinstance(storage, Mapping) and (unknown := set(storage) - names):
        raise ValueError(
            f"storage names the slots {sorted(unknown)}, which these rules do not have: their slots "
            f"are {sorted(names)}."
        )


def of_slots(storage: Any, slots: Any) -> Any:
    """Of a storage for each slot, that of some slots."""
    if not isinstance(storage, Mapping):
        return storage
    return {name: each for name, each in storage.items() if name in slots} or None


def with_dtype(storage: Any, slot: str, dtype: Any) -> Any:
    """The `storage=` argument with one slot kept in dtype: what optax's `mu_dtype` asks for."""
    if dtype is None:
        return storage
    if storage is not None:
        raise ValueError(
            f"a dtype of {slot} ({dtype!r}) and storage={storage!r} are two ways to say the same: "
            "give one of them."
        )
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(f"{slot} cannot be kept in {dtype}: give a floating-point dtype.")
    return {slot: Float(dtype)}
