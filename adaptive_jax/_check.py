"""Every error about bad input: what came, where, what was expected, and what to do."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import numbers
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr


@dataclass(frozen=True)
class Interval:
    """The values that a hyperparameter may have."""

    low: float = -math.inf
    high: float = math.inf
    open_above: bool = False

    def __contains__(self, value: float) -> bool:
        if not math.isfinite(value) or value < self.low:
            return False
        return value < self.high if self.open_above else value <= self.high

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"a number in [{self.low:g}, {self.high:g}{')' if self.open_above else ']'}"
        return "a finite number" if self.low == -math.inf else f"a finite number >= {self.low:g}"


def hyperparameter(rule: str, name: str, value: Any, interval: Interval) -> Any:
    """The value, checked: numbers as floats, arrays of shape (), schedules and None as they are.

    Only numbers are held against the interval: an array may be a tracer.
    """
    allowed = (
        f"{name} must be {interval}, an array of shape (), or a schedule (a function of the count)"
    )
    if value is None or callable(value):
        return value
    if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf":
        value = value.item()
    if isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_)):
        if float(value) not in interval:
            raise ValueError(f"{name}={value!r} is out of range in {rule}: {allowed}.")
        return float(value)
    if isinstance(value, (jax.Array, np.ndarray)):
        if value.shape != ():
            raise ValueError(
                f"{name} has shape {value.shape} in {rule}: {allowed}. For many values at once, map "
                "over the function that makes the optimizer: jax.vmap(aj.adam)(learning_rates)."
            )
        if not jnp.issubdtype(value.dtype, jnp.floating) and not jnp.issubdtype(
            value.dtype, jnp.integer
        ):
            raise TypeError(f"{name} has dtype {value.dtype} in {rule}: {allowed}.")
        return value
    raise TypeError(f"{name}={value!r} is a {type(value).__name__} in {rule}: {allowed}.")


def one_number(rule: str, name: str, value: Any) -> None:
    """Raises a ValueError for a hyperparameter that is many numbers when it comes to be used."""
    if shape := np.shape(value) if hasattr(value, "shape") else ():
        raise ValueError(
            f"{name} has the shape {shape} in {rule}: these are many optimizers, made by jax.vmap. Use "
            "them under jax.vmap as well, or take one out: jax.tree.map(lambda x: x[i], tx)."
        )


def one_of(argument: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises a ValueError if an option has none of its values."""
    if value not in allowed:
        raise ValueError(
            f"{argument}={value!r} is not known: it must be one of "
            f"{', '.join(repr(option) for option in allowed)}."
        )


def describe(leaf: Any) -> str:
    """A leaf's dtype and shape, or its type if it is no array."""
    try:
        dtype = jax.dtypes.result_type(leaf) if not hasattr(leaf, "dtype") else leaf.dtype
        name = np.dtype(dtype).name if not _extended(dtype) else dtype
    except (TypeError, ValueError):
        if _is_foreign(leaf):
            return f"{leaf.dtype}{list(leaf.shape)} of type {_origin(leaf)}.{type(leaf).__name__}"
        return f"{leaf!r:.80} of type {type(leaf).__name__}"
    return f"{name}{list(np.shape(leaf))}"


def _origin(leaf: Any) -> str:
    return type(leaf).__module__.partition(".")[0]


def _is_foreign(leaf: Any) -> bool:
    """Whether it is an array of another library than NumPy and JAX, such as a tensor of torch."""
    known = isinstance(leaf, (np.ndarray, np.generic, jax.Array, jax.ShapeDtypeStruct))
    return (
        not known and hasattr(leaf, "dtype") and hasattr(leaf, "shape") and hasattr(leaf, "numpy")
    )


def _extended(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.extended)


def _inexact(leaf: Any) -> bool:
    if isinstance(leaf, (float, complex)):
        return True
    if _is_foreign(leaf):
        return False
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def leaves(what: str, tree: Any) -> None:
    """Raises a TypeError, with the path, if a leaf is not an array of real or complex floats."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not _inexact(leaf):
            if _is_foreign(leaf):
                raise TypeError(f"{what}{keystr(path)} is {describe(leaf)}: {_remedy(leaf)}")
            raise TypeError(
                f"{what}{keystr(path)} is {describe(leaf)}: an optimizer works on floating-point "
                "arrays. Leave it out: put None in its place in the tree (with Equinox, "
                "eqx.filter(model, eqx.is_inexact_array)), or wrap the optimizer in optax.masked."
            )


def arrays(what: str, tree: Any) -> None:
    """Raises a TypeError, with the path, if a leaf is nothing that a compiled function takes."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.ShapeDtypeStruct) or not _is_taken(leaf):
            raise TypeError(f"{what}{keystr(path)} is {describe(leaf)}: {_remedy(leaf)}")


