"""What a hyperparameter is: the values that it may have, and what it is at a step."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import maths
from . import closures
from .arguments import is_number
from .errors import of_function
from .pytrees import Arrays, children, describe
from .schedule import Schedule, ends_of, numbers_of
from .values import Interval as Interval


def is_schedule(value: Any) -> bool:
    """Whether it is one hyperparameter that moves: a function of the count.

    A callable that has leaves, such as a module, is a tree of hyperparameters.
    """
    if isinstance(value, (Schedule, jax.tree_util.Partial)):  # What a rule makes of a function.
        return True
    return callable(value) and all(leaf is value for leaf in jax.tree.leaves(value))


def as_data(value: Any) -> Any:
    """A hyperparameter as a pytree: a function is static, and its leaves are the traced numbers that it
    closes over."""
    is_function = is_schedule(value) and not isinstance(value, (Schedule, jax.tree_util.Partial))
    return closures.as_partial(value) if is_function else value


def is_one(value: Any) -> bool:
    """Whether it is one hyperparameter, or None: a number, a decay rate or a schedule, and no tree."""
    if value is None or isinstance(value, (float, jax.Array, maths.DecayRate)):
        return True
    return is_schedule(value) or jax.tree_util.all_leaves([value])


def each_of(value: Any) -> list[Any]:
    """The hyperparameters in a tree, None among them; of one, that one."""
    return jax.tree.leaves(value, is_leaf=is_one)


def rebuilt(value: Any, ones: list[Any]) -> Any:
    """Something for each hyperparameter in a tree, in the structure of the tree; of one, that one."""
    return jax.tree.structure(value, is_leaf=is_one).unflatten(ones)


def matching(name: str, value: Any, correction: Any) -> list[Any]:
    """What the state holds of the bias correction of each decay rate in a tree."""
    try:
        return jax.tree.structure(value, is_leaf=is_one).flatten_up_to(correction)
    except ValueError:
        raise ValueError(
            f"the state's {name}_correction was made for another {name}, whose tree had other branches: "
            f"{jax.tree.structure(correction)}. Make the state with this optimizer's init(params)."
        ) from None


def has_schedules(value: Any) -> bool:
    """Whether it is a schedule, or a tree with one in it."""
    return any(map(is_schedule, each_of(value)))


def mapped(function: Callable[..., Any], *values: Any) -> Any:
    """A function of hyperparameters, each a tree or one for all: a tree as deep as the deepest.

    Trees of the same parameters go together, whatever part of the structure each has.
    """
    trees = [value for value in values if not is_one(value)]
    if not trees:
        return function(*values)
    if all(type(tree) is dict for tree in trees):
        # In a group of a partition, each has the branches of the group, and may have others.
        values = tuple(
            each if is_one(each) else {key: each[key] for key in set.intersection(*map(set, trees))}
            for each in values
        )
        trees = [value for value in values if not is_one(value)]
    below, kind = children(trees[0])
    columns = [[each] * len(below) if is_one(each) else children(each)[0] for each in values]
    return kind.unflatten([mapped(function, *row) for row in zip(*columns, strict=True)])


def places(rule: str, name: str, value: Any, optional: bool, arrays: Arrays) -> list[Any]:
    """Which hyperparameter of a tree is that of each array, None where the array is None.

    Raises:
      ValueError: if the tree is no prefix of the arrays', or has None for one of them, by paths.
    """
    ones, treedef = jax.tree.flatten(value, is_leaf=is_one)
    found = arrays.broadcast(
        f"{name} in {rule}",
        treedef.unflatten(range(len(ones))),
        " A tree of hyperparameters has the structure of the parameters, or a prefix of it: a number for "
        "each array, or for all arrays of a branch.",
    )
    missing = [index for index, at in enumerate(found) if at is not None and ones[at] is None]
    if missing and not optional:
        raise ValueError(
            f"{name} in {rule} has None for {arrays.paths()[missing[0]]}: it must be a number there."
        )
    return found


def named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The hyperparameters in a tree, each with what it is called in an error: learning_rate['w']."""
    for path, each in jax.tree_util.tree_leaves_with_path(value, is_leaf=is_one):
        yield f"{name}{jax.tree_util.keystr(path)}", each


