"""Slots that never change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .base import PLAIN, Storage


@dataclass(frozen=True)
class Constant(Storage):
    """What is kept exactly, bit by bit: a copy of a parameter in its own dtype, or other first values."""

    def init(self, value: float | jax.Array, param: Any, *, real: bool) -> jax.Array:
        return PLAIN.init(value, param, real=real)

    def encode(self, value: jax.Array, stored: jax.Array, key: jax.Array | None) -> jax.Array:
        return lax.convert_element_type(value, stored.dtype)

    def decode(self, stored: jax.Array) -> jax.Array:
        return stored

    def holds(self, stored: Any) -> bool:
        return hasattr(stored, "dtype") and jnp.issubdtype(stored.dtype, jnp.inexact)
