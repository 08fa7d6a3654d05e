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
import optax
from jax.core import Tracer
from jax.tree_util import keystr


@dataclass(frozen=True)
class Interval:
    """The values that a hyperparameter may have."""

    low: float = -math.inf
    high: float = math.inf
    open_above: bool = False
    finite: bool = True

    def __contains__(self, value: float) -> bool:
        if math.isnan(value) or (self.finite and math.isinf(value)) or value < self.low:
            return False
        return value < self.high if self.open_above else value <= self.high

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"a number in [{self.low:g}, {self.high:g}{')' if self.open_above else ']'}"
        kind = "a finite number" if self.finite else "a number"
        return kind if self.low == -math.inf else f"{kind} >= {self.low:g}"


def hyperparameter(rule: str, name: str, value: Any, interval: Interval) -> Any:
    """The value, checked: numbers as floats, arrays of shape (), schedules and None as they are.

    Only numbers are held against the interval: an array may be a tracer.
    """
    if value is None or callable(value):
        return value
    allowed = (
        f"{name} must be {interval}, an array of shape (), or a schedule (a function of the count)"
    )
    if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf":
        value = value.item()
    if isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_)):
        if float(value) not in interval:
            climb = ""
            if name in ("learning_rate", "lr") and value < 0:
                climb = (
                    " To maximise, turn the sign round at the end of a chain: "
                    f"aj.scale_by_learning_rate({-value!r}, flip_sign=False) alone climbs as sgd "
                    f"descends, and aj.chain(aj.scale_by_adam(), aj.scale_by_learning_rate({-value!r}, "
                    "flip_sign=False)) as adam does."
                )
            raise ValueError(f"{name}={value!r} is out of range in {rule}: {allowed}.{climb}")
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
    if not jax.tree_util.all_leaves([value]):
        count = len(jax.tree.leaves(value))
        raise TypeError(
            f"{name} is a {type(value).__name__} with {count} leaves in {rule}: {allowed}, the same for "
            "all arrays. Where they are to differ, give each group of arrays an optimizer of its own: "
            'optax.partition({"a": aj.sgd(0.1), "b": aj.sgd(0.01)}, labels), where labels is a tree like '
            'the parameters, of "a" and "b".'
        )
    raise TypeError(f"{name}={value!r:.200} is a {type(value).__name__} in {rule}: {allowed}.")


def first_value(rule: str, name: str, value: Any) -> None:
    """Raises a TypeError if the first value of a slot is a schedule."""
    if callable(value):
        raise TypeError(
            f"{name}={_name(value)} is a schedule in {rule}: it is the value of the state before the "
            "first step, so it must be a number, or an array of shape ()."
        )


def _name(function: Any) -> str:
    """A function's own name, also in a `Partial`."""
    function = getattr(function, "func", function)
    return getattr(function, "__name__", f"{function!r:.100}")


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


def floating(argument: str, dtype: Any) -> Any:
    """The dtype; a ValueError if it is not a real floating-point one."""
    try:
        if jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            return jnp.dtype(dtype)
    except TypeError:
        pass
    raise ValueError(f"{argument}={dtype!r} must be a floating-point dtype, such as jnp.bfloat16.")


def describe(leaf: Any) -> str:
    """A leaf's dtype and shape, or its type if it is no array."""
    if leaf is None:
        return "None"
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
            _no_sparse(what, tree)
            if _is_foreign(leaf):
                raise TypeError(f"{what}{keystr(path)} is {describe(leaf)}: {_remedy(leaf)}")
            raise TypeError(
                f"{what}{keystr(path)} is {describe(leaf)}: an optimizer works on floating-point "
                "arrays. Leave it out: put None in its place in the tree (with Equinox, "
                "params, rest = eqx.partition(model, eqx.is_inexact_array), and in the loss "
                "eqx.combine(params, rest))."
                f"{f' {_ORDER}' if what == 'gradients' else ''}"
            )


