"""A rule at the step at hand: its count, and its hyperparameters as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType
from typing import Any

import jax
import jax.numpy as jnp

from .. import maths
from . import hyper, states
from .rule import Rule, decay_names, fields, replace
from .storage import base


class RuleAtStep:
    """A rule at the step at hand: its count, and its hyperparameters as arrays of shape ().

    step: the number of the step; None for a rule that does not count them.
    count: what the state will hold of it: the same, and where slots are rounded at random, that of
      which the keys are made.
    scalars: the rule's `scalars` after this step.
    """

    def __init__(self, rule: Rule, storages: tuple[base.Storage, ...], old: Any) -> None:
        self._rule, self._old, self.storages = rule, old, storages
        self.stochastic = any(storage.stochastic for storage in storages)
        self._layout = states.layout_of(rule, self.stochastic)
        self._in_dtype: dict[Any, Rule] = {}
        count = old.count if "count" in self._layout.fields else None
        if self.stochastic:
            self.count = _next_count(count)
            count, self.step = reached(count), reached(self.count)
        else:
            self.step: Any = None if count is None else maths.incremented(count)
            self.count = self.step
        self._values = {}
        for name in fields(type(rule)).data:
            value = getattr(rule, name)
            hyper.check_one_number(type(rule).__name__, name, value)
            if hyper.is_schedule(value):
                value = hyper.scheduled(type(rule).__name__, name, value, count)
            self._values[name] = value
        # For a constant b, the bias correction follows from the step.
        self._corrections = {
            f"{name}_correction": self._advance(name, getattr(old, f"{name}_correction"))
            for name in states.scheduled_decays(rule)
        }
        self.scalars = {name: getattr(old, name) for name in rule.scalars}
        if self.scalars:
            dtype = next(iter(self.scalars.values())).dtype
            self.scalars = dict(self.in_dtype(dtype).advance(self.scalars, self.step))

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
            for name in decay_names(type(self._rule)):
                if values[name] is None:
                    continue
                decay = self._decay(name, dtype)
                if f"{name}_correction" in self._corrections:
                    correction = cast(self._corrections[f"{name}_correction"], dtype)
                    decay = decay._replace(correction=correction)
                elif self.step is not None:
                    decay = decay._replace(correction=maths.power_complement(decay, self.step))
                values[name] = decay
            self._in_dtype[dtype] = replace(self._rule, **values)
        return self._in_dtype[dtype]

    def scalars_in(self, dtype: Any) -> dict[str, jax.Array]:
        """The rule's `scalars` after this step, in the precision of dtype."""
        dtype = jnp.finfo(dtype).dtype
        return {name: cast(number, dtype) for name, number in self.scalars.items()}

    def statistic(self, directions: Sequence[Any]) -> Any:
        """What the rule wants to know of the whole tree."""
        if self._rule.statistic is None:
            return None
        arrays = [cast(x, dtype_for(x)) for x in directions if x is not None]
        rule = self.in_dtype(maths.compute_dtype(jnp.float32, *(x.dtype for x in arrays)))
        return rule.statistic(arrays)  # type: ignore[misc]  # Not None: checked above.

    def new_state(self, slots: dict[str, Any]) -> Any:
        """The rule's state after this step. A rule without state hands back what it got."""
        if not self._layout.fields:
            return self._old
        return self._layout.make(
            **({"count": self.count} if "count" in self._layout.fields else {}),
            **self._corrections,
            **self.scalars,
            **slots,
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
