"""What a rule is: the maths of one array, with its hyperparameters as data."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from . import contract, hyper, nodes, views
from .context import Context
from .hyper import show
from .mask import Mask, Selection
from .pytrees import Arrays


@dataclass(frozen=True)
class Slot:
    """Optimizer state of an array, of the shape of the parameter if nothing else is said.

    initial: its first value: a number; the name of the hyperparameter that is this number; "param" for a
      copy of the parameter; or a function of the parameter, in float32 at least, that returns the
      value, of the slot's shape or one that can be broadcast to it.
    nonnegative: whether it is real and never negative, such as a second moment.
    constant: whether it keeps its first value. Then it is kept exactly, whatever the storage, a copy of
      the parameter in the parameter's dtype, and `update` does not return it.
    shape: a function from the shape of the array to that of the slot, or to None where the array has
      no such slot: then `slots` has None in its place, and `update` returns None for it. An axis of
      the array that the slot keeps is divided over devices as it is there.

    Example:
      >>> import adaptive_jax as aj
      >>> rows = aj.Slot(nonnegative=True, shape=lambda shape: shape[:-1] if len(shape) > 1 else None)
      >>> rows.shape_for((8, 3)), rows.shape_for((3,))
      ((8,), None)
    """

    initial: float | str | Callable[[jax.Array], Any] = 0.0
    nonnegative: bool = False
    constant: bool = False
    shape: Callable[[tuple[int, ...]], tuple[int, ...] | None] | None = None

    def __post_init__(self) -> None:
        if self.initial == "param" and self.shape is not None:
            raise ValueError(
                'Slot("param") is a copy of the parameter, and so it has its shape: leave out shape=, or '
                "give a function of the parameter for its first value."
            )

    def shape_for(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape of the slot for an array of a shape; None where it has no such slot."""
        if self.shape is None:
            return shape
        own = self.shape(shape)
        if own is None or (isinstance(own, tuple) and all(map(_is_size, own))):
            return own
        raise TypeError(
            f"the function shape= of a slot returned {own!r:.80} for the shape {shape}: it must return a "
            "tuple of whole numbers, or None where an array has no such slot."
        )

    def axes_for(self, shape: tuple[int, ...]) -> list[int | None]:
        """Which axis of the array each axis of the slot is; None for one of its own.

        It is that axis if it grows with it.
        """
        own = self.shape_for(shape)
        axes: list[int | None] = [None] * len(own or ())
        for axis in range(len(shape)):
            longer = self.shape_for((*shape[:axis], shape[axis] + 1, *shape[axis + 1 :]))
            if own is None or longer is None or len(longer) != len(own):
                continue
            for place, size in enumerate(own):
                if size == shape[axis] and longer[place] == size + 1:
                    axes[place] = axis
        return axes


def _is_size(size: Any) -> bool:
    return isinstance(size, (int, np.integer)) and bool(size >= 0)


