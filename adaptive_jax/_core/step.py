"""A rule at the step at hand: its count, and its hyperparameters as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import maths
from . import hyper, states
from .rule import Rule, decay_names, fields, replace, trees
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
        count = old.count if "count" in self._layout.fields else None
        if self.stochastic:
            self.count = _next_count(count)
            count, self.step = reached(count), reached(self.count)
        else:
            self.step: Any = None if count is None else maths.incremented(count)
            self.count = self.step
        self._trees = trees(rule)
        self._known: dict[Any, Any] = {}
        self._values: dict[str, list[Any]] = {}
        for name in fields(type(rule)).data:
            self._values[name] = []
            for where, value in hyper.named(name, getattr(rule, name)):
                hyper.check_one_number(type(rule).__name__, where, value)
                if hyper.is_schedule(value):
                    value = hyper.scheduled(type(rule).__name__, where, value, count)
                self._values[name].append(value)
        self._corrections: dict[str, list[Any]] = {}
        for name in states.scheduled_decays(rule):
            entry = f"{name}_correction"
            self._corrections[entry] = self._advanced(name, getattr(old, entry))
        self.scalars = {name: getattr(old, name) for name in rule.scalars}
        if self.scalars:
            dtype = next(iter(self.scalars.values())).dtype
            self.scalars = dict(self.in_dtype(dtype).advance(self.scalars, self.step))

    def _advanced(self, name: str, old: Any) -> list[Any]:
        """1 - b(1)···b(t) of each b: the moving average, with these b, of the number one."""
        given = hyper.each_of(value := getattr(self._rule, name))
        corrections = []
        for place, (b, correction) in enumerate(
            zip(given, hyper.matching(name, value, old), strict=True)
        ):
            if b is not None:
                decay = self._decay(name, place, correction.dtype)
                if hyper.is_schedule(b):
                    correction = maths.ema(jnp.ones_like(correction), correction, decay)
                else:  # For a constant b, it follows from the step.
                    correction = cast(maths.power_complement(decay, self.step), correction.dtype)
            corrections.append(correction)
        return corrections

    def _decay(self, name: str, place: int, dtype: Any) -> maths.DecayRate:
        value = self._values[name][place]
        if isinstance(value, maths.DecayRate):
            return maths.DecayRate(cast(value.value, dtype), cast(value.complement, dtype))
        value = cast(value, dtype)
        return maths.DecayRate(value, maths.complement(value))

    def in_dtype(self, dtype: Any, own: Sequence[int] = ()) -> Rule:
        """The rule with its hyperparameters in the precision of dtype, made once per dtype.

        own: the place of the one to take, in each hyperparameter that is a tree.
        """
        key = dtype, own = jnp.finfo(dtype).dtype, tuple(own)
        if key not in self._known:
            places = dict(zip(self._trees, own, strict=True))
            values = {name: self._value(name, places.get(name, 0), dtype) for name in self._values}
            self._known[key] = replace(self._rule, **values)
        return self._known[key]

    def _value(self, name: str, place: int, dtype: Any) -> Any:
        """A hyperparameter in the precision of dtype, made once however many arrays have it."""
        key = name, place, dtype
        if key not in self._known:
            value = self._values[name][place]
            if value is None:
                pass
            elif name not in decay_names(type(self._rule)):
                value = cast(value, dtype)
            else:
                value = self._decay(name, place, dtype)
                if f"{name}_correction" in self._corrections:
                    correction = cast(self._corrections[f"{name}_correction"][place], dtype)
                    value = value._replace(correction=correction)
                elif self.step is not None:
                    value = value._replace(correction=maths.power_complement(value, self.step))
            self._known[key] = value
        return self._known[key]

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
            **{
                name: hyper.rebuilt(getattr(self._rule, name.removesuffix("_correction")), each)
                for name, each in self._corrections.items()
            },
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
