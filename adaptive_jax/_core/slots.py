"""Rules in a row on one array, and its slots between the state and the rule."""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import maths
from . import contract
from .rule import Context, Rule
from .step import cast, reached
from .storage import base


@functools.partial(jax.jit, static_argnames=("storages", "selected", "dtypes"))
def update_array(
    rules: tuple[Rule, ...],
    counts: tuple[jax.Array | None, ...],
    scalars: tuple[dict[str, jax.Array], ...],
    statistic: Any,
    gradient: jax.Array,
    stored: tuple[dict[str, Any], ...],
    param: jax.Array | None,
    index: Any,
    *,
    storages: tuple[tuple[base.Storage, ...], ...],
    selected: tuple[bool, ...],
    dtypes: tuple[Any, Any],
) -> tuple[jax.Array, tuple[dict[str, Any], ...]]:
    """Rules in a row on one array. Jitted so that arrays of one shape and dtype are traced once."""
    dtype, out_dtype = dtypes
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    direction = cast(gradient, dtype)
    if param is not None:
        param = cast(param, maths.compute_dtype(jnp.result_type(param), dtype))
    new = []
    for rule, count, numbers, old, codecs, select in zip(
        rules, counts, scalars, stored, storages, selected, strict=True
    ):
        slots = _Slots(rule, old, codecs, dtype, count, index)
        context = Context(
            step=reached(count) if any(codec.stochastic for codec in codecs) else count,
            scalars={k: cast(number, jnp.finfo(dtype).dtype) for k, number in numbers.items()},
            statistic=statistic,
            selected=select,
            store=slots.store,
        )
        # Complex arrays times real scalars are meant, also where a user forbids promotion.
        promotion = (
            jax.numpy_dtype_promotion("standard") if is_complex else contextlib.nullcontext()
        )
        with promotion, contract.of_update(rule):
            result = rule.update(direction, slots.read(), param, context)
        direction, values = contract.returned(rule, gradient, result)
        new.append(slots.encoded(values))
    return maths.saturating_cast(direction, out_dtype), tuple(new)


class _Slots:
    """The slots of one rule for one array, between the state and the rule."""

    def __init__(
        self,
        rule: Rule,
        stored: dict[str, Any],
        storages: Sequence[base.Storage],
        dtype: Any,
        count: Any,
        index: Any,
    ) -> None:
        self._stored, self._count, self._index = stored, count, index
        self._storages = dict(zip(rule.slots, storages, strict=True))
        real = jnp.finfo(dtype).dtype
        self._dtypes = {
            name: real if slot.nonnegative else dtype for name, slot in rule.slots.items()
        }
        self._codes: dict[str, tuple[jax.Array, Any]] = {}

    def read(self) -> dict[str, jax.Array]:
        return {name: self._decode(name, stored) for name, stored in self._stored.items()}

    def _decode(self, name: str, stored: Any) -> jax.Array:
        return maths.saturating_cast(self._storages[name].decode(stored), self._dtypes[name])

    def store(self, name: str, value: jax.Array) -> jax.Array:
        """Encodes value, and returns what it reads back as."""
        contract.slot_name(name, self._stored)
        storage, key = self._storages[name], None
        if storage.stochastic:
            key = maths.random_key(self._count, self._index, zlib.crc32(name.encode()))
        code = storage.encode(value, self._stored[name], key)
        decoded = self._decode(name, code)
        if storage.stochastic:
            decoded = maths.read_back(value, decoded)
        self._codes[name] = decoded, code
        return decoded

    def encoded(self, values: Any) -> dict[str, Any]:
        """What the state is to hold. A value that came from `store` is not encoded again."""
        for name, value in values.items():
            if name not in self._codes or self._codes[name][0] is not value:
                self.store(name, value)
        return {name: self._codes[name][1] for name in self._stored}