def _no_sparse(what: str, tree: Any) -> None:
    """Raises a TypeError, with the path, for a sparse array: a pytree with integers in it."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "todense"))
    for path, leaf in found:
        if hasattr(leaf, "todense"):
            where, kind = f"{what}{keystr(path)}", type(leaf).__name__
            raise TypeError(
                f"{where} is a sparse array, {kind}[{', '.join(map(str, leaf.shape))}]: an optimizer "
                "works on dense arrays, for each of which it keeps its state. Make a gradient dense, "
                "gradient.todense(). Of a sparse parameter train the numbers alone: let the tree hold "
                "matrix.data, and make the matrix in the loss function, "
                "BCOO((data, matrix.indices), shape=matrix.shape)."
            )


_ORDER = "The order is update(gradients, state, params)."


@functools.cache
def _placeholder() -> type:
    """What `optax.tree.map_params` hands to `init` in the place of the parameters."""
    kinds: list[type] = []

    def init(params: Any) -> Any:
        kinds.append(type(params))
        return params

    optax.tree.map_params(init, lambda x: x, ())
    return kinds[0]


def is_placeholder(params: Any) -> bool:
    """Whether a state is made to find out which of its entries are like the parameters."""
    return isinstance(params, _placeholder())


def is_float0(x: Any) -> bool:
    """Whether it is what `jax.grad(…, allow_int=True)` gives for an integer: nothing."""
    return getattr(x, "dtype", None) == jax.dtypes.float0


def gradients(updates: Any) -> Any:
    """The gradients, with None for those of integers."""
    return jax.tree.map(lambda x: None if is_float0(x) else x, updates)


def with_gradient(updates: Any, params: Any) -> Any:
    """The parameters, with None for what has no gradient and is no array, as in a whole module."""
    gradients, treedef = jax.tree_util.tree_flatten(updates, is_leaf=_is_none)
    try:
        found = treedef.flatten_up_to(params)
    except ValueError:
        return params
    kept = [
        param if gradient is not None or hasattr(param, "dtype") else None
        for gradient, param in zip(gradients, found, strict=True)
    ]
    return treedef.unflatten(kept) if any(map(_is_not, kept, found)) else params


def _is_not(x: Any, y: Any) -> bool:
    return x is not y


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
        given, self.treedef = jax.tree_util.tree_flatten(tree, is_leaf=_is_none)
        self.leaves: list[Any] = [None if is_float0(leaf) else leaf for leaf in given]
        leaves(what, gradients(tree))

    def params(self, params: Any, needed_by: Sequence[Any]) -> list[Any]:
        """The parameter of each gradient; None for each if no params came and none are needed."""
        if params is None:
            if needed_by and any(leaf is not None for leaf in self.leaves):
                raise ValueError(
                    f"{needed_by[0]!r} needs the parameters: call update(gradients, state, params)."
                )
            return [None] * len(self.leaves)
        params = self.match("params", params)
        for index, (gradient, param) in enumerate(zip(self.leaves, params, strict=True)):
            # Without a gradient it may be anything: a number of layers, a function.
            if gradient is not None:
                if not _inexact(param):
                    leaves(f"params{self.paths()[index]}", param)
                self._same_kind("params", index, param, may_be_real=False)
        return params

    def slot(
        self, name: str, tree: Any, storage: Any, nonnegative: bool, params: Sequence[Any] = ()
    ) -> list[Any]:
        """What the state holds of a slot for each gradient.

        params: the parameters, or None for each, where the slot may be one of optax's.
        """
        what = f"the state's {name}"
        stored = self.match(what, tree)
        for index, value in enumerate(stored):
            if value is None and self.leaves[index] is not None:
                raise ValueError(
                    f"{self._outline(index)}, but {what} is None there: the state was made for other "
                    f"parameters. {_ORDER}"
                )
            if value is None:
                continue
            if isinstance(value, Mapping):
                if self.leaves[index] is None:
                    continue  # It stays as it is.
                value = storage.from_names(value, np.shape(self.leaves[index]), real=nonnegative)
            elif params:
                likes = self.leaves[index], params[index]
                value = storage.adopted(value, [x for x in likes if x is not None])
            stored[index] = value
            if not storage.holds(value):
                raise ValueError(
                    f"{what} at {self.paths()[index] or 'the one array'} was made with another storage "
                    f"than {storage!r}, or its arrays were cut: {jax.tree.map(describe, value)}. Convert "
                    "the state with aj.convert_storage, or make it with this optimizer's init(params). "
                    "To cut or join the arrays of a state, convert it to the same optimizer without a "
                    "storage, cut that, and convert it back."
                )
            decoded = value if hasattr(value, "dtype") else jax.eval_shape(storage.decode, value)
            advice = (
                " Where parameters were cut or joined, do the same to this entry of the state, or make the "
                "state with init(params)."
            )
            self._same_kind(what, index, decoded, may_be_real=nonnegative, advice=advice)
        return stored

    def slot_tree(self, given: Any, values: list[Any]) -> Any:
        """The tree of a slot's new values, each in the form in which the old one was given."""
        olds = self.treedef.flatten_up_to(given)
        return self.treedef.unflatten(list(map(_in_the_form_of, olds, values)))

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

    def same_shapes(self, what: str, tree: Any, advice: str = "") -> list[Any]:
        """What another tree has for each array, which must have its shape, real or complex."""
        found = self.match(what, tree)
        for index, other in enumerate(found):
            self._same_kind(what, index, other, may_be_real=False, advice=advice)
        return found

    def _same_kind(
        self, what: str, index: int, other: Any, *, may_be_real: bool, advice: str = ""
    ) -> None:
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
            f"{self._outline(index)}, but {what} has {describe(other)} there: {problem}.{advice}"
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
        # The state in the place of the parameters.
        advice = f" {_ORDER}" if _is_state(tree) or _is_state(self._tree) else ""
        return f"the {self._what} and {what} differ in structure: {'; '.join(found)}.{advice}"


