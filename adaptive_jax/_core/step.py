"""A rule at the step at hand: its count, and its hyperparameters as arrays."""

from __future__ import annotations

import functools
import operator
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import maths
from . import contract, hyper, states
from .context import Context
from .rule import Rule, decay_names, fields, replace
from .storage import base


class RuleAtStep:
    """A rule at the step at hand: its count, and its hyperparameters as arrays of shape ().

    rule: with its hyperparameters as they came.
    step: the number of the step; None for a rule that does not count them.
    count: what the state will hold of it: the same, and where slots are rounded at random, that of
      which the keys are made.
    scalars: the rule's `scalars`, those of the state till `advance` was called, then what it returned.
      Empty for a layerwise rule, whose arrays have their own.
    extra: the numbers among the extra arguments that the rule asks for.
    """

    def __init__(
        self,
        rule: Rule,
        storages: tuple[base.Storage, ...],
        old: Any,
        numbers: Mapping[str, Any],
        *,
        is_past: bool = False,
    ) -> None:
        """numbers: among the extra arguments. is_past: for the step that was the last one, not the next."""
        self.rule, self._old, self.storages = rule, old, storages
        self.extra = {name: numbers[name] for name in rule.extra_args if name in numbers}
        self.stochastic = any(storage.stochastic for storage in storages)
        self._layout = states.layout_of(rule, self.stochastic)
        self._in_dtype: dict[Any, Rule] = {}
        count = old.count if "count" in self._layout.fields else None
        if is_past:
            self.count, self.step = count, reached(count)
            count = None if count is None else jnp.maximum(self.step - 1, 0)
        elif self.stochastic:
            self.count = _next_count(count)
            count, self.step = reached(count), reached(self.count)
        else:
            self.step: Any = None if count is None else maths.incremented(count)
            self.count = self.step
        self._values = {}
        for name in fields(type(rule)).data:
            value = getattr(rule, name)
            hyper.check_one_number(type(rule).__name__, name, value)
            if callable(value):
                value = hyper.scheduled(type(rule).__name__, name, value, count)
            self._values[name] = value
        # For a constant b, the bias correction follows from the step.
        self._corrections = {
            f"{name}_correction": getattr(old, f"{name}_correction")
            if is_past
            else self._advance(name, getattr(old, f"{name}_correction"))
            for name in states.scheduled_decays(rule)
        }
        self.scalars = {} if rule.layerwise else {name: getattr(old, name) for name in rule.scalars}

    def keys(self, indices: Sequence[Any]) -> list[Any]:
        """For each array what its slots are rounded with, a key for each slot; None without rounding.

        All at once: thousands of operations on single numbers take longer than those on arrays.

        indices: the places of the arrays in the whole tree.
        """
        if not self.stochastic or not indices:
            return [None] * len(indices)
        salts = np.array([[zlib.crc32(name.encode()) for name in self.rule.slots]], np.uint32)
        if all(isinstance(index, np.generic) for index in indices):
            places: Any = np.stack(indices)
        else:
            places = jnp.stack([jnp.asarray(index, jnp.uint32) for index in indices])
        assert self.count is not None  # What rounds at random counts its steps.
        keys = maths.random_key(self.count, places[:, None], salts)
        return [jax.lax.index_in_dim(keys, i, keepdims=False) for i in range(len(indices))]

    def advance(
        self,
        measured: Sequence[Mapping[str, Any]],
        before: Sequence[RuleAtStep],
        dtypes: Sequence[Any],
    ) -> None:
        """Moves the rule's scalars on, those of all arrays.

        measured: what `measure` returned for each array.
        before: the rules before it.
        dtypes: those in which the arrays are computed.
        """
        names = contract.same_names(self.rule, measured)
        dtype = self.numbers_dtype(*dtypes)
        vectors = {
            name: jnp.stack([cast(each[name], dtype) for each in measured]) for name in names
        }
        self.scalars = advanced(
            self.in_dtype(dtype),
            self.scalars,
            vectors,
            self.step,
            self.extra,
            learning_rate(before, dtype),
            dtype,
        )

    def _advance(self, name: str, correction: jax.Array) -> jax.Array:
        """1 - b(1)···b(t): the moving average, with these b, of the number one."""
        decay = self._decay(name, correction.dtype)
        return maths.ema(jnp.ones_like(correction), correction, decay)

    def _decay(self, name: str, dtype: Any) -> maths.DecayRate:
        value = self._values[name]
        if isinstance(value, maths.DecayRate):
            return maths.DecayRate(cast(value.value, dtype), cast(value.complement, dtype))
        value = cast(value, dtype)
        return maths.DecayRate(value, maths.complement(value))

    def in_dtype(self, dtype: Any) -> Rule:
        """The rule with its hyperparameters in the precision of dtype, made once per dtype."""
        dtype = jnp.finfo(dtype).dtype
        if dtype not in self._in_dtype:
            values: dict[str, Any] = {
                name: value
                if isinstance(value, (NoneType, maths.DecayRate))
                else cast(value, dtype)
                for name, value in self._values.items()
            }
            for name in decay_names(type(self.rule)):
                if values[name] is None:
                    continue
                decay = self._decay(name, dtype)
                if f"{name}_correction" in self._corrections:
                    correction = cast(self._corrections[f"{name}_correction"], dtype)
                    decay = decay._replace(correction=correction)
                elif self.step is not None:
                    decay = decay._replace(correction=maths.power_complement(decay, self.step))
                values[name] = decay
            self._in_dtype[dtype] = replace(self.rule, **values)
        return self._in_dtype[dtype]

    def learning_rate(self, dtype: Any) -> Any:
        """The rule's learning rate at this step, in the precision of dtype; None for a rule without."""
        if self.rule.learning_rate_field is None:
            return None
        try:
            return self.in_dtype(dtype).learning_rate_at(self.step)
        except TypeError:
            if self.step is None:  # A rule of the user's own that does not count its steps.
                return Unknown()
            raise

    def numbers_dtype(self, *dtypes: Any) -> Any:
        """In which the rule's scalars are computed: float32, or what is wider in them or in dtypes."""
        scalars = [getattr(self._old, name) for name in self.rule.scalars]
        own = [x.dtype for x in jax.tree.leaves(scalars)]
        return maths.compute_dtype(jnp.float32, *own, *dtypes)

    def new_state(self, entries: dict[str, Any]) -> Any:
        """The rule's state after this step. A rule without state hands back what it got.

        entries: the trees in it: slots, and the scalars of a layerwise rule.
        """
        if not self._layout.fields:
            return self._old
        return self._layout.make(
            **({"count": self.count} if "count" in self._layout.fields else {}),
            **self._corrections,
            **{name: value for name, value in self.scalars.items() if name in self.rule.scalars},
            **entries,
        )


