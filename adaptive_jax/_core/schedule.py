"""What a schedule is: a number as a function of the count, with the numbers in it as data."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from .. import maths
from . import closures, nodes
from .arguments import is_number
from .errors import of_function
from .values import Interval


class Schedule:
    """A hyperparameter that moves: a number as a function of the count, the updates before this one.

    It may stand wherever a rule or an optimizer takes a hyperparameter, here and in optax, and prints as
    the call that makes it again. It is a pytree whose numbers are leaves, lengths too: a new value
    compiles nothing again, `jax.vmap` and `aj.sweep` make many of one, `jax.grad` goes through them, and
    a checkpoint holds them. Numbers are floating, and so exact up to 2²⁴ steps in float32.

    `a + b` and `a * b` of schedules and numbers are schedules. Call one with an array of counts, and it
    gives the values at all of them.

    Subclass it as a frozen dataclass. Fields are data: numbers, schedules, or tuples of these. One
    annotated `bool` or `str` is static, an option that chooses code. `Hyper`, `NonNegative`, `Fraction`
    and `Decay` say which numbers are allowed; without one of them every finite number is. The method
    `at(count)` computes the value of an array of counts, with all numbers as arrays in its dtype. Never
    branch in Python on one: it may be a tracer.

    Example:
      >>> from dataclasses import dataclass
      >>> import adaptive_jax as aj, jax
      >>> @dataclass(frozen=True)
      ... class Halving(aj.schedules.Schedule):
      ...     init_value: aj.NonNegative
      ...     steps: float = 100
      ...     def at(self, count):
      ...         return self.init_value * 0.5 ** (count / self.steps)
      >>> aj.adam(Halving(0.5) + 0.1)
      adam(learning_rate=Halving(init_value=0.5) + 0.1, b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0)
      >>> jax.tree.leaves(Halving(0.5)), Halving(0.5)(100)
      ([0.5, 100.0], Array(0.25, dtype=float32))
    """

    __array_ufunc__: ClassVar[None] = None  # A number of NumPy times a schedule is a schedule.

    def at(self, count: jax.Array) -> jax.Array:
        """The value at a count, which is floating as all numbers of the schedule are then."""
        raise NotImplementedError(f"{type(self).__name__} defines no `at`.")

    def __call__(self, count: Any) -> jax.Array:
        """The value at a count, or at an array of counts: float32, or what is wider in its numbers."""
        dtype = precision(numbers_of(self))
        return in_dtype(self, dtype).at(jnp.asarray(count, dtype))

    def arguments(self) -> dict[str, Any]:
        """The arguments of the call that makes it again, but for those that have their default."""
        values = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # A dataclass below here.
            value = getattr(self, field.name)
            plain = value is None or isinstance(value, (bool, str)) or is_number(value)
            if field.repr and not (plain and value == field.default):
                values[field.name] = value
        return values

    def __new__(cls, *args: Any, **kwargs: Any) -> typing.Self:
        """Refuses an argument that it does not have, and says which may be meant."""
        if kwargs:
            names = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
            for name in kwargs:
                if name not in names:
                    close = difflib.get_close_matches(name, names, 1)
                    said = f"is {close[0]} meant?" if close else f"it takes {', '.join(names)}."
                    raise TypeError(f"{cls.__name__} takes no argument {name!r}: {said}")
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Set here, in the class itself, so that @dataclass leaves it alone.
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Schedule.__repr__
        nodes.register(cls, _data_and_static)

    def __post_init__(self) -> None:
        what = type(self).__name__
        known = fields(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if not field.init:
                continue
            name, value = field.name, getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if name in known.data:
                interval = known.intervals.get(name)
                object.__setattr__(self, name, as_data(what, name, value, interval))
            elif name in known.switches:
                if not isinstance(value, (bool, np.bool_)):
                    raise TypeError(
                        f"{name}={value!r:.80} is out of place in {what}: it must be True or False, which "
                        "chooses code, and so is known when the schedule is made."
                    )
                object.__setattr__(self, name, bool(value))

    def __repr__(self) -> str:
        """The call that makes it again; what has its default is left out."""
        lengths = fields(type(self)).lengths
        shown = [
            f"{name}={_show(value, name in lengths)}" for name, value in self.arguments().items()
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __add__(self, other: Any) -> Schedule:
        return _combined(sum_of_schedules, self, other)

    def __radd__(self, other: Any) -> Schedule:
        return _combined(sum_of_schedules, other, self)

    def __mul__(self, other: Any) -> Schedule:
        return _combined(product_of_schedules, self, other)

    def __rmul__(self, other: Any) -> Schedule:
        return _combined(product_of_schedules, other, self)


@dataclass(frozen=True)
class Lengths(Interval):
    """The values that a number of steps may have. One that is whole is shown without a point."""


Length = Annotated[Any, Lengths()]
"""A number of steps."""


PositiveLength = Annotated[Any, Lengths(0.0, open_below=True)]
"""A number of steps above 0."""


Positive = Annotated[Any, Interval(0.0, open_below=True)]
"""A number above 0."""


def outline(schedule: Schedule) -> str:
    """A schedule without its numbers: all that chooses code, and how many numbers there are."""
    return repr(jax.tree.map(lambda _: _Dots(), schedule))


class _Dots:
    """What stands for any number."""

    def __repr__(self) -> str:
        return "…"


def value_of(part: Any, count: jax.Array) -> Any:
    """What a schedule, or a number, among the fields of another schedule is at a count."""
    return part.at(count) if isinstance(part, Schedule) else part


def check_some(what: str, schedules: tuple[Any, ...]) -> None:
    """Raises a ValueError for none at all."""
    if type(schedules) is not tuple or not schedules:
        raise ValueError(f"schedules={schedules!r} in {what} must be a sequence, of one at least.")


def numbers_of(value: Any) -> Iterator[Any]:
    """The numbers of a schedule, and of those in it, without what functions close over."""
    if isinstance(value, Schedule):
        for name in fields(type(value)).data:
            yield from numbers_of(getattr(value, name))
    elif type(value) is tuple:
        for each in value:
            yield from numbers_of(each)
    elif value is not None and not callable(value):
        yield value


def ends_of(schedule: Schedule) -> Iterator[tuple[str, float]]:
    """The numbers of Python between which a schedule moves: those of its fields `…value`."""
    for field in dataclasses.fields(schedule):  # type: ignore[arg-type]
        number = getattr(schedule, field.name)
        if field.name.endswith("value") and is_number(number):
            yield field.name, number


def in_dtype(value: Any, dtype: Any) -> Any:
    """A schedule with all of its numbers as arrays of a dtype."""
    if isinstance(value, Schedule):
        names = fields(type(value)).data
        return nodes.replace(
            value, **{name: in_dtype(getattr(value, name), dtype) for name in names}
        )
    if type(value) is tuple:
        return tuple(in_dtype(each, dtype) for each in value)
    if value is None or callable(value):
        return value
    return lax.convert_element_type(value, dtype)


def precision(numbers: Iterator[Any]) -> Any:
    """In which dtype a schedule computes: of Python numbers alone, JAX's of such numbers."""
    dtypes = [
        each.dtype
        for each in numbers
        if hasattr(each, "dtype") and not getattr(each, "weak_type", False)
    ]
    dtype = maths.compute_dtype(jnp.float32, *dtypes) if dtypes else np.float64
    return jax.dtypes.canonicalize_dtype(dtype)


