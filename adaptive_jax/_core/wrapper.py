"""What stands around transformations: a wrapper, and the one way to walk through what is in it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from . import contract, hyper, nodes, pytrees, states
from .lifted import Lifted
from .rule import Rule
from .transformation import Transformation, data_of, member


class Wrapper:
    """A transformation around others. Subclass it as a frozen dataclass whose fields are its arguments.

    A wrapper is a pytree, as a rule is: the transformations in it keep their hyperparameters as leaves.
    Its state is a NamedTuple in which theirs have entries.

    Class attributes:
      wraps: from each field that is a transformation, or a tuple or a dict of them, to the entry of the
        state that is its state, or the tuple or the dict of theirs.
      data_fields: the other fields that are data, pytrees: new values compile nothing again. What
        makes no update, such as a measure, belongs here. All fields that are left are static.
      state_type: the NamedTuple of the state. Its names are a stable format: never rename one.
      label: the name of the function that makes it, for its repr and in errors; that of the class if None.

    Example:
      >>> from dataclasses import dataclass
      >>> from typing import Any, NamedTuple
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> from adaptive_jax._core.transformation import Transformation
      >>> from adaptive_jax._core.wrapper import Wrapper
      >>> class DampedState(NamedTuple):
      ...     last: Any
      ...     inner_state: Any
      >>> @dataclass(frozen=True)
      ... class Damped(Wrapper):
      ...     inner: Any
      ...     share: Any = 0.5
      ...     wraps, data_fields, state_type = {"inner": "inner_state"}, ("share",), DampedState
      ...     def init(self, params):
      ...         return DampedState(jax.tree.map(jnp.zeros_like, params), self.inner.init(params))
      ...     def step(self, updates, state, params=None, **extra_args):
      ...         updates, inner = self.inner.update(updates, state.inner_state, params, **extra_args)
      ...         mean = lambda old, new: self.share * old + (1 - self.share) * new
      ...         return (damped := jax.tree.map(mean, state.last, updates)), DampedState(damped, inner)
      >>> tx = Transformation.of(Damped(aj.sgd(1.0), 0.25))
      >>> print(tx, jax.tree.leaves(tx), tx.update(jnp.ones(()), tx.init(jnp.ones(())))[0])
      Damped(sgd(learning_rate=1.0), share=0.25) [1.0, 0.25] -0.75
    """

    wraps: ClassVar[Mapping[str, str]] = {}
    data_fields: ClassVar[tuple[str, ...]] = ()
    state_type: ClassVar[Any] = None
    label: ClassVar[str | None] = None

    def init(self, params: Any) -> Any:
        """The state at first."""
        raise NotImplementedError(f"{type(self).__name__} defines no `init`.")

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        """New updates and a new state, of a state that is this wrapper's."""
        raise NotImplementedError(f"{type(self).__name__} defines no `step`.")

    def update(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        """optax's `update`: a `step`, after the state was checked."""
        self.check(state)
        return self.step(pytrees.gradients(updates), state, params, **extra_args)

    def check(self, state: Any) -> None:
        """Raises a ValueError unless the state is one of this wrapper."""
        states.check_wrapper(state, self.state_type)

    def wrapped(self) -> tuple[Any, ...]:
        """All transformations in it, in a row."""
        return self._row(getattr(self, field) for field in self.wraps)

    def with_wrapped(self, transformations: Iterable[Any]) -> Any:
        """The same around other transformations."""
        columns = zip(self.wraps, self._columns(transformations), strict=True)
        return nodes.replace(self, **dict(columns))

    def states_in(self, state: Any) -> tuple[Any, ...]:
        """The states of all transformations in it, out of its own."""
        return self._row(getattr(state, entry) for entry in self.wraps.values())

    def with_states(self, state: Any, new: Iterable[Any]) -> Any:
        """Its state with other states in it."""
        columns = zip(self.wraps.values(), self._columns(new), strict=True)
        return state._replace(**dict(columns))

    def params_in(self, params: Any) -> tuple[Any, ...]:
        """The parameters, or a tree like them, as each of the transformations in it sees them."""
        return (params,) * len(self.wrapped())

    def evaluating(self) -> list[Rule]:
        """The rules in it that evaluate with other parameters, as many as see one array.

        A wrapper that divides the arrays among its transformations gives those of the one that has most.
        """
        return [rule for each in self.wrapped() for rule in evaluating(each)]

    def evaluate(self, params: Any, state: Any, of_inner: Callable[[Any, Any, Any], Any]) -> Any:
        """The parameters to evaluate with, of those that are trained: from the last to the first.

        A wrapper that divides the arrays among its transformations gives to each its own, with the
        others masked as in its update, and puts together what comes back.

        of_inner: from a transformation in it, parameters, and its part of the state to the parameters.
        """
        row = list(zip(self.wrapped(), self.states_in(state), strict=True))
        for each, part in reversed(row):
            params = of_inner(each, params, part)
        return params

    def _row(self, columns: Iterable[Any]) -> tuple[Any, ...]:
        """What there is for each field that is a transformation, one by one for many of them."""
        row: list[Any] = []
        for field, column in zip(self.wraps, columns, strict=True):
            own = getattr(self, field)
            if type(own) is dict:
                row += [column[key] for key in own]
            else:
                row += column if type(own) is tuple else (column,)
        return tuple(row)

    def _columns(self, row: Iterable[Any]) -> Iterator[Any]:
        """The reverse of `_row`."""
        rest = iter(row)
        for own in (getattr(self, field) for field in self.wraps):
            if type(own) is dict:
                yield dict(zip(own, itertools.islice(rest, len(own)), strict=True))
            else:
                # By type: each transformation is a tuple itself, of its two functions.
                is_many = type(own) is tuple
                yield tuple(itertools.islice(rest, len(own))) if is_many else next(rest)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Set here, in the class itself, so that @dataclass leaves it alone.
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Wrapper.__repr__
        nodes.register(cls, _fields)

    def __post_init__(self) -> None:
        _fields(type(self))  # Raises for what is no frozen dataclass.
        name = self.label or type(self).__name__
        row = [member(each, name) for each in self.wrapped()]
        for field, value in zip(self.wraps, self._columns(row), strict=True):
            object.__setattr__(self, field, value)

    def __repr__(self) -> str:
        """The call that made it; what has its default is left out."""
        shown = [repr(each) for each in self.wrapped()]
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # A dataclass below here.
            value = getattr(self, field.name)
            # An array does not compare, and is no default.
            is_default = type(value) is type(field.default) and value == field.default
            if field.name in self.wraps or is_default or not field.repr:
                continue
            is_data = field.name in self.data_fields
            text = hyper.show(value) if is_data else getattr(value, "__name__", repr(value))
            has_default = field.default is not dataclasses.MISSING
            shown.append(f"{field.name}={text}" if has_default else text)
        return f"{self.label or type(self).__name__}({', '.join(shown)})"


def evaluating(transformation: Any) -> list[Rule]:
    """The rules in a transformation that evaluate with other parameters, as many as see one array."""
    data = data_of(transformation)
    if isinstance(data, Wrapper):
        return data.evaluating()
    rules = data.rules if isinstance(data, Lifted) else ()
    return [rule for rule in rules if rule.evaluate is not None]


def check_one_evaluates(transformation: Any) -> None:
    """Raises a ValueError where two rules evaluate with other parameters than they train."""
    if len(rules := evaluating(transformation)) > 1:
        raise ValueError(
            f"{rules[0]!r} and {rules[1]!r} both evaluate with other parameters than are trained, and what "
            "one of them keeps is not what the other one makes: leave one of them out."
        )


def check_rates_in_a_row(transformations: Sequence[Any]) -> None:
    """Raises a ValueError where one of a chain returns the step itself, and another has a second rate.

    Two that are each in a wrapper that divides the arrays may be for other ones.
    """
    row = [list(_rules_and_all(each, True)) for each in transformations]
    for place, rules in enumerate(row):
        for owner, sees_all in rules:
            if owner.owns_rate:
                before, after = (
                    [rule for each in others for rule, has_all in each if sees_all or has_all]
                    for others in (row[:place], row[place + 1 :])
                )
                contract.check_second_rates(owner, before, after)


def _rules_and_all(transformation: Any, sees_all: bool) -> Iterator[tuple[Rule, bool]]:
    """The rules in a transformation, each with whether it sees all arrays."""
    data = data_of(transformation)
    if isinstance(data, Wrapper):
        sees_all = sees_all and type(data).params_in is Wrapper.params_in
        for each in data.wrapped():
            yield from _rules_and_all(each, sees_all)
    elif isinstance(data, Lifted):
        yield from ((rule, sees_all) for rule in data.rules)


@functools.cache
def _fields(cls: type[Wrapper]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of a wrapper's class: the fields that are pytrees, and the static ones."""
    names = nodes.field_names(cls)
    declared = {*cls.wraps, *cls.data_fields}
    if unknown := declared - set(names):
        raise TypeError(
            f"{cls.__name__} has no field {sorted(unknown)[0]!r}, which its wraps or data_fields name: "
            f"its fields are {names}."
        )
    entries = getattr(cls.state_type, "_fields", ())
    own = cls.check is Wrapper.check  # Who checks the state otherwise may have one of another form.
    if own and (not entries or set(cls.wraps.values()) - set(entries)):
        raise TypeError(
            f"{cls.__name__} keeps states in {list(cls.wraps.values())}, and its state_type has the "
            f"entries {list(entries)}: state_type is a NamedTuple with an entry for each."
        )
    return tuple(x for x in names if x in declared), tuple(x for x in names if x not in declared)


def walk(
    transformation: Any,
    *all_states: Any,
    through: type[Wrapper] = Wrapper,
    params: Any = None,
) -> Iterator[tuple[Any, ...]]:
    """Everything in a transformation that wraps nothing: its data, and its part of each state.

    These are the rules of this library, lifted, and the transformations of others.

    all_states: states of the transformation, or trees in their place; none for the data alone.
    through: the wrappers to look into. Any other one is handed on as it is.
    params: the parameters, or a tree like them. Given, what is found sees of them comes last.
    """
    data = data_of(transformation)
    if not isinstance(data, through):
        yield (data, *all_states) if params is None else (data, *all_states, params)
        return
    parts = [data.states_in(state) for state in all_states]
    seen = (None,) * len(data.wrapped()) if params is None else data.params_in(params)
    for *each, tree in zip(data.wrapped(), *parts, seen, strict=True):
        yield from walk(*each, through=through, params=tree)


def rebuilt(
    change: Callable[[Any, Any, Any], tuple[Any, Any]],
    like: Any,
    transformation: Any,
    state: Any,
    through: type[Wrapper] = Wrapper,
) -> tuple[Any, Any]:
    """A transformation and its state with all changed that `walk` goes to.

    change: from the data in `like`, which has the structure of transformation, the data in this, and the
      part of the state, to the new data and the new part.
    """
    kind, data = data_of(like), data_of(transformation)
    if isinstance(kind, through):
        every = zip(kind.wrapped(), data.wrapped(), kind.states_in(state), strict=True)
        pairs = [rebuilt(change, *each, through) for each in every]
        data = data.with_wrapped(new for new, _ in pairs)
        state = kind.with_states(state, (part for _, part in pairs))
    else:
        data, state = change(kind, data, state)
    is_own = isinstance(transformation, Transformation)
    return (Transformation.of(data) if is_own else data), state