def checked(rule: str, name: str, value: Any, interval: Interval) -> Any:
    """A hyperparameter, or a tree of them: a prefix of the parameters, with a number for each array or
    for all arrays of a branch. Which branches there are is checked where there are parameters.
    """
    if is_one(value):
        return as_data(hyperparameter(rule, name, value, interval))
    new = [as_data(hyperparameter(rule, *each, interval)) for each in named(name, value)]
    return rebuilt(value, new)


def hyperparameter(rule: str, name: str, value: Any, interval: Interval) -> Any:
    """The value, checked: numbers as floats, arrays of shape (), schedules and None as they are.

    Only numbers are held against the interval, those of a schedule between which it moves too: an array may
    be a tracer.
    """
    allowed = (
        f"{name} must be {interval}, an array of shape (), or a schedule (a function of the count)"
    )
    if isinstance(value, Schedule):
        for where, number in ends_of(value):
            if not interval.low <= number <= interval.high:
                raise ValueError(
                    f"{name} is a schedule with {where}={number!r} in {rule}: {allowed} that stays there."
                    f"{_climb(name, number, value)}"
                )
    if value is None or is_schedule(value):
        return value
    if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf":
        value = value.item()
    if isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_)):
        if float(value) not in interval:
            climb = _climb(name, value, -value)
            raise ValueError(f"{name}={value!r} is out of range in {rule}: {allowed}.{climb}")
        return float(value)
    if isinstance(value, (jax.Array, np.ndarray)):
        if value.shape != ():
            raise ValueError(
                f"{name} has shape {value.shape} in {rule}: {allowed}. For many values at once, map "
                "over the function that makes the optimizer: jax.vmap(aj.adam)(learning_rates). A number "
                "for each array is a tree: {'w': 0.1, 'b': 0.01}."
            )
        if not jnp.issubdtype(value.dtype, jnp.floating) and not jnp.issubdtype(
            value.dtype, jnp.integer
        ):
            raise TypeError(f"{name} has dtype {value.dtype} in {rule}: {allowed}.")
        return value
    if not jax.tree_util.all_leaves([value]):
        count = len(jax.tree.leaves(value))
        raise TypeError(
            f"{name} is a {type(value).__name__} with {count} leaves in {rule}: {allowed}, the same for "
            "all arrays. Where they are to differ, give each group of arrays an optimizer of its own: "
            'optax.partition({"a": aj.sgd(0.1), "b": aj.sgd(0.01)}, labels), where labels is a tree like '
            'the parameters, of "a" and "b".'
        )
    raise TypeError(f"{name}={value!r:.200} is a {type(value).__name__} in {rule}: {allowed}.")


def _climb(name: str, value: Any, rate: Any) -> str:
    """What to do in the place of a negative learning rate."""
    if name.partition("[")[0] not in ("learning_rate", "lr") or value >= 0:
        return ""
    if is_schedule(rate):
        rate = "schedule"  # The same, with positive values.
    return (
        f" To maximise, turn the sign round at the end of a chain: aj.scale_by_learning_rate({rate}, "
        "flip_sign=False) alone climbs as sgd descends, and aj.chain(aj.scale_by_adam(), "
        f"aj.scale_by_learning_rate({rate}, flip_sign=False)) as adam does."
    )


def check_first_value(rule: str, name: str, value: Any) -> None:
    """Raises a TypeError if the first value of a slot is a schedule."""
    for where, each in named(name, value):
        if is_schedule(each):
            raise TypeError(
                f"{where}={_name(each)} is a schedule in {rule}: it is the value of the state before the "
                "first step, so it must be a number, or an array of shape ()."
            )


def _name(function: Any) -> str:
    """A function's own name, also in a `Partial`; the call that made a `Schedule`."""
    function = getattr(function, "func", function)
    return getattr(function, "__name__", f"{function!r:.100}")