class Fields(NamedTuple):
    """The names of a schedule's fields, by what they are.

    data: those that are pytrees.
    static: all others.
    intervals: of each number the values that it may have, if that is said.
    lengths: those that are numbers of steps.
    switches: the static ones that are True or False.
    """

    data: tuple[str, ...]
    static: tuple[str, ...]
    intervals: dict[str, Interval]
    lengths: frozenset[str]
    switches: tuple[str, ...]


@functools.cache
def fields(cls: type[Schedule]) -> Fields:
    """The fields of a schedule's class."""
    names = nodes.field_names(cls)
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError:  # Annotations that are strings, of names local to a function.
        known = {"bool": bool, "str": str}
        hints = {name: known.get(hint, Any) for name, hint in cls.__annotations__.items()}
    intervals = {
        name: each
        for name in names
        for each in getattr(hints.get(name), "__metadata__", ())
        if isinstance(each, Interval)
    }
    static = tuple(name for name in names if _kinds(hints.get(name)) <= {bool, str})
    return Fields(
        tuple(name for name in names if name not in static),
        static,
        intervals,
        frozenset(name for name, each in intervals.items() if isinstance(each, Lengths)),
        tuple(name for name in static if hints[name] is bool),
    )


def _kinds(hint: Any) -> set[Any]:
    """The types in an annotation such as `bool | None`, without None."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return {*(typing.get_args(hint) if is_union else (hint,))} - {type(None)}


def _data_and_static(cls: type[Schedule]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    known = fields(cls)
    return known.data, known.static


def as_data(what: str, name: str, value: Any, interval: Interval | None) -> Any:
    """A field's value, checked: numbers as floats, arrays of shape () as floating ones.

    interval: the values that a number may have; None where a schedule may stand as well.
    """
    if isinstance(value, (tuple, list)):
        each = enumerate(value)
        return tuple(as_data(what, f"{name}[{i}]", x, interval) for i, x in each)
    if interval is None and callable(value):
        return value if isinstance(value, Schedule) else _Function(value)
    kind = interval or Interval()
    either = "" if interval is not None else ", or a schedule"
    allowed = f"{name} must be {kind}, or an array of shape (){either}"
    if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf":
        value = value.item()
    if is_number(value):
        if float(value) not in kind:
            raise ValueError(f"{name}={value!r} is out of range in {what}: {allowed}.")
        return float(value)
    if not isinstance(value, (jax.Array, np.ndarray)):
        raise TypeError(f"{name}={value!r:.200} is a {type(value).__name__} in {what}: {allowed}.")
    if value.shape != ():
        raise ValueError(
            f"{name} has shape {value.shape} in {what}: {allowed}. For many values at once, map over the "
            f"function that makes the schedule: jax.vmap(lambda x: aj.adam(aj.schedules.{what}(…, "
            f"{name.partition('[')[0]}=x)))(values)."
        )
    if jnp.issubdtype(value.dtype, jnp.floating):
        return value
    if jnp.issubdtype(value.dtype, jnp.integer):
        return lax.convert_element_type(value, jax.dtypes.canonicalize_dtype(np.float64))
    raise TypeError(f"{name} has dtype {value.dtype} in {what}: {allowed}.")


@dataclass(frozen=True)
class _Function(Schedule):
    """A function of the count, such as a schedule of optax's, among schedules.

    function: a `Partial` whose leaves are the traced numbers that it closes over.
    """

    function: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "function", closures.as_partial(self.function))

    def at(self, count):
        with of_function(f"the schedule {self!r}", "the count, or another number, which"):
            value = self.function(lax.convert_element_type(jnp.floor(count), jnp.int32))
        return lax.convert_element_type(value, count.dtype)

    def __repr__(self):
        function = self.function.func
        return getattr(function, "__name__", f"{function!r:.100}")


@dataclass(frozen=True)
class sum_of_schedules(Schedule):
    """The sum of schedules and numbers. `a + b` is the same.

        η = a(t) + b(t) + …

    Args:
      schedules: schedules, functions of the count, and numbers; at least one.

    Example:
      >>> import adaptive_jax as aj
      >>> raised = aj.schedules.linear_schedule(1.0, 0.0, 10) + 0.25
      >>> raised
      linear_schedule(init_value=1.0, end_value=0.0, transition_steps=10) + 0.25
      >>> raised(5)
      Array(0.75, dtype=float32)
    """

    schedules: tuple[Any, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_some(type(self).__name__, self.schedules)

    def at(self, count):
        return functools.reduce(jnp.add, [value_of(each, count) for each in self.schedules])

    def __repr__(self):
        return _operation(self, "+")


@dataclass(frozen=True)
class product_of_schedules(Schedule):
    """The product of schedules and numbers. `a * b` is the same.

        η = a(t) · b(t) · …

    Args:
      schedules: schedules, functions of the count, and numbers; at least one.

    Example:
      >>> import adaptive_jax as aj
      >>> half = 0.5 * aj.schedules.linear_schedule(1.0, 0.0, 10)
      >>> half
      0.5 * linear_schedule(init_value=1.0, end_value=0.0, transition_steps=10)
      >>> half(5)
      Array(0.25, dtype=float32)
    """

    schedules: tuple[Any, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_some(type(self).__name__, self.schedules)

    def at(self, count):
        return functools.reduce(jnp.multiply, [value_of(each, count) for each in self.schedules])

    def __repr__(self):
        return _operation(self, "*")


def _combined(kind: type[Any], one: Any, two: Any) -> Any:
    """A sum or a product, of which one part is a schedule."""
    parts = [one, two]
    if not all(
        callable(each) or is_number(each) or isinstance(each, (jax.Array, np.ndarray))
        for each in parts
    ):
        return NotImplemented
    rows = (each.schedules if type(each) is kind else (each,) for each in parts)
    return kind(tuple(itertools.chain.from_iterable(rows)))


def _operation(schedule: Any, sign: str) -> str:
    """A sum or a product as a person writes it."""
    parts = schedule.schedules
    if not any(isinstance(each, Schedule) and type(each) is not _Function for each in parts[:2]):
        return Schedule.__repr__(schedule)
    bracketed = (sum_of_schedules, product_of_schedules) if sign == "*" else (sum_of_schedules,)
    shown = [f"({each})" if isinstance(each, bracketed) else _show(each) for each in parts]
    return f" {sign} ".join(shown) if len(parts) > 1 else Schedule.__repr__(schedule)


def _show(value: Any, is_length: bool = False) -> str:
    """An argument as a person would write it."""
    if isinstance(value, (tuple, list)):
        shown = ", ".join(_show(each, is_length) for each in value)
        return f"[{shown}]"
    if isinstance(value, dict):  # From boundaries to what belongs to them.
        pairs = (f"{_show(key, True)}: {_show(each)}" for key, each in value.items())
        return f"{{{', '.join(pairs)}}}"
    concrete = is_number(value) or (isinstance(value, jax.Array) and not isinstance(value, Tracer))
    if concrete and np.shape(value) == ():
        number = float(value)
        if is_length and number.is_integer():
            return str(int(number))
        return f"{number:.6g}" if isinstance(value, jax.Array) else repr(value)
    return jax.typeof(value).str_short() if isinstance(value, jax.Array) else repr(value)
