"""What the author of a rule has to keep, and what is said where it is not kept."""

from __future__ import annotations

import contextlib
import functools
import inspect
import keyword
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .errors import of_function
from .pytrees import describe


def check_stored(rule: Any, name: str, known: Mapping[str, Any], value: Any) -> None:
    """Raises a ValueError for what `ctx.store` cannot keep."""
    if name not in known:
        raise ValueError(f"the rule has no slot {name!r}: its slots are {list(known)}.")
    if rule.slots[name].constant:
        raise ValueError(f"the slot {name!r} is constant: it keeps its first value.")
    if (value is None) != (known[name] is None):
        raise ValueError(
            f"ctx.store got {describe(value)} for the slot {name!r}, which this array has not."
            if known[name] is None
            else f"ctx.store got None for the slot {name!r}, which this array has."
        )


def check_matrices(rule: Any, name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raises a ValueError unless what `ctx.store` got are matrices of the shape that the rule sees."""
    if np.shape(value) != shape:
        raise ValueError(
            f"ctx.store of {type(rule).__name__} got {describe(value)} for the slot {name!r}, where the "
            f"array has the shape {shape}."
        )


def check_declared(rule: Any) -> None:
    """Raises a TypeError where what a rule declares by name is no mapping."""
    examples = {
        "slots": '{"mu": aj.Slot()}',
        "scalars": '{"d": 1.0}',
        "extra_args": '{"value": "number"}',
    }
    for what, example in examples.items():
        if not isinstance(declared := getattr(rule, what), Mapping):
            raise TypeError(
                f"{type(rule).__name__}.{what} is {declared!r:.80}, and must be a dict, from names: "
                f"{what} = {example}."
            )


def check_rule(rule: Any, fields: Collection[str]) -> None:
    """Raises a TypeError unless a rule's methods take what the lift gives them.

    fields: the names of its hyperparameters.
    """
    name = type(rule).__name__
    _check_methods(type(rule))
    if rule.scalars and rule.advance is None:
        raise TypeError(
            f"{name} has the scalars {list(rule.scalars)}, and defines no `advance(self, scalars, "
            "measured, ctx)`, which moves them on."
        )
    for entry in (*rule.slots, *rule.scalars):
        is_word = entry.isidentifier() and not keyword.iskeyword(entry)
        if not is_word or entry.startswith("_") or entry == "count":
            raise TypeError(
                f"{name} has a slot or scalar {entry!r}: each is an entry of the state, a NamedTuple with "
                "`count` for the steps. Give it another name, a word that does not begin with _."
            )
    for entry, first in rule.scalars.items():
        many = isinstance(first, (tuple, list)) and len(first) > 0
        if not (many or isinstance(first, str) or is_real(first)):
            raise TypeError(
                f"{name}.scalars[{entry!r}]={first!r:.80} must be a number, a tuple of numbers, or the "
                "name of the hyperparameter, or property, that is one of these."
            )
    for argument, kind in rule.extra_args.items():
        if kind not in ("number", "array"):
            raise TypeError(
                f"{name}.extra_args[{argument!r}]={kind!r} must be 'number', or 'array' for a tree like "
                "the parameters."
            )
    for field in rule.per_array:
        if field not in fields:
            raise TypeError(
                f"{name}.per_array names {field!r}, which is no hyperparameter of it: these are "
                f"{', '.join(fields) or 'none'}."
            )
    if both := set(rule.scalars) & set(rule.slots):
        raise TypeError(
            f"{name} has the slots and the scalars {sorted(both)}: give them two names."
        )


def check_rates(rules: Sequence[Any]) -> None:
    """Raises a ValueError for a second learning rate beside a rule that returns the step itself."""
    for place, owner in enumerate(rules):
        if not owner.owns_rate:
            continue
        check_second_rates(owner, rules[:place], rules[place + 1 :])


def check_second_rates(owner: Any, before: Iterable[Any], after: Iterable[Any]) -> None:
    """Raises a ValueError if a rule before or after one that returns the step itself has a second rate."""
    others = [*after, *(before if has_rate(owner) else ())]
    if second := next(filter(has_rate, others), None):
        raise ValueError(
            f"{owner!r} returns the step itself, learning rate included, and {second!r} would multiply "
            "by a second one: leave that out."
        )


def has_rate(rule: Any) -> bool:
    """Whether a rule multiplies by a learning rate."""
    field = rule.learning_rate_field
    return field is not None and getattr(rule, field, None) is not None


@functools.cache
def _check_methods(rule: Any) -> None:
    """Raises a TypeError unless a rule's methods take what the lift gives them."""
    for method, arguments in _TAKEN.items():
        function = getattr(rule, method, None)
        if function is None:
            continue
        taken = inspect.signature(function)
        try:
            taken.bind("self", *arguments)
        except TypeError:
            raise TypeError(
                f"{rule.__name__}.{method} takes {taken}: it must take (self, {', '.join(arguments)}), "
                f"{_WHY[method]}."
            ) from None
    if getattr(rule, "statistic", None) is not None:
        raise TypeError(
            f"{rule.__name__} defines `statistic(self, grads)`, which is two methods now, from each array "
            "to numbers, and from these, as vectors with one entry for each array, to the numbers that "
            "`update` finds in ctx.scalars. For the norm of all arrays, which was in ctx.statistic, write "
            "def measure(self, grad, slots, param, ctx): return {'norm': aj.maths.norm(grad)}; "
            "def advance(self, scalars, measured, ctx): return {'norm': aj.maths.norm(measured['norm'])}; "
            "and in update ctx.scalars['norm']."
        )
    if rule.measure is not None and rule.advance is None:
        raise TypeError(
            f"{rule.__name__} defines `measure`, and no `advance(self, scalars, measured, ctx)`, which "
            "makes of what was measured of all arrays the numbers that `update` finds in ctx.scalars."
        )


_TAKEN = {
    "update": ("grad", "slots", "param", "ctx"),
    "measure": ("grad", "slots", "param", "ctx"),
    "advance": ("scalars", "measured", "ctx"),
    "evaluate": ("param", "slots", "ctx"),
}
"""What the lift gives to each method of a rule."""


_WHY = {
    "update": "where ctx keeps slots with ctx.store and knows the step",
    "measure": "and return numbers by name, such as {'norm': aj.maths.norm(grad)}",
    "advance": "where measured has a vector for each name of `measure`, and ctx.step is what step was",
    "evaluate": "and return the parameter to evaluate with",
}


@contextlib.contextmanager
def of_method(
    rule: Any, method: str, *known: Mapping[str, Any], complex_of: Any = None
) -> Iterator[None]:
    """Says what to write instead where a rule's method fails at what Python or NumPy cannot do.

    known: what it may ask for by name beside its slots.
    complex_of: the dtype that it computes in.
    """
    name = f"{type(rule).__name__}.{method}"
    # Complex arrays times real scalars are meant, also where a user forbids promotion.
    is_complex = complex_of is not None and jnp.issubdtype(complex_of, jnp.complexfloating)
    promotion = jax.numpy_dtype_promotion("standard") if is_complex else contextlib.nullcontext()
    try:
        with promotion, of_function(name):
            yield
    except KeyError as error:
        others = [each for mapping in known for each in mapping]
        where = "in ctx.scalars, ctx.extra or measured"
        beside = f", beside them there are {others} {where}" if others else ""
        raise ValueError(
            f"{name} asks for {error}, and the slots are {list(rule.slots)}{beside}: declare what a rule "
            'keeps, slots = {"mu": aj.Slot()}, what it keeps for all arrays together, scalars = {"d": '
            '1.0}, and what `update` must get, extra_args = {"value": "number"}.'
        ) from error
    except TypeError as error:
        if "NoneType" not in str(error) or not (reasons := _reasons_for_none(rule)):
            raise
        raise TypeError(f"{name} computes with None ({error}): {'; '.join(reasons)}.") from error


def _reasons_for_none(rule: Any) -> list[str]:
    """What a rule may find to be None, for it does not say that it needs it."""
    reasons = []
    if not rule.needs_params:
        reasons.append(
            "param is None where `update` gets no parameters, and a rule that uses it says "
            "needs_params = True"
        )
    if not (rule.counts_steps or (rule.counts_steps is None and rule.slots)):
        reasons.append(
            "ctx.step is None in a rule that does not count its steps, and one that uses it says "
            "counts_steps = True"
        )
    return reasons


def checked_numbers(rule: Any, measured: Any) -> dict[str, Any]:
    """What a rule's measure returned, if these are numbers by name."""
    what = f"{type(rule).__name__}.measure"
    if not isinstance(measured, Mapping):
        raise ValueError(
            f"{what} must return a dict from names to numbers, such as {{'norm': aj.maths.norm(grad)}}; "
            f"got {describe(measured)}."
        )
    for name, value in measured.items():
        if not is_real(value) or np.shape(value) != ():
            raise ValueError(
                f"{what} returned for {name} {describe(value)}: it must be one real number for the whole "
                "array, such as its norm, its sum or its largest element, of shape ()."
            )
    return dict(measured)


def checked_parameter(rule: Any, param: Any, found: Any) -> Any:
    """What a rule's evaluate returned, if it is like the parameter."""
    if not hasattr(found, "dtype") or np.shape(found) != np.shape(param):
        raise ValueError(
            f"{type(rule).__name__}.evaluate returned {describe(found)}, where the array has the shape "
            f"{np.shape(param)}: it must return the parameter to evaluate with."
        )
    return found


def same_names(rule: Any, measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names under which a rule measures numbers, which must be the same for all arrays."""
    names = list(measured[0]) if measured else []
    for other in measured:
        if set(other) != set(names):
            raise ValueError(
                f"{type(rule).__name__}.measure returned {names} for one array and {list(other)} for "
                "another: it must return the same names for all, as advance gets one vector for each."
            )
    return names


def checked_scalars(rule: Any, before: Mapping[str, Any], new: Any) -> dict[str, Any]:
    """What a rule's advance returned, if these are numbers by name, all its scalars among them."""
    what = f"{type(rule).__name__}.advance"
    names = list(before)
    if not isinstance(new, Mapping) or not set(names) <= set(new):
        got = list(new) if isinstance(new, Mapping) else describe(new)
        raise ValueError(
            f"{what} must return a dict with the new value of each of the rule's scalars, {names}, and "
            f"what else `update` needs; got {got}. What stays as it is, is returned as it is: "
            "scalars['d']."
        )
    for name, value in new.items():
        if not is_real(value):
            raise ValueError(f"{what} returned for {name} {describe(value)}: it must be a number.")
        if name in before and np.shape(value) != np.shape(before[name]):
            raise ValueError(
                f"{what} returned for {name} {describe(value)}, and it was {describe(before[name])} "
                "before: it must keep its shape."
            )
    return dict(new)


def is_real(value: Any) -> bool:
    """Whether it is a real number, or an array of them."""
    if isinstance(value, (bool, int, float)):
        return True
    dtype = getattr(value, "dtype", None)
    return dtype is not None and any(
        jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)
    )


def checked_result(
    rule: Any, gradient: Any, result: Any, shapes: Mapping[str, Any]
) -> tuple[Any, Any]:
    """What a rule's update returned, if it is a direction like its gradient, and all that changes.

    shapes: of each slot, None for one that this array has not.
    """
    name = type(rule).__name__
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(
            f"{name}.update must return (direction, slots), the slots a dict, which is empty for a rule "
            f"without any; got a {type(result).__name__}."
        )
    direction, slots = result
    changing = [slot for slot, each in rule.slots.items() if not each.constant]
    if not isinstance(slots, Mapping) or set(slots) != set(changing):
        got = list(slots) if isinstance(slots, Mapping) else type(slots).__name__
        constant = [slot for slot in rule.slots if slot not in changing]
        raise ValueError(
            f"{name}.update must return (direction, slots) with the slots {changing}, got {got}."
            + (f" {constant} are constant, and not returned." if constant else "")
        )
    expected = {"direction": np.shape(gradient), **{slot: shapes[slot] for slot in changing}}
    for what, value in (("direction", direction), *slots.items()):
        if value is None and expected[what] is None:
            continue
        if expected[what] is None:
            raise ValueError(
                f"{name}.update returned for {what} {describe(value)}, where the array has no such slot: "
                "return None."
            )
        if not hasattr(value, "dtype") or np.shape(value) != expected[what]:  # type: ignore[arg-type]
            whose = "array" if expected[what] == np.shape(gradient) else "slot"
            raise ValueError(
                f"{name}.update returned for {what} {describe(value)}, where the {whose} has the shape "
                f"{expected[what]}."
            )
    return direction, slots
