"""What a rule is: the maths of one array, with its hyperparameters as data."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from . import closures, hyper, nodes
from .hyper import ANNOTATIONS, show
from .mask import Mask


@dataclass(frozen=True)
class Slot:
    """Optimizer state of the shape of a parameter.

    initial: its first value, a number or the name of the hyperparameter that holds it.
    nonnegative: whether it is real and never negative, such as a second moment.
    """

    initial: float | str = 0.0
    nonnegative: bool = False


@dataclass(frozen=True)
class Context:
    """What the lift tells a rule about the step at hand.

    step: 1 for the first update, int32, shape (). None for a rule that does not count its steps.
    scalars: the rule's `scalars` after this step, as arrays of shape ().
    statistic: what `Rule.statistic` returned for this step; None without one.
    selected: whether the rule's `mask` selects this array; True without a mask.
    store: `store(name, value)` returns value as the slot will hold it. A rule that computes its
      direction from stored values takes the same steps after a restart, whatever the storage.
    """

    step: Any
    scalars: Mapping[str, Any]
    statistic: Any
    selected: bool
    store: Callable[[str, jax.Array], jax.Array]


class Rule:
    """The maths of one array. Subclass it as a frozen dataclass whose fields are hyperparameters.

    A field annotated `Hyper`, `NonNegative`, `Fraction` or `Decay` is data: changing its value
    compiles nothing again. Every other field is static, an option that chooses code. A rule knows
    nothing of pytrees, dtypes, schedules or storage: it sees arrays of float32 at least, and
    hyperparameters as arrays of shape () in the same precision.

    Never branch in Python on a hyperparameter's value: it may be a tracer. `x is None` is fine.

        @dataclass(frozen=True)
        class Momentum(aj.Rule):
            decay: aj.Hyper = 0.9
            slots = {"velocity": aj.Slot()}

            def update(self, grad, slots, param, ctx):
                velocity = ctx.store("velocity", self.decay * slots["velocity"] + grad)
                return velocity, {"velocity": velocity}

    Class attributes:
      slots: the rule's state, from names to `Slot`s. Names are a stable format: never rename one.
      scalars: state that is one number for all arrays, from names to first values; `advance` moves
        it on. As stable a format as slots.
      counts_steps: whether the rule needs `ctx.step` or a bias correction. If None, it counts
        when it has slots.
      needs_params: whether it needs the parameters (otherwise `param` may be None).
      takes_complex: whether it works on complex arrays, which are refused by name if not.
      state_type_name: the name of the state's NamedTuple, `<rule's name>State` if None.
      state_is_masked: whether the state of a rule that has a `mask` is an `optax.MaskedState`, as
        that of `optax.masked`.
      learning_rate_field: the field that multiplies the direction; None for none.
    """

    slots: ClassVar[Mapping[str, Slot]] = {}
    scalars: ClassVar[Mapping[str, float]] = {}
    counts_steps: ClassVar[bool | None] = None
    needs_params: ClassVar[bool] = False
    takes_complex: ClassVar[bool] = True
    state_type_name: ClassVar[str | None] = None
    state_is_masked: ClassVar[bool] = False
    learning_rate_field: ClassVar[str | None] = "learning_rate"

    def update(
        self, grad: jax.Array, slots: Mapping[str, jax.Array], param: jax.Array | None, ctx: Context
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """The direction for one array, and the new values of its slots."""
        raise NotImplementedError(f"{type(self).__name__} defines no `update`.")

    def advance(self, scalars: Mapping[str, jax.Array], step: Any) -> Mapping[str, jax.Array]:
        """The rule's `scalars` after this step, computed once and not once per array."""
        raise NotImplementedError(f"{type(self).__name__} has scalars, but defines no `advance`.")

    statistic: ClassVar[Callable[[Any, Sequence[jax.Array]], jax.Array] | None] = None
    """`statistic(self, grads)`: something about the whole tree, from the list of all its arrays."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Set here, in the class itself, so that @dataclass leaves it alone.
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Rule.__repr__
        nodes.register(cls, _data_and_static)

    def __post_init__(self) -> None:
        for name, interval in fields(type(self))[1].items():
            value = getattr(self, name)
            if type(value) is float and value in interval:
                continue  # At once: a new learning rate may come in every step.
            if value is None and name not in _optional(type(self)):
                raise TypeError(
                    f"{name}=None is out of place in {type(self).__name__}: it must be {interval}, an "
                    "array of shape (), or a schedule."
                )
            value = hyper.hyperparameter(type(self).__name__, name, value, interval)
            # A schedule becomes a pytree: static data, compared by identity. Its leaves are the traced
            # numbers that it closes over.
            if callable(value) and not isinstance(value, jax.tree_util.Partial):
                value = closures.as_partial(value)
            object.__setattr__(self, name, value)
        for slot in self.slots.values():
            if isinstance(slot.initial, str):
                hyper.first_value(type(self).__name__, slot.initial, getattr(self, slot.initial))
        if (mask := getattr(self, "mask", None)) is not None:
            object.__setattr__(self, "mask", Mask.of(mask))

    def __repr__(self) -> str:
        """The call that made it; options that have their default are left out."""
        shown = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # A dataclass below here.
            value = getattr(self, field.name)
            is_default = isinstance(value, (bool, str)) and value == field.default
            if value is not None and not is_default:
                shown.append(f"{field.name}={show(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


@functools.cache
def fields(
    cls: type[Rule],
) -> tuple[tuple[str, ...], dict[str, hyper.Interval], tuple[str, ...]]:
    """Of a rule's class: the data fields, each one's interval, and the static fields."""
    names = nodes.field_names(cls)
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError:  # Annotations that are strings, of names local to a function.
        hints = {
            name: ANNOTATIONS.get(str(hint).rpartition(".")[2], hint)
            for name, hint in cls.__annotations__.items()
        }
    intervals = {
        name: part
        for name in names
        for part in getattr(hints.get(name), "__metadata__", ())
        if isinstance(part, hyper.Interval)
    }
    return tuple(intervals), intervals, tuple(name for name in names if name not in intervals)


@functools.cache
def _optional(cls: type[Rule]) -> frozenset[str]:
    """The names of the fields that may be None."""
    return frozenset(each.name for each in dataclasses.fields(cls) if each.default is None)  # type: ignore[arg-type]


@functools.cache
def decay_names(cls: type[Rule]) -> tuple[str, ...]:
    """The names of the fields annotated `Decay`."""
    return tuple(name for name, interval in fields(cls)[1].items() if interval.open_above)


@functools.cache
def _data_and_static(cls: type[Rule]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    data, _, static = fields(cls)
    return data, static


def replace(rule: Rule, **values: Any) -> Rule:
    """The rule with other values in its fields, unchecked: they may be arrays or `DecayRate`s."""
    return nodes.replace(rule, **values)