class Rule:
    """The maths of one array. Subclass it as a frozen dataclass whose fields are hyperparameters.

    A field annotated `Hyper`, `NonNegative`, `Fraction` or `Decay` is data: changing its value
    compiles nothing again. Every other field is static, an option that chooses code. One annotated
    `Mask` says which arrays the rule is for: what it says of each is in `ctx.selected`, and what several
    say, as a tuple in the order of the fields. A rule knows nothing of pytrees, dtypes, schedules or
    storage: it sees arrays of float32 at least, and hyperparameters as arrays of shape () in the same
    precision. Of one that is a tree, a prefix of the
    parameters, each array sees its own number.

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
      scalars: state that is one number for all arrays, of float32 at least, from names to first
        values: a number, a tuple of numbers for a small vector, or the name of the hyperparameter, or
        property, that is one of these. `advance` moves it on. As stable a format as slots.
      extra_args: from the names of extra arguments that `update` must get to "number", or "array" for
        a tree like the parameters: `ctx.extra["value"]` of `update(gradients, state, params, value=…)`.
      per_array: of a rule whose `advance` runs once for all arrays, the hyperparameters that may be trees
        for all that. `advance` sees each of them as a vector, with an entry for each array that has
        elements, as in `measured`. Others that are trees are refused.
      layerwise: whether `advance` runs for each array, of what was measured of it alone. Each array
        then has `scalars` of its own, and in the state they are trees like the parameters.
      counts_steps: whether the rule needs `ctx.step`, `ctx.key` or a bias correction. If None, it counts
        when it has slots.
      needs_params: whether it needs the parameters (otherwise `param` may be None).
      needs_gradient: whether it needs `ctx.gradient`.
      needs_learning_rate: whether it needs in `ctx.learning_rate`, in an `aj.chain`, the rates of the
        members of this library directly before it too.
      matrix: whether it sees matrices: the gradient, the parameter and slots are then (…, m, n), and what
        it returns is so too. It works on all matrices of an array at once, by `x.mT` and reductions over
        the axes (-2, -1). A static field `axes` of it says which axes of an array these are:
        `aj.MatrixAxes(…)`, None for the last two, or a dict from regular expressions, of which the first
        that is found in the path of an array, a/b/c, counts, to `aj.MatrixAxes`; where none is found, it
        is the last two. Slots are kept in the layout of the parameter; those that have a `shape` of
        their own, which is made of (…, m, n), as they are. Arrays with one axis or none, and complex
        ones, are refused.
      takes_vectors: whether a rule with `matrix` takes arrays with one axis or none too: it sees them as
        they are, and so do the functions for the shapes of its slots.
      usual_axes: what `axes` is where nothing is given for an array.
      takes_complex: whether it works on complex arrays, which are refused by name if not.
      state_type_name: the name of the state's NamedTuple, `<rule's name>State` if None.
      state_is_masked: whether the state of a rule that has a mask is an `optax.MaskedState`, as
        that of `optax.masked`.
      learning_rate_field: the field that multiplies the direction; None for none.
      learning_rate_scalar: which of the scalars is the learning rate, where the rule finds it itself, and a
        field is but the first one; None for none.
      only_initialises: whether the first update moves nothing, and only gives the slots what they start
        from, as that of ADOPT. All others move at once, which `check_rule` holds them to.
      owns_rate: whether `update` returns the step itself, with its sign and learning rate, as of a rule
        that weights by the rate. Then no rule after it may have a learning rate, and where it has one
        itself, none before it.
      measure: a method `measure(self, grad, slots, param, ctx)` that returns numbers about one array before
        its update, a dict from names to arrays of shape (), such as {"norm": aj.maths.norm(grad)}; or None.
      advance: a method `advance(self, scalars, measured, ctx)` that runs once a step, or None. measured has
        a vector for each name of `measure`, with an entry for each array that has elements. It returns a
        dict with the new value of each of the rule's `scalars`, and what else `update` is to find in
        `ctx.scalars`.
      evaluate: a method `evaluate(self, param, slots, ctx)` that returns the parameter to evaluate with, if
        not the one that is trained, see `aj.eval_params`; or None. The grad of `update` is what the rules
        before made of the gradient: param + grad is the next parameter in the last rule of all, after the
        learning rate, and nowhere else.
    """

    slots: ClassVar[Mapping[str, Slot]] = {}
    scalars: ClassVar[Mapping[str, float | str | tuple[float, ...]]] = {}
    extra_args: ClassVar[Mapping[str, str]] = {}
    per_array: ClassVar[tuple[str, ...]] = ()
    layerwise: ClassVar[bool] = False
    counts_steps: ClassVar[bool | None] = None
    needs_params: ClassVar[bool] = False
    needs_gradient: ClassVar[bool] = False
    needs_learning_rate: ClassVar[bool] = False
    takes_complex: ClassVar[bool] = True
    matrix: ClassVar[bool] = False
    takes_vectors: ClassVar[bool] = False
    usual_axes: ClassVar[views.MatrixAxes] = views.MatrixAxes()
    state_type_name: ClassVar[str | None] = None
    state_is_masked: ClassVar[bool] = False
    learning_rate_field: ClassVar[str | None] = "learning_rate"
    learning_rate_scalar: ClassVar[str | None] = None
    only_initialises: ClassVar[bool] = False
    owns_rate: ClassVar[bool] = False

    def update(
        self, grad: jax.Array, slots: Mapping[str, jax.Array], param: jax.Array | None, ctx: Context
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """The direction for one array, and the new values of its slots."""
        raise NotImplementedError(f"{type(self).__name__} defines no `update`.")

    def learning_rate_at(self, step: Any) -> Any:
        """The learning rate at a step; None for a rule that has none.

        step: 1 for the first update, as in `ctx.step`. A schedule is asked for its value after the
          updates before it. Of a tree it is the tree of what they are at the step.

        Example:
          >>> import adaptive_jax as aj
          >>> aj.LearningRate(0.5, learning_rate_decay=1.0).learning_rate_at(3)
          Array(0.16666667, dtype=float32)
        """
        name = self.learning_rate_field
        if name is None:
            return None

        def at_step(rate: Any) -> Any:
            if not hyper.is_schedule(rate):
                return rate
            return hyper.scheduled(type(self).__name__, name, rate, step - 1)

        return hyper.mapped(at_step, getattr(self, name, None))

    measure: ClassVar[Callable[..., Mapping[str, Any]] | None] = None
    """`measure(self, grad, slots, param, ctx)`: numbers about one array before its update, by name."""

    advance: ClassVar[Callable[..., Mapping[str, Any]] | None] = None
    """`advance(self, scalars, measured, ctx)`: numbers for the updates of all arrays, once per step.

    measured: from each name of `measure` to a vector, with an entry for each array that has elements.
    It returns the new value of each of the rule's `scalars`, and what else it likes, by name: `update`
    finds all of it in `ctx.scalars`. With nothing to measure it is not called.
    """

    evaluate: ClassVar[Callable[..., Any] | None] = None
    """`evaluate(self, param, slots, ctx)`: the parameter to evaluate with, if not the one that is trained.

    ctx: as of the last update, with the scalars that the state holds. `aj.eval_params` calls it.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Set here, in the class itself, so that @dataclass leaves it alone.
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Rule.__repr__
        nodes.register(cls, _data_and_static)

    def __post_init__(self) -> None:
        for name, interval in fields(type(self)).intervals.items():
            value = getattr(self, name)
            if type(value) is float and value in interval:
                continue  # At once: a new learning rate may come in every step.
            if value is None and name not in _optional(type(self)):
                raise TypeError(
                    f"{name}=None is out of place in {type(self).__name__}: it must be {interval}, an "
                    "array of shape (), or a schedule."
                )
            value = hyper.checked(type(self).__name__, name, value, interval)
            object.__setattr__(self, name, value)
        contract.check_declared(self)
        for name, slot in self.slots.items():
            if not isinstance(slot, Slot):
                raise TypeError(
                    f"{type(self).__name__}.slots[{name!r}]={slot!r:.80} must be a slot: aj.Slot()."
                )
        for first in _first_names(self):
            # A property is of the numbers of each array: `values_of_arrays` asks for it.
            if first in fields(type(self)).data or not trees_of(self):
                hyper.check_first_value(type(self).__name__, first, _first_of(self, first))
        for name in fields(type(self)).switches:
            value = getattr(self, name)
            if value is None and name in _optional(type(self)):
                continue
            if not isinstance(value, (bool, np.bool_)):
                raise TypeError(
                    f"{name}={value!r:.80} is out of place in {type(self).__name__}: it must be True or "
                    "False, which chooses code, and so is known when the rule is made."
                )
            object.__setattr__(self, name, bool(value))
        if self.matrix and "axes" in fields(type(self)).static:
            axes = views.axes_of_field(type(self).__name__, getattr(self, "axes"))  # noqa: B009
            object.__setattr__(self, "axes", axes)
        for name in fields(type(self)).masks:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Selection.of(getattr(self, name)))

    def __repr__(self) -> str:
        """The call that made it; options that have their default are left out."""
        shown = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # A dataclass below here.
            value = getattr(self, field.name)
            is_default = isinstance(value, (bool, str)) and value == field.default
            if value is not None and not is_default:
                shown.append(f"{field.name}={show(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _first_names(rule: Rule, scalars: bool = True) -> list[str]:
    """The names of hyperparameters, and properties, that are first values of slots, and of scalars."""
    firsts: list[Any] = [slot.initial for slot in rule.slots.values()]
    firsts += rule.scalars.values() if scalars else []
    return [first for first in firsts if isinstance(first, str) and first != "param"]


def _first_of(rule: Rule, name: str) -> Any:
    """A first value, by its name."""
    if name not in nodes.field_names(type(rule)) and not hasattr(type(rule), name):
        raise TypeError(
            f"{name!r} is the first value of a slot or scalar of {type(rule).__name__}, which has no such "
            'hyperparameter or property. A copy of the parameter is "param".'
        )
    try:
        return getattr(rule, name)
    except TypeError as error:
        data = fields(type(rule)).data
        moved = [each for each in data if hyper.has_schedules(getattr(rule, each))]
        if not moved:
            raise
        raise TypeError(
            f"{name} of {type(rule).__name__} is the value of the state before the first step, and cannot "
            f"be made of a schedule, as {', '.join(moved)} is here: {error}."
        ) from error


class Fields(NamedTuple):
    """The names of a rule's fields, by what they are.

    data: the hyperparameters.
    intervals: of each of them the values that it may have.
    static: all others.
    switches: those of them that are True or False.
    masks: those of these that say which arrays the rule is for.
    """

    data: tuple[str, ...]
    intervals: dict[str, hyper.Interval]
    static: tuple[str, ...]
    switches: tuple[str, ...]
    masks: tuple[str, ...]


@functools.cache
def fields(cls: type[Rule]) -> Fields:
    """The fields of a rule's class."""
    names = nodes.field_names(cls)
    try:
        # `typing.get_type_hints` evaluates the bases again for each: a sixth of the time of the import.
        hints = {k: hint for base in reversed(cls.__mro__) for k, hint in _hints(base).items()}
    except NameError:  # Annotations that are strings, of names local to a function.
        hints = {
            name: _ANNOTATIONS.get(str(hint).rpartition(".")[2], hint)
            for name, hint in cls.__annotations__.items()
        }
    metadata = {name: getattr(hints.get(name), "__metadata__", ()) for name in names}
    intervals = {
        name: each for name in names for each in metadata[name] if isinstance(each, hyper.Interval)
    }
    masks = [name for name in names if Selection in metadata[name]]
    if not masks and "mask" in names and "mask" not in intervals:
        masks = ["mask"]  # Known by its name, as all masks were before there was an annotation.
    static = tuple(name for name in names if name not in intervals)
    switches = tuple(name for name in static if hints.get(name) in (bool, "bool"))
    return Fields(tuple(intervals), intervals, static, switches, tuple(masks))


@functools.cache
def _hints(base: type) -> dict[str, Any]:
    """The annotations that stand in a class itself."""
    return inspect.get_annotations(base, eval_str=True)


_ANNOTATIONS = {**hyper.ANNOTATIONS, "Mask": Mask}


def mask_of(rule: Rule) -> Selection | None:
    """Which arrays the rule is for, by the first of its masks; None for all."""
    return next(iter(masks_of(rule)), None)


def masks_of(rule: Rule) -> list[Selection | None]:
    """Which arrays the rule is for, by each of its masks; None for all."""
    return [getattr(rule, name) for name in fields(type(rule)).masks]


@functools.cache
def _optional(cls: type[Rule]) -> frozenset[str]:
    """The names of the fields that may be None."""
    return frozenset(each.name for each in dataclasses.fields(cls) if each.default is None)  # type: ignore[arg-type]


@functools.cache
def decay_names(cls: type[Rule]) -> tuple[str, ...]:
    """The names of the fields annotated `Decay`."""
    return tuple(name for name, interval in fields(cls).intervals.items() if interval.open_above)


@functools.cache
def _data_and_static(cls: type[Rule]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return fields(cls).data, fields(cls).static


def trees_of(rule: Rule) -> dict[str, Any]:
    """The hyperparameters that are trees, by their names."""
    values = {name: getattr(rule, name) for name in fields(type(rule)).data}
    return {name: value for name, value in values.items() if not hyper.is_one(value)}


def places(rule: Rule, arrays: Arrays) -> list[tuple[int, ...]]:
    """Of each array, which hyperparameter it has of each tree in the rule.

    Raises:
      ValueError: for a tree where there can be but one number, for one that is no prefix of the arrays',
        and for None where there must be a number; by names and paths.
    """
    what = type(rule).__name__
    for name in trees_of(rule) if rule.advance is not None and not rule.layerwise else ():
        if name not in rule.per_array:
            raise ValueError(
                f"{name} is a tree in {what}, whose `advance` makes numbers for all arrays together: it "
                "must be one number, an array of shape (), or a schedule. (A rule of your own that can do "
                f'there with a vector of them, one for each array, says so: per_array = ("{name}",).)'
            )
    columns = [
        hyper.places(what, name, value, name in _optional(type(rule)), arrays)
        for name, value in trees_of(rule).items()
    ]
    return list(zip(*columns, strict=True)) if columns else [()] * len(arrays.leaves)


def values_of_arrays(rule: Rule, arrays: Arrays) -> dict[str, list[Any]]:
    """Of each hyperparameter that is a tree, what it is for each array; checked, by name."""
    rows = places(rule, arrays)
    own: dict[str, list[Any]] = {
        name: [None if row[i] is None else hyper.each_of(value)[row[i]] for row in rows]
        for i, (name, value) in enumerate(trees_of(rule).items())
    }
    for name in _first_names(rule, scalars=rule.layerwise) if own else ():
        if name not in fields(type(rule)).data:  # A property, of what each array has.
            of_arrays = [
                dict(zip(own, each, strict=True)) for each in zip(*own.values(), strict=True)
            ]
            own[name] = [
                None if array is None else _first_of(replace(rule, **each), name)
                for array, each in zip(arrays.leaves, of_arrays, strict=True)
            ]
    return own


def replace(rule: Rule, **values: Any) -> Rule:
    """The rule with other values in its fields, unchecked: they may be arrays or `DecayRate`s."""
    return nodes.replace(rule, **values)
