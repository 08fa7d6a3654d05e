"""Trees of arrays: what their leaves may be, and one tree against another."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import keystr


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


def is_inexact(leaf: Any) -> bool:
    """Whether it is a number or an array of real or complex floats, of NumPy or JAX."""
    if isinstance(leaf, (float, complex)):
        return True
    if _is_foreign(leaf):
        return False
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def check_floats(what: str, tree: Any) -> None:
    """Raises a TypeError, with the path, if a leaf is not an array of real or complex floats."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_inexact(leaf):
            _no_sparse(what, tree)
            if _is_foreign(leaf):
                raise TypeError(f"{what}{keystr(path)} is {describe(leaf)}: {_remedy(leaf)}")
            raise TypeError(
                f"{what}{keystr(path)} is {describe(leaf)}: an optimizer works on floating-point "
                "arrays. Leave it out: put None in its place in the tree (with Equinox, "
                "params, rest = eqx.partition(model, eqx.is_inexact_array), and in the loss "
                "eqx.combine(params, rest))."
                f"{f' {ORDER}' if what == 'gradients' else ''}"
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


ORDER = "The order is update(gradients, state, params)."


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
    """The parameters, with None for what has no gradient and is no float, as in a whole module."""
    leaves, treedef = jax.tree_util.tree_flatten(updates, is_leaf=_is_none)
    try:
        found = treedef.flatten_up_to(params)
    except ValueError:
        return params
    kept = [
        param if gradient is not None or is_inexact(param) else None
        for gradient, param in zip(leaves, found, strict=True)
    ]
    return treedef.unflatten(kept) if any(map(_is_not, kept, found)) else params


def _is_not(x: Any, y: Any) -> bool:
    return x is not y


def check_arrays(what: str, tree: Any) -> None:
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


def check_no_complex(what: str, tree: Any, rules: Sequence[Any]) -> None:
    """Raises a TypeError, with the path, for a complex leaf that one of the rules cannot take."""
    for rule in rules:
        if rule.takes_complex and not rule.matrix:
            continue
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jnp.iscomplexobj(leaf):
                raise TypeError(
                    f"{what}{keystr(path)} is {describe(leaf)}: {type(rule).__name__} takes no complex "
                    "arrays. Give it the real and the imaginary part as two arrays."
                )


def _is_none(x: Any) -> bool:
    return x is None


def children(node: Any) -> tuple[list[Any], Any]:
    """What is directly in a node of a tree, and the structure that it gives them."""
    return jax.tree_util.tree_flatten(node, is_leaf=lambda x: x is not node)


class Arrays:
    """A tree of arrays as a flat list, None among them, against which every other tree is matched."""

    def __init__(self, what: str, tree: Any) -> None:
        self._what, self._tree = what, tree
        given, self.treedef = jax.tree_util.tree_flatten(tree, is_leaf=_is_none)
        self.leaves: list[Any] = [None if is_float0(leaf) else leaf for leaf in given]
        check_floats(what, gradients(tree))

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
                if not is_inexact(param):
                    check_floats(f"params{self.paths()[index]}", param)
                self._same_kind("params", index, param, may_be_real=False)
        return params

    def slot(
        self,
        name: str,
        tree: Any,
        storage: Any,
        slot: Any,
        views: Sequence[Any],
        params: Sequence[Any] = (),
    ) -> list[Any]:
        """What the state holds of a rule's `Slot` for each gradient.

        views: how the rule sees each of them.
        params: the parameters, or None for each, where the slot may be one of optax's.
        """
        what, nonnegative = f"the state's {name}", slot.nonnegative
        stored = self.match(what, tree)
        for index, value in enumerate(stored):
            shape = None
            if self.leaves[index] is not None:
                shape = views[index].slot_shape(slot)
                if shape is None and value is None:
                    continue  # This array has no such slot.
            if value is None and self.leaves[index] is not None:
                raise ValueError(
                    f"{self._outline(index)}, but {what} is None there: the state was made for other "
                    f"parameters. {ORDER}"
                )
            if value is None or (
                self.leaves[index] is None and isinstance(value, optax.MaskedNode)
            ):
                continue  # What has no gradient may be in another group.
            if isinstance(value, Mapping):
                if self.leaves[index] is None:
                    continue  # It stays as it is.
                value = storage.from_names(value, shape, real=nonnegative)
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
            self._same_kind(
                what, index, decoded, may_be_real=nonnegative, shape=shape, advice=advice
            )
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
        return list(map(bool, self.broadcast("the mask", mask.tree(params))))

    def broadcast(self, what: str, tree: Any, advice: str = "") -> list[Any]:
        """What a tree that is a prefix of this one has for each array; None where that is None."""
        found: list[Any] = []

        def spread(value: Any, part: Any) -> None:
            if jax.tree_util.all_leaves([value]):  # It is for all arrays that are there.
                here = jax.tree_util.tree_leaves(part, is_leaf=_is_none)
                found.extend(None if array is None else value for array in here)
            elif part is None:  # A branch without gradients.
                found.append(None)
            elif isinstance(part, optax.MaskedNode):  # One that another optimizer has.
                pass
            else:
                if type(value) is type(part) is dict:
                    # Of a branch without gradients, or that another optimizer has, nothing need be said.
                    value = {key: x for key, x in part.items() if not jax.tree.leaves(x)} | value
                (values, kind), (parts, wanted) = children(value), children(part)
                if kind != wanted:
                    raise ValueError(self._difference(what, tree, is_prefix=True) + advice)
                for each in zip(values, parts, strict=True):
                    spread(*each)

        spread(tree, self._tree)
        return found

    def match(self, what: str, tree: Any) -> list[Any]:
        """What another tree, described as what, has for each array."""
        try:
            return self.treedef.flatten_up_to(tree)
        except ValueError:
            raise ValueError(self._difference(what, tree)) from None

    def same_shapes(
        self, what: str, tree: Any, advice: str = "", *, may_be_real: bool = False
    ) -> list[Any]:
        """What another tree has for each array, which must have its shape, and be complex if it is."""
        found = self.match(what, tree)
        for index, other in enumerate(found):
            self._same_kind(what, index, other, may_be_real=may_be_real, advice=advice)
        return found

    def check_present(self, what: str, found: Sequence[Any]) -> None:
        """Raises unless another tree has something for each array that is not None."""
        for index, (gradient, other) in enumerate(zip(self.leaves, found, strict=True)):
            if gradient is not None and other is None:
                raise ValueError(f"{self._outline(index)}, but {what} is None there.")

    def _same_kind(
        self,
        what: str,
        index: int,
        other: Any,
        *,
        may_be_real: bool,
        shape: tuple[int, ...] | None = None,
        advice: str = "",
    ) -> None:
        """Raises unless the other array has its gradient's shape, and is complex if that is.

        shape: the one that it must have, where it is another one.
        """
        gradient = self.leaves[index]
        if gradient is None or other is None:
            return
        expected = np.shape(gradient) if shape is None else shape
        if np.shape(other) != expected if is_inexact(other) else True:
            is_like = expected == np.shape(gradient)
            problem = "the two must have one shape" if is_like else f"its shape must be {expected}"
        elif jnp.iscomplexobj(gradient) and not jnp.iscomplexobj(other) and not may_be_real:
            problem = "a complex gradient has no place in a real array"
        else:
            return
        raise ValueError(
            f"{self._outline(index)}, but {what} has {describe(other)} there: {problem}.{advice}"
        )

    def paths(self) -> list[str]:
        """The path of each array."""
        return list(map(keystr, _paths(self._tree)))

    def _outline(self, index: int) -> str:
        return f"{self._what}{self.paths()[index]} is {describe(self.leaves[index])}"

    def _difference(self, what: str, tree: Any, is_prefix: bool = False) -> str:
        """How another tree differs, which may be a prefix."""
        here, there = _paths(self._tree), _paths(tree)
        only_here, only_there = set(here) - set(there), set(there) - set(here)
        if is_prefix:  # What is for a branch is for all arrays in it.
            branches = {path[:n] for path in here for n in range(len(path) + 1)}
            only_there -= branches
            only_here = {
                path for path in only_here if not any(path[:n] in there for n in range(len(path)))
            }
        found = [
            f"only {owner} have {', '.join(sorted(keystr(path) or 'a bare leaf' for path in paths)[:4])}"
            for owner, paths in ((f"the {self._what}", only_here), (what, only_there))
            if paths
        ]
        if not found:  # Equal paths, different containers.
            found = [f"{self.treedef} against {jax.tree_util.tree_structure(tree)}"]
        # The state in the place of the parameters.
        advice = f" {ORDER}" if _is_state(tree) or _is_state(self._tree) else ""
        return f"the {self._what} and {what} differ in structure: {'; '.join(found)}.{advice}"


def _paths(tree: Any) -> list[Any]:
    """The path of each leaf, None among them."""
    return [path for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_none)]


def _in_the_form_of(old: Any, new: Any) -> Any:
    """A NamedTuple as a mapping from the names of its fields, if the old one came as such."""
    if not isinstance(old, Mapping) or isinstance(new, Mapping):
        return new
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(new, path[0].key), old, is_leaf=lambda x: x is not old
    )


def _is_state(tree: Any) -> bool:
    """Whether it looks like the state of an optimizer."""
    return isinstance(tree, tuple) and any(hasattr(x, "_fields") for x in (tree, *tree))
