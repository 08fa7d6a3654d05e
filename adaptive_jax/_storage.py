"""How a slot is kept: a codec between the array that a rule computes with and what the state holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from . import maths


class Storage:
    """A codec for slots. Subclass it as a frozen dataclass: a storage is static, so it must hash.

    The lift decodes a slot before a rule sees it, and encodes what the rule returns. A rule that
    passes a new value through `ctx.store` goes on with decode(encode(value)), what the state
    really holds, so a run that restarts from a checkpoint takes the very same steps.
    `encode(decode(stored), stored)` must give `stored` back.
    """

    def init(self, value: float | jax.Array, param: Any, *, real: bool) -> Any:
        """What the state holds at first: a slot of the shape of param, filled with value.

        real: whether the slot of a complex parameter is real all the same (a second moment).
        """
        raise NotImplementedError

    def encode(self, value: jax.Array, stored: Any) -> Any:
        """What the state is to hold for value, in the structure and the dtypes of stored."""
        raise NotImplementedError

    def decode(self, stored: Any) -> jax.Array:
        """The array that stored stands for."""
        raise NotImplementedError


@dataclass(frozen=True)
class Float(Storage):
    """A plain array of a floating-point dtype, rounded to nearest.

    dtype: None for float32, or the parameter's own dtype where that is wider or complex.
    """

    dtype: Any = None

    def init(self, value: float | jax.Array, param: Any, *, real: bool) -> jax.Array:
        dtype = self.dtype
        if dtype is None:
            dtype = maths.compute_dtype(jnp.result_type(param))
        if real:
            dtype = jnp.finfo(dtype).dtype
        return jnp.full_like(param, value, dtype=dtype)

    def encode(self, value: jax.Array, stored: jax.Array) -> jax.Array:
        return maths.saturating_cast(value, stored.dtype)

    def decode(self, stored: jax.Array) -> jax.Array:
        return stored


NAMED: dict[str, Storage] = {"float32": Float()}
"""The storages that `storage=` knows by name."""


def _resolve(storage: Any) -> Storage:
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


def per_slot(storage: Any, slots: Mapping[str, Any]) -> dict[str, Storage]:
    """The storage of each slot, from the `storage=` argument of a transformation."""
    if not isinstance(storage, Mapping):
        return dict.fromkeys(slots, _resolve(storage))
    return {name: _resolve(storage.get(name)) for name in slots}


def check_slot_names(storage: Any, names: set[str]) -> None:
    """Raises a ValueError for a mapping that names a slot which no rule has."""
    if isinstance(storage, Mapping) and (unknown := set(storage) - names):
        raise ValueError(
            f"storage names the slots {sorted(unknown)}, which these rules do not have: their slots "
            f"are {sorted(names)}."
        )


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
