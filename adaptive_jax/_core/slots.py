"""Rules in a row on one array, and its slots between the state and the rule."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .. import maths
from . import contract
from .plan import Plan, Stage
from .rule import Context
from .step import cast


class Part(NamedTuple):
    """A part of an array, where the rules see no more of it at a time.

    place: of each of its numbers in the whole array, as `maths.places` counts them.
    inside: whether there is a number at all; None where there is one everywhere.
    """

    place: jax.Array
    inside: jax.Array | None

    def key(self, key: jax.Array) -> jax.Array:
        """A key of the whole array for `maths.random_bits` of this part."""
        return self.place + key

    def filled(self, value: jax.Array) -> jax.Array:
        """A value that is 0 where there is no number: a block's scale must not depend on it."""
        if self.inside is None:
            return value
        return lax.select(self.inside, value, jnp.zeros_like(value))


def rules_in_a_row(
    plan: Plan,
    gradient: jax.Array,
    slots: Sequence[dict[str, Any]],
    param: jax.Array | None,
    index: Any,
    part: Part | None = None,
) -> tuple[jax.Array, list[dict[str, Any]]]:
    """Rules in a row on one array: the update, or the new parameter, and the new slots.

    gradient: or what the rules before these made of it.
    slots: of each rule, what the state holds.
    param: None where no parameters came.
    index: the place of the array in the tree, where the plan is stochastic.
    part: which part of the array all these are, if they are not the whole.
    """
    old_param, direction = param, cast(gradient, plan.dtype)
    if param is not None:
        param = cast(param, maths.compute_dtype(jnp.result_type(param), plan.dtype))
    # Complex arrays times real scalars are meant, also where a user forbids promotion.
    is_complex = jnp.issubdtype(plan.dtype, jnp.complexfloating)
    new = []
    for stage, stored in zip(plan.stages, slots, strict=True):
        kept = _Slots(stage, stored, plan.dtype, index, part)
        context = Context(stage.step, stage.scalars, stage.statistic, stage.selected, kept.store)
        promotion = (
            jax.numpy_dtype_promotion("standard") if is_complex else contextlib.nullcontext()
        )
        with promotion, contract.of_update(stage.rule):
            result = stage.rule.update(direction, kept.read(), param, context)
        direction, values = contract.checked_result(stage.rule, gradient, result)
        new.append(kept.encoded(values))
    direction = maths.saturating_cast(direction, plan.out_dtype)
    if plan.adding is not None and old_param is not None:
        key = plan.adding.key(old_param, index)
        if key is not None and part is not None:
            key = part.key(key)
        direction = plan.adding.added(old_param, direction, key)
    return direction, new


update_array = jax.jit(rules_in_a_row)
"""Jitted so that arrays of one shape and dtype are traced once."""


class _Slots:
    """The slots of one rule for one array, between the state and the rule."""

    def __init__(
        self, stage: Stage, stored: dict[str, Any], dtype: Any, index: Any, part: Part | None
    ) -> None:
        self._stored, self._count, self._index, self._part = stored, stage.count, index, part
        self._storages = dict(zip(stage.rule.slots, stage.storages, strict=True))
        real = jnp.finfo(dtype).dtype
        self._dtypes = {
            name: real if slot.nonnegative else dtype for name, slot in stage.rule.slots.items()
        }
        self._codes: dict[str, tuple[jax.Array, Any]] = {}

    def read(self) -> dict[str, jax.Array]:
        return {name: self._decode(name, stored) for name, stored in self._stored.items()}

    def _decode(self, name: str, stored: Any) -> jax.Array:
        return maths.saturating_cast(self._storages[name].decode(stored), self._dtypes[name])

    def store(self, name: str, value: jax.Array) -> jax.Array:
        """Encodes value, and returns what it reads back as."""
        contract.check_slot_name(name, self._stored)
        storage, key = self._storages[name], None
        if storage.stochastic:
            key = maths.random_key(self._count, self._index, zlib.crc32(name.encode()))
        filled = value
        if self._part is not None:
            filled = self._part.filled(value)
            key = None if key is None else self._part.key(key)
        code = storage.encode(filled, self._stored[name], key)
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
