"""Rules in a row on one array, and its slots between the state and the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import maths
from . import contract
from .context import Context
from .plan import Plan, Stage
from .step import advanced, cast, in_precision, product_of_rates


@jax.jit
def update_array(
    plan: Plan,
    gradient: jax.Array,
    entries: Sequence[dict[str, Any]],
    keys: Sequence[jax.Array | None],
    param: jax.Array | None,
    index: Any,
    extra: Mapping[str, Any],
    first: jax.Array | None,
) -> tuple[jax.Array, list[dict[str, Any]]]:
    """Rules in a row on one array. Jitted so that arrays of one shape and dtype are traced once.

    gradient: or what the rules before these made of it.
    entries: of each rule, what the state holds for the array.
    keys: of each rule, one for each slot; None where none is rounded at random.
    param: None where no parameters came.
    index: the place of the array in the tree.
    extra: what extra arguments that are trees have for it.
    first: the gradient that came at first, where a rule asks for it.
    """
    array = _Array(plan, gradient, param, index, extra, first)
    new = []
    for stage, stored, of_slots in zip(plan.stages, entries, keys, strict=True):
        if stage is None:
            new.append(dict(stored))
            continue
        rule, after = stage.rule, {}
        scalars = stage.scalars
        if stage.advancing is not None:
            after = _advanced(array, stage, stored, of_slots)
            scalars = in_precision(after, plan.dtype)
        kept = _Slots(stage, stored, plan.dtype, of_slots)
        slots = kept.read()
        with contract.of_method(rule, "update", scalars, rule.extra_args, complex_of=plan.dtype):
            context = array.context(stage, "update", scalars, kept)
            result = rule.update(array.direction, slots, array.param, context)
        shapes = {name: None if x is None else x.shape for name, x in slots.items()}
        array.direction, values = contract.checked_result(rule, gradient, result, shapes)
        own = {name: after[name] for name in rule.scalars if name in after}
        new.append(kept.encoded(values) | own)
    return maths.saturating_cast(array.direction, plan.out_dtype), new


@jax.jit
def measure_array(
    plan: Plan,
    gradient: jax.Array,
    entries: Sequence[dict[str, Any]],
    keys: Sequence[jax.Array | None],
    param: jax.Array | None,
    index: Any,
    extra: Mapping[str, Any],
    first: jax.Array | None,
) -> dict[str, jax.Array]:
    """What the one rule of a plan measures of one array, of what `update_array` would get."""
    array = _Array(plan, gradient, param, index, extra, first)
    (stage,), (stored,), (of_slots,) = plan.stages, entries, keys
    assert stage is not None  # An array without elements is not measured.
    return _measured(array, stage, stored, of_slots, stage.scalars)


def _measured(
    array: _Array,
    stage: Stage,
    stored: dict[str, Any],
    keys: jax.Array | None,
    scalars: dict[str, jax.Array],
) -> dict[str, jax.Array]:
    rule, kept = stage.rule, _Slots(stage, stored, array.dtype, keys)
    with contract.of_method(rule, "measure", scalars, rule.extra_args, complex_of=array.dtype):
        context = array.context(stage, "measure", scalars, kept)
        measured = rule.measure(array.direction, kept.read(), array.param, context)  # type: ignore[misc]
    return {name: jnp.asarray(x) for name, x in contract.checked_numbers(rule, measured).items()}


def _advanced(
    array: _Array, stage: Stage, stored: dict[str, Any], keys: jax.Array | None
) -> dict[str, jax.Array]:
    """The scalars of one array after this step, of what is measured of it alone."""
    rule: Any = stage.advancing
    before = {name: stored[name] for name in rule.scalars}
    if rule.advance is None:
        return before
    dtype, measured = maths.compute_dtype(jnp.float32, array.dtype, *_dtypes(before)), {}
    if rule.measure is not None:
        found = _measured(array, stage, stored, keys, in_precision(before, array.dtype))
        measured = {name: lax.expand_dims(cast(x, dtype), [0]) for name, x in found.items()}
    return advanced(rule, before, measured, stage.step, stage.extra, stage.learning_rate, dtype)


def _dtypes(numbers: Mapping[str, jax.Array]) -> list[Any]:
    return [x.dtype for x in numbers.values()]


class _Array:
    """One array on its way through rules in a row, and what they are told of it."""

    def __init__(
        self,
        plan: Plan,
        gradient: jax.Array,
        param: jax.Array | None,
        index: Any,
        extra: Mapping[str, Any],
        first: jax.Array | None,
    ) -> None:
        self.dtype, self.index = plan.dtype, index
        self.direction = cast(gradient, plan.dtype)
        self.param = param
        if param is not None:
            self.param = cast(param, self._precision_of(param))
        self._extra, self._first = extra, first

    def _precision_of(self, x: jax.Array) -> Any:
        return maths.compute_dtype(jnp.result_type(x), self.dtype)

    def context(
        self, stage: Stage, method: str, scalars: Mapping[str, Any], kept: _Slots
    ) -> Context:
        """What a method of a rule is told."""
        rule, known = stage.rule, {}
        if rule.needs_gradient and self._first is not None:
            known["gradient"] = cast(self._first, self.dtype)
        own = {name: self._extra[name] for name in rule.extra_args if name in self._extra}
        return Context(
            f"{type(rule).__name__}.{method}",
            index=self.index,
            step=stage.step,
            scalars=scalars,
            extra=stage.extra | {k: cast(x, self._precision_of(x)) for k, x in own.items()},
            selected=stage.selected,
            store=kept.store,
            **product_of_rates(stage.learning_rate, self.dtype),
            **known,
        )


def decoded(stage: Stage, entries: Mapping[str, Any], dtype: Any) -> dict[str, jax.Array]:
    """The slots of one rule for one array, as the rule sees them."""
    return _Slots(stage, entries, dtype, None).read()


class _Slots:
    """The slots of one rule for one array, between the state and the rule."""

    def __init__(
        self, stage: Stage, stored: Mapping[str, Any], dtype: Any, keys: jax.Array | None
    ) -> None:
        self._rule = stage.rule
        self._stored = {name: stored[name] for name in stage.rule.slots}
        self._keys = keys
        self._storages = dict(zip(stage.rule.slots, stage.storages, strict=True))
        real = jnp.finfo(dtype).dtype
        self._dtypes = {
            name: real if slot.nonnegative else dtype for name, slot in stage.rule.slots.items()
        }
        self._codes: dict[str, tuple[Any, Any]] = {}

    def read(self) -> dict[str, jax.Array]:
        """Each slot as the rule sees it; None for one that this array has not."""
        return {name: self._decode(name, stored) for name, stored in self._stored.items()}

    def _decode(self, name: str, stored: Any) -> Any:
        if stored is None:
            return None
        return maths.saturating_cast(self._storages[name].decode(stored), self._dtypes[name])

    def store(self, name: str, value: jax.Array) -> jax.Array:
        """Encodes value, and returns what it reads back as."""
        contract.check_stored(self._rule, name, self._stored, value)
        if self._stored[name] is None:
            self._codes[name] = None, None
            return value
        storage, key = self._storages[name], None
        if storage.stochastic:
            assert self._keys is not None
            key = lax.index_in_dim(self._keys, list(self._stored).index(name), keepdims=False)
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
        return self._stored | {name: code for name, (_, code) in self._codes.items()}
