"""A rule at the step at hand: its count, and its hyperparameters as arrays."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .. import maths
from . import contract, hyper, states
from .context import Context
from .rule import Rule, decay_names, fields, replace, trees_of
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
        self._trees = trees_of(rule)
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
            self._corrections[entry] = self._corrected(name, getattr(old, entry), is_past)
        self.scalars = {} if rule.layerwise else {name: getattr(old, name) for name in rule.scalars}

    def advance(
        self,
        measured: Sequence[Mapping[str, Any]],
        before: Sequence[RuleAtStep],
        dtypes: Sequence[Any],
        own: Sequence[Sequence[int]],
    ) -> None:
        """Moves the rule's scalars on, those of all arrays.

        measured: what `measure` returned for each array.
        before: the rules before it.
        dtypes: those in which the arrays are computed.
        own: of each array, which of the hyperparameters in the rule's trees are its own.
        """
        names = contract.same_names(self.rule, measured)
        dtype = self.numbers_dtype(*dtypes)
        vectors = {
            name: jnp.stack([cast(each[name], dtype) for each in measured]) for name in names
        }
        self.scalars = advanced(
            self._of_all(dtype, own),
            self.scalars,
            vectors,
            self.step,
            self.extra,
            learning_rate(before, dtype),
            dtype,
        )

    def _corrected(self, name: str, old: Any, is_past: bool) -> list[Any]:
        """1 - b(1)···b(t) of each b: the moving average, with these b, of the number one."""
        given = hyper.each_of(value := getattr(self.rule, name))
        corrections = []
        for place, correction in enumerate(hyper.matching(name, value, old)):
            if given[place] is not None:
                decay = self._decay(name, place, correction.dtype)
                if hyper.is_schedule(given[place]) and is_past:
                    pass  # The state has it, of the step that was the last one.
                elif hyper.is_schedule(given[place]):
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

        own: of each hyperparameter that is a tree, the place of the one to take.
        """
        dtype, own = jnp.finfo(dtype).dtype, tuple(own)
        if (dtype, own) not in self._known:
            places = dict(zip(self._trees, own, strict=True))
            values = {name: self._value(name, places.get(name, 0), dtype) for name in self._values}
            self._known[dtype, own] = replace(self.rule, **values)
        return self._known[dtype, own]

    def _value(self, name: str, place: int, dtype: Any) -> Any:
        """A hyperparameter in the precision of dtype, made once however many arrays have it."""
        key = name, place, dtype
        if key not in self._known:
            value = self._values[name][place]
            if value is not None and name not in decay_names(type(self.rule)):
                value = cast(value, dtype)
            elif value is not None:
                value = self._decay(name, place, dtype)
                if f"{name}_correction" in self._corrections:
                    correction = cast(self._corrections[f"{name}_correction"][place], dtype)
                    value = value._replace(correction=correction)
                elif self.step is not None:
                    value = value._replace(correction=maths.power_complement(value, self.step))
            self._known[key] = value
        return self._known[key]

    def _of_all(self, dtype: Any, own: Sequence[Sequence[int]]) -> Rule:
        """The rule as `advance` sees it: what is its `per_array`, as vectors.

        own: of each array, the places of its hyperparameters in those that are trees.
        """
        columns = dict(zip(self._trees, zip(*own, strict=True), strict=False))
        values = {}
        for name in self._values:
            if name not in self.rule.per_array:
                values[name] = self._value(name, 0, dtype)
                continue
            each = [self._value(name, at, dtype) for at in columns.get(name, [0] * len(own))]
            if any(one is not None for one in each):
                values[name] = jax.tree.map(lambda *numbers: jnp.stack(numbers), *each)
        return replace(self.rule, **values)

    def learning_rate(self, dtype: Any, own: Sequence[int] | None) -> Any:
        """The rule's learning rate at this step, in the precision of dtype; None for a rule without.

        own: as in `in_dtype`; None for the rate of all arrays, which is not known where each has its own.
        """
        if own is None and self._trees:
            rate = self.learning_rate(dtype, [0] * len(self._trees))
            return None if rate is None else Unknown()
        if self.rule.learning_rate_field is None:
            return None
        try:
            return self.in_dtype(dtype, own or ()).learning_rate_at(self.step)
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
            **{
                name: hyper.rebuilt(getattr(self.rule, name.removesuffix("_correction")), each)
                for name, each in self._corrections.items()
            },
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


def learning_rate(
    before: Sequence[RuleAtStep], dtype: Any, own: Sequence[Sequence[int] | None] | None = None
) -> Any:
    """The product of the learning rates of the rules before one; None if they have none.

    own: of each of them, which of the hyperparameters in its trees to take; None for a rate of all arrays.
    """
    each = zip(before, own or [None] * len(before), strict=True)
    rates = [rate for rule, of in each if (rate := rule.learning_rate(dtype, of)) is not None]
    if any(isinstance(rate, Unknown) for rate in rates):
        return Unknown()
    return functools.reduce(operator.mul, rates) if rates else None


@jax.tree_util.register_static
@dataclass(frozen=True)
class Unknown:
    """The learning rate of a rule that cannot tell it, or has one for each array."""


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