def check_one_number(rule: str, name: str, value: Any) -> None:
    """Raises a ValueError for a hyperparameter that is many numbers when it comes to be used."""
    numbers = numbers_of(value) if isinstance(value, Schedule) else [value]
    if shape := next((np.shape(each) for each in numbers if getattr(each, "shape", ())), ()):
        raise ValueError(
            f"{name} has the shape {shape} in {rule}: these are many optimizers, made by jax.vmap. Use "
            "them under jax.vmap as well, or take one out: jax.tree.map(lambda x: x[i], tx)."
        )


def scheduled(rule: str, name: str, schedule: Any, count: Any) -> jax.Array:
    """What a schedule returns at a count, if it is one number."""
    with of_function(
        f"the schedule {name}={_name(schedule)} in {rule}", "the count, or another number, which"
    ):
        value = schedule(count)
    if isinstance(value, (int, float, np.ndarray, np.number, jax.Array)) and np.shape(value) == ():
        return jnp.asarray(value)
    raise ValueError(
        f"the schedule {name}={_name(schedule)} in {rule} returned {describe(value)}: it must return "
        "one number, or an array of shape ()."
    )


Hyper = Annotated[Any, Interval()]
"""A hyperparameter: a float, an array of shape (), a schedule `count -> value`, a tree of these that is a
prefix of the parameters, or None (absent)."""


NonNegative = Annotated[Any, Interval(0.0)]
"""A hyperparameter that must not be negative."""


Positive = Annotated[Any, Interval(0.0, open_below=True)]
"""A hyperparameter that must be above 0: something is divided by it, or grows from it."""


Limit = Annotated[Any, Interval(0.0, finite=False)]
"""A hyperparameter that must not be negative, and is without effect where it is infinite."""


Fraction = Annotated[Any, Interval(0.0, 1.0)]
"""A hyperparameter from 0 to 1."""


Share = Annotated[Any, Interval(0.0, 1.0, open_below=True)]
"""A hyperparameter above 0 and up to 1."""


Decay = Annotated[Any, Interval(0.0, 1.0, open_above=True)]
"""The decay rate of a moving average, from 0 to below 1. A rule sees it as a `DecayRate`, whose
complement is exact and whose bias correction is computed once per step."""


ANNOTATIONS = {
    "Hyper": Hyper,
    "NonNegative": NonNegative,
    "Positive": Positive,
    "Limit": Limit,
    "Fraction": Fraction,
    "Share": Share,
    "Decay": Decay,
}


def none_if_zero(value: Any) -> Any:
    """None for the number 0: what has no effect is left out, and needs neither params nor state.

    An array may be a tracer, so it stays whatever its value.
    """
    return None if is_number(value) and value == 0 else value


def show(value: Any) -> str:
    """A hyperparameter, or a tree of them, as a person would write it."""
    if not is_one(value):
        leaves, treedef = jax.tree.flatten(value, is_leaf=is_one)
        if len(leaves) > _MOST_SHOWN:
            return f"<a {type(value).__name__} of {len(leaves)}: {_outline(leaves)}>"
        return repr(treedef.unflatten([_Shown(show(each)) for each in leaves]))
    if isinstance(value, jax.tree_util.Partial):
        return getattr(value.func, "__name__", repr(value.func))
    if isinstance(value, maths.DecayRate):
        return show(value.value)
    if isinstance(value, jax.Array):
        concrete = value.ndim == 0 and not isinstance(value, Tracer)
        return f"{value.item():.6g}" if concrete else jax.typeof(value).str_short()
    return repr(value)


_MOST_SHOWN = 24
"""The most hyperparameters of a tree that are shown one by one."""


class _Shown(str):
    """What is shown without quotes, in whatever tree it is."""

    __slots__ = ()
    __repr__ = str.__str__


def _outline(leaves: list[Any]) -> str:
    """The smallest and the largest of many hyperparameters, as far as they are numbers of Python."""
    known = [each for each in leaves if is_number(each)]
    if len(known) < len(leaves):
        return f"{show(leaves[0])}, …"
    return f"{min(known):.6g} to {max(known):.6g}"