def _is_taken(leaf: Any) -> bool:
    if isinstance(leaf, (jax.Array, int, float, complex)):
        return True
    try:
        jax.make_jaxpr(lambda _: ())(leaf)
    except TypeError:
        return False
    return True


def _remedy(leaf: Any) -> str:
    """What to do about a leaf that is no array of numbers."""
    kind = getattr(getattr(leaf, "dtype", None), "kind", "")
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return "it is the shape of an array, and the array itself is needed."
    if isinstance(leaf, (str, bytes)) or kind in ("U", "S", "T"):
        return (
            "it is text. Leave it out, or give numbers in its place, such as those of its tokens."
        )
    if kind == "O":
        return (
            "it is an array of objects, which NumPy makes of rows of different lengths. Pad them to one "
            "length, or give a list of arrays."
        )
    if _is_foreign(leaf):
        return (
            "an array of NumPy or JAX is needed, jnp.asarray(x.numpy()); of a tensor that has a gradient "
            "or is on another device, jnp.asarray(x.detach().cpu().numpy())."
        )
    if kind in ("M", "m"):
        return "it is a time. Give a number in its place, such as x.astype(float)."
    return (
        "it is no array of numbers. Leave it out, and let the function that needs it have it from "
        "outside. (A class of your own can be a pytree: jax.tree_util.register_dataclass.)"
    )


def no_complex(what: str, tree: Any, rules: Sequence[Any]) -> None:
    """Raises a TypeError, with the path, for a complex leaf that one of the rules cannot take."""
    for rule in rules:
        if rule.takes_complex:
            continue
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jnp.iscomplexobj(leaf):
                raise TypeError(
                    f"{what}{keystr(path)} is {describe(leaf)}: {type(rule).__name__} takes no complex "
                    "arrays. Give it the real and the imaginary part as two arrays."
                )


def _is_none(x: Any) -> bool:
    return x is None


class Arrays:
    """A tree of arrays as a flat list, None among them, against which every other tree is matched."""

    def __init__(self, what: str, tree: Any) -> None:
        self._what, self._tree = what, tree
        self.leaves, self.treedef = jax.tree_util.tree_flatten(tree, is_leaf=_is_none)
        leaves(what, tree)

    def params(self, params: Any, needed_by: Sequence[Any]) -> list[Any]:
        """The parameter of each gradient; None for each if no params came and none are needed."""
        if params is None:
            if needed_by and any(leaf is not None for leaf in self.leaves):
                raise ValueError(
                    f"{needed_by[0]!r} needs the parameters: call update(gradients, state, params)."
                )
            return [None] * len(self.leaves)
        leaves("params", params)
        params = self.match("params", params)
        for index, param in enumerate(params):
            self._same_kind("params", index, param, may_be_real=False)
        return params

    def slot(self, name: str, tree: Any, storage: Any, nonnegative: bool) -> list[Any]:
        """What the state holds of a slot for each gradient."""
        what = f"the state's {name}"
        stored = self.match(what, tree)
        for index, value in enumerate(stored):
            if value is None and self.leaves[index] is not None:
                raise ValueError(
                    f"{self._outline(index)}, but {what} is None there: the state was made for other "
                    "parameters."
                )
            if value is None:
                continue
            if not storage.holds(value):
                raise ValueError(
                    f"{what} at {self.paths()[index] or 'the one array'} was made with another storage "
                    f"than {storage!r}: {jax.tree.map(describe, value)}. Convert the state with "
                    "aj.convert_storage, or make it with this optimizer's init(params)."
                )
            decoded = value if hasattr(value, "dtype") else jax.eval_shape(storage.decode, value)
            self._same_kind(what, index, decoded, may_be_real=nonnegative)
        return stored

    def selected(self, mask: Any, params: Any) -> list[bool]:
        """Whether a rule's mask selects the array of each gradient."""
        if mask is None:
            return [True] * len(self.leaves)
        if mask.function is not None and params is None:
            raise ValueError(
                f"mask={mask!r} needs the parameters: call update(gradients, state, params)."
            )
        tree = mask.tree(params)
        try:
            full = jax.tree.map(
                lambda select, part: jax.tree.map(lambda _: bool(select), part, is_leaf=_is_none),
                tree,
                self._tree,
            )
        except ValueError:
            raise ValueError(self._difference("the mask", tree)) from None
        return self.treedef.flatten_up_to(full)

    def match(self, what: str, tree: Any) -> list[Any]:
        """What another tree, described as what, has for each array."""
        try:
            return self.treedef.flatten_up_to(tree)
        except ValueError:
            raise ValueError(self._difference(what, tree)) from None

    def _same_kind(self, what: str, index: int, other: Any, *, may_be_real: bool) -> None:
        """Raises unless the other array has its gradient's shape, and is complex if that is."""
        gradient = self.leaves[index]
        if gradient is None or other is None:
            return
        if np.shape(other) != np.shape(gradient) if _inexact(other) else True:
            problem = "the two must have one shape"
        elif jnp.iscomplexobj(gradient) and not jnp.iscomplexobj(other) and not may_be_real:
            problem = "a complex gradient has no place in a real array"
        else:
            return
        raise ValueError(
            f"{self._outline(index)}, but {what} has {describe(other)} there: {problem}."
        )

    def paths(self) -> list[str]:
        """The path of each array."""
        with_path = jax.tree_util.tree_flatten_with_path(self._tree, is_leaf=_is_none)[0]
        return [keystr(path) for path, _ in with_path]

    def _outline(self, index: int) -> str:
        return f"{self._what}{self.paths()[index]} is {describe(self.leaves[index])}"

    def _difference(self, what: str, tree: Any) -> str:
        other = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_none)[0]
        here, there = set(self.paths()), {keystr(path) for path, _ in other}
        found = [
            f"only {owner} have {', '.join(path or 'a bare leaf' for path in sorted(paths)[:4])}"
            for owner, paths in ((f"the {self._what}", here - there), (what, there - here))
            if paths
        ]
        if not found:  # Equal paths, different containers.
            found = [f"{self.treedef} against {jax.tree_util.tree_structure(tree)}"]
        return f"the {self._what} and {what} differ in structure: {'; '.join(found)}."