def _in_the_form_of(old: Any, new: Any) -> Any:
    """A NamedTuple as a mapping from the names of its fields, if the old one came as such."""
    if not isinstance(old, Mapping) or isinstance(new, Mapping):
        return new
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(new, path[0].key), old, is_leaf=lambda x: x is not old
    )


def state(state: Any, expected: Sequence[Any]) -> tuple[Any, ...]:
    """The state as one part for each `Layout`, out of its `MaskedState`, if it is laid out so."""
    parts = state if len(expected) > 1 else (state,)
    if isinstance(parts, (tuple, list)) and len(parts) == len(expected):
        parts = [
            getattr(part, "inner_state", None) if layout.masked else part
            for part, layout in zip(parts, expected, strict=True)
        ]
        # A rule without state takes whatever comes, as in optax.
        if all(
            (not layout.fields and not (layout.masked and part is None))
            or (
                getattr(part, "_fields", None) == layout.fields
                and layout.name in (None, type(part).__name__)
            )
            for part, layout in zip(parts, expected, strict=True)
        ):
            return tuple(parts)
    wanted = ", ".join(map(str, expected))
    raise ValueError(
        "the state was made by another optimizer, or is no state: expected "
        f"{wanted if len(expected) == 1 else f'({wanted})'}, got {_outline(state)}. Make it with this "
        "optimizer's init(params), or, if the other one had the same rules with another storage, weight "
        "decay, mask or schedule, with aj.convert_storage, which takes states of version 0.1.0 as well."
        f"{_order(state)}"
    )


def chain_state(state: Any, length: int) -> None:
    """Raises a ValueError unless the state is a tuple of so many states."""
    if not isinstance(state, (tuple, list)) or len(state) != length:
        raise ValueError(
            f"the state of a chain of {length} is a tuple of {length} states, got {_outline(state)}. "
            f"Make it with this chain's init(params).{_order(state)}"
        )


def wrapper_state(state: Any, expected: Any) -> None:
    """Raises a ValueError unless the state is the NamedTuple of this wrapper."""
    if not isinstance(state, expected):
        raise ValueError(
            f"the state was made by another optimizer: expected {expected.__name__}"
            f"({', '.join(expected._fields)}), got {_outline(state)}. Make it with this optimizer's "
            f"init(params).{_order(state)}"
        )


def _is_state(tree: Any) -> bool:
    """Whether it looks like the state of an optimizer."""
    return isinstance(tree, tuple) and any(hasattr(x, "_fields") for x in (tree, *tree))


def _order(state: Any) -> str:
    """A reminder, where it does not look like any state."""
    return "" if isinstance(state, (tuple, list)) else f" {_ORDER}"


def _outline(state: Any) -> str:
    if hasattr(state, "_fields"):
        return f"{type(state).__name__}({', '.join(state._fields)})"
    if isinstance(state, (tuple, list)):
        return f"({', '.join(map(_outline, state))})"
    if isinstance(state, dict):
        return f"a dict with the keys {list(state)}"
    return describe(state) if hasattr(state, "dtype") else type(state).__name__


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


def mask_leaves(mask: Any) -> None:
    """Raises a TypeError unless every leaf of a mask is True or False."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(mask):
        if isinstance(leaf, Tracer):
            raise TypeError(
                f"mask{keystr(path)} is {describe(leaf)} and depends on the values of the parameters: a "
                "mask is made once, of their names, shapes and dtypes, and its leaves are Python's True "
                "and False. For a selection by value multiply the gradients by it, before the update."
            )
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
        is_bool = isinstance(value, (bool, np.bool_))  # NumPy 2.0 has an index for its own.
        number = least - 1 if is_bool else operator.index(value)
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
        with of_function(f"{name}.update"):
            yield
    except KeyError as error:
        raise ValueError(
            f"{name}.update asks for {error}, and the slots are {list(rule.slots)}: declare what a rule "
            'keeps, slots = {"mu": aj.Slot()}.'
        ) from error


@contextlib.contextmanager
def of_function(what: str, of: str = "") -> Iterator[None]:
    """Says what to write instead where a user's function needs the value of what is being traced.

    of: what its argument is called, "the count, which".
    """
    try:
        yield
    except _NOT_KNOWN as error:
        number, array = of or "a number that", of or "an array that"
        if isinstance(error, jax.errors.TracerBoolConversionError):
            does, instead = f"branches on {number}", "jnp.where"
        elif isinstance(error, jax.errors.TracerArrayConversionError):
            does, instead = f"gives NumPy {array}", "jnp for np"
        elif isinstance(error, jax.errors.TracerIntegerConversionError):
            does, instead = f"looks something up by {number}", "jnp.array(table)[index]"
        else:
            does = f"makes a Python number of {array}"
            instead = "jnp for math, and no float(), int() or .item()"
        reason = str(error).partition("\n")[0]
        raise TypeError(
            f"{what} {does} is not known before the step runs: write {instead}. "
            f"({type(error).__name__}: {reason})"
        ) from error


_NOT_KNOWN = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


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
