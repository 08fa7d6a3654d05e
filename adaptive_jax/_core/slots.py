"""Rules in a row on one array, and its slots between the state and the rule."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import maths
from . import contract
from .plan import Plan, Stage
from .rule import Context
from .step import cast


@jax.jit
def update_array(
    plan: Plan,
    gradient: jax.Array,
    slots: Sequence[dict[str, Any]],
    param: jax.Array | None,
    index: Any,
) -> tuple[jax.Array, list[dict[str, Any]]]:
    """Rules in a row on one array. Jitted so that arrays of one shape and dtype are traced once.

    gradient: or what the rules before these made of it.
    slots: of each rule, what the state holds.
    param: None where no parameters came.
    index: the place of the array in the tree, where the plan is stochastic.
    """
    direction = cast(gradient, plan.dtype)
    if param is not None:
        param = cast(param, maths.compute_dtype(jnp.result_type(param), plan.dtype))
    # Complex arrays times real scalars are meant, also where a user forbids promotion.
    is_complex = jnp.issubdtype(plan.dtype, jnp.complexfloating)
    new = []
    for stage, stored in zip(plan.stages, slots, strict=True):
        kept = _Slots(stage, stored, plan.dtype, index)
        context = Context(stage.step, stage.scalars, stage.statistic, stage.selected, kept.store)
        promotion = (
            jax.numpy_dtype_promotion("standard") if is_complex else contextlib.nullcontext()
        )
        with promotion, contract.of_update(stage.rule):
            result = stage.rule.update(direction, kept.read(), param, context)
        direction, values = contract.checked_result(stage.rule, gradient, result)
        new.append(kept.encoded(values))
    return maths.saturating_cast(direction, plan.out_dtype), new


class _Slots:
    """The slots of one rule for one array, between the state and the rule."""

    def __init__(self, stage: Stage, stored: dict[str, Any], dtype: Any, index: Any) -> None:
        self._stored, self._count, self._index = stored, stage.count, index
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