def state(state: Any, expected: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[Any, ...]:
    """The state as one part per rule, if it has the entries that these rules keep."""
    parts = state if len(expected) > 1 else (state,)
    # A rule without state takes whatever comes, as in optax.
    if (
        isinstance(parts, (tuple, list))
        and len(parts) == len(expected)
        and all(
            not entries or (type(part).__name__, getattr(part, "_fields", None)) == (name, entries)
            for part, (name, entries) in zip(parts, expected, strict=True)
        )
    ):
        return tuple(parts)
    wanted = ", ".join(
        f"{name}({', '.join(entries)})" if entries else "EmptyState()" for name, entries in expected
    )
    raise ValueError(
        "the state was made by another optimizer, or is no state: expected "
        f"{wanted if len(expected) == 1 else f'({wanted})'}, got {_outline(state)}. Make it with this "
        "optimizer's init(params), or, if the other one had the same rules with another storage or a "
        "number for a schedule, with aj.convert_storage."
    )


def chain_state(state: Any, length: int) -> None:
    """Raises a ValueError unless the state is a tuple of so many states."""
    if not isinstance(state, (tuple, list)) or len(state) != length:
        raise ValueError(
            f"the state of a chain of {length} is a tuple of {length} states, got {_outline(state)}. "
            "Make it with this chain's init(params)."
        )


def wrapper_state(state: Any, expected: Any) -> None:
    """Raises a ValueError unless the state is the NamedTuple of this wrapper."""
    if not isinstance(state, expected):
        raise ValueError(
            f"the state was made by another optimizer: expected {expected.__name__}"
            f"({', '.join(expected._fields)}), got {_outline(state)}. Make it with this optimizer's "
            "init(params)."
        )


def _outline(state: Any) -> str:
    if hasattr(state, "_fields"):
        return f"{type(state).__name__}({', '.join(state._fields)})"
    if isinstance(state, (tuple, list)):
        return f"({', '.join(map(_outline, state))})"
    if isinstance(state, dict):
        return f"a dict with the keys {list(state)}"
    return describe(state) if hasattr(state, "dtype") else type(state).__name__


def scheduled(rule: str, name: str, value: Any) -> jax.Array:
    """What a schedule returned, if it is one number."""
    if isinstance(value, (int, float, np.ndarray, np.number, jax.Array)) and np.shape(value) == ():
        return jnp.asarray(value)
    raise ValueError(
        f"the schedule for {name} in {rule} returned {describe(value)}: it must return one number, "
        "or an array of shape ()."
    )


def mask_leaves(mask: Any) -> None:
    """Raises a TypeError unless every leaf of a mask is True or False."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(mask):
        if not isinstance(leaf, (bool, np.bool_)):
            raise TypeError(
                f"mask{keystr(path)} is {describe(leaf)}: a mask is a tree of True and False whose "
                "structure is that of the parameters or a prefix of it, or a function that makes one "
                "from them."
            )


def slot_name(name: str, known: Iterable[str]) -> None:
    """Raises a ValueError for a slot that the rule does not declare."""
    if name not in known:
        raise ValueError(f"the rule has no slot {name!r}: its slots are {list(known)}.")


def is_number(value: Any) -> bool:
    """Whether a value is a real number of Python or NumPy."""
    numeric = isinstance(value, (int, float, np.floating, np.integer))
    return numeric and not isinstance(value, bool)


def whole(argument: str, value: Any, least: int, where: str = "", hint: str = "") -> int:
    """The value as a Python int, be it Python's, NumPy's or JAX's; a ValueError for all others.

    So that what is static hashes, compares and prints as one kind of number. True is none.
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(
            f"{argument}={value!r}{where} must be a whole number, {least} or more.{hint}"
        )
    return number


def number(argument: str, value: Any, least: float) -> None:
    """Raises a ValueError unless the value is a finite number and large enough."""
    if not is_number(value):
        raise ValueError(f"{argument}={value!r} must be a number, {least:g} or more.")
    if not least <= value < math.inf:
        raise ValueError(f"{argument}={value!r} must be finite, and {least:g} or more.")


def target(value: Any, whose: str = "") -> None:
    """Raises a ValueError unless the value is None or a number."""
    if value is not None and (not is_number(value) or math.isnan(value)):
        raise ValueError(
            f"target={value!r}{whose} must be a number or None. Each problem can have its own: "
            "dataclasses.replace(problem, target=0.1)."
        )


@functools.cache
def update_arguments(rule: type) -> None:
    """Raises a TypeError unless a rule's update takes what the lift gives it."""
    taken = inspect.signature(rule.update)  # type: ignore[attr-defined]
    try:
        taken.bind("self", "grad", "slots", "param", "ctx")
    except TypeError:
        raise TypeError(
            f"{rule.__name__}.update takes {taken}: it must take (self, grad, slots, param, ctx), where "
            "ctx keeps slots with ctx.store and knows the step."
        ) from None


@contextlib.contextmanager
def of_update(rule: Any) -> Iterator[None]:
    """Says what to write instead where a rule's update fails at what Python or NumPy cannot do."""
    name = type(rule).__name__
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"{name}.update asks for {error}, and the slots are {list(rule.slots)}: declare what a rule "
            'keeps, slots = {"mu": aj.Slot()}.'
        ) from error
    except (jax.errors.TracerBoolConversionError, jax.errors.TracerArrayConversionError) as error:
        if isinstance(error, jax.errors.TracerBoolConversionError):
            why = "branches on a number that is not known before the step runs: write jnp.where"
        else:
            why = "gives NumPy an array that is not known before the step runs: write jnp for np"
        reason = str(error).partition("\n")[0]
        raise TypeError(f"{name}.update {why}. ({type(error).__name__}: {reason})") from error


def returned(rule: Any, gradient: Any, result: Any) -> tuple[Any, Any]:
    """What a rule's update returned, if it is a direction like its gradient, and all its slots."""
    name = type(rule).__name__
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(
            f"{name}.update must return (direction, slots), the slots a dict, which is empty for a rule "
            f"without any; got a {type(result).__name__}."
        )
    direction, slots = result
    if not isinstance(slots, Mapping) or set(slots) != set(rule.slots):
        got = list(slots) if isinstance(slots, Mapping) else type(slots).__name__
        raise ValueError(
            f"{name}.update must return (direction, slots) with the slots {list(rule.slots)}, got {got}."
        )
    for what, value in (("direction", direction), *slots.items()):
        if np.shape(value) != np.shape(gradient) or not hasattr(value, "dtype"):
            raise ValueError(
                f"{name}.update returned for {what} {describe(value)}, where the array has the shape "
                f"{np.shape(gradient)}."
            )
    return direction, slots