def _next_count(count: Any) -> jax.Array:
    """The count of a state that rounds at random, of which its keys are made: it never stands still.

    After the largest number it goes on through the negative ones, again and again.
    """
    return jax.lax.select(count == -1, jnp.full_like(count, jnp.iinfo(count.dtype).min), count + 1)


def reached(count: Any) -> Any:
    """The number of steps that a count stands for: the largest one from there on, as in optax."""
    if count is None:
        return None
    return jnp.where(count < 0, jnp.full_like(count, jnp.iinfo(count.dtype).max), count)


def cast(value: Any, dtype: Any) -> jax.Array:
    """The value in a dtype, never weakly typed."""
    return jax.lax.convert_element_type(value, dtype)


def dtype_for(x: Any, stored: Any = ()) -> Any:
    """In which a rule computes: float32, or what is wider or complex in an array and its slots."""
    return maths.compute_dtype(x.dtype, *(leaf.dtype for leaf in jax.tree.leaves(stored)))


def advanced(
    rule: Rule,
    before: Mapping[str, Any],
    measured: Mapping[str, Any],
    step: Any,
    extra: Mapping[str, Any],
    learning_rate: Any,
    dtype: Any,
) -> dict[str, Any]:
    """What a rule's advance makes of its scalars, each of which keeps its own precision.

    dtype: in which it computes.
    """
    scalars = {name: cast(value, dtype) for name, value in before.items()}
    context = Context(
        f"{type(rule).__name__}.advance",
        index=2**32 - 1,  # Of all arrays together.
        step=step,
        extra=in_precision(extra, dtype),
        **product_of_rates(learning_rate, dtype),
    )
    with contract.of_method(rule, "advance", scalars, measured, extra):
        result = rule.advance(scalars, measured, context)  # type: ignore[misc]  # Not None: it advances.
    new = contract.checked_scalars(rule, before, result)
    kept = {name: cast(new[name], old.dtype) for name, old in before.items()}
    return {name: jnp.asarray(value) for name, value in new.items()} | kept


def learning_rate(before: Sequence[RuleAtStep], dtype: Any) -> Any:
    """The product of the learning rates of the rules before one; None if they have none."""
    rates = [rate for rule in before if (rate := rule.learning_rate(dtype)) is not None]
    if any(isinstance(rate, Unknown) for rate in rates):
        return Unknown()
    return functools.reduce(operator.mul, rates) if rates else None


@jax.tree_util.register_static
@dataclass(frozen=True)
class Unknown:
    """The learning rate of a rule that cannot tell it."""


def product_of_rates(learning_rate: Any, dtype: Any) -> dict[str, Any]:
    """What a context has under `learning_rate`: nothing where it is not known."""
    if isinstance(learning_rate, Unknown):
        return {}
    rate = 1.0 if learning_rate is None else learning_rate
    return {"learning_rate": cast(rate, jnp.finfo(dtype).dtype)}


def in_precision(numbers: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Numbers in the precision of dtype; whole ones, and what is true or false, as they are."""
    real = jnp.finfo(dtype).dtype
    return {
        name: cast(x, real) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for name, x in numbers.items()
    }
