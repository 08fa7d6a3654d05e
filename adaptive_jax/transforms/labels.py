"""Which parameter belongs to which group: labels, and trees cut into the parts that labels stand for."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path, tree_map_with_path

from .._core import errors, pytrees
from .._core.paths import Pattern, path_name, some


@dataclass(frozen=True)
class Labels:
    """A label for each parameter: a function of the parameters, a tree, or patterns of their paths.

    It is static data that hashes: a tree is kept as its leaves and its structure. A list of pairs that
    could be both is read as what fits the parameters.
    """

    function: Callable[[Any], Any] | None = None
    leaves: tuple[Hashable, ...] = ()
    treedef: Any = None
    patterns: tuple[tuple[Pattern, Hashable], ...] | None = None

    @classmethod
    def of(cls, labels: Any, known: Collection[Hashable]) -> Labels:
        """The labels that a user gives, all of which must be known.

        Raises:
          TypeError, ValueError: for labels that do not hash or are unknown, by their paths, and for
            patterns that do not compile.
        """
        # A module that can be called but is a pytree is a tree of labels.
        if callable(labels) and jax.tree_util.all_leaves([labels]):
            return cls(_hashing(labels))
        if labels is None:
            raise TypeError(
                "param_labels=None labels nothing: give a tree of labels, a function, or patterns."
            )
        _check_labels(labels)
        leaves, treedef = jax.tree.flatten(labels)
        patterns = None
        if pairs := _pairs(labels):
            patterns = tuple([_pattern(index, *pair) for index, pair in enumerate(pairs)])
            if any(leaf not in known for leaf in leaves):
                leaves, treedef = [], None
                named = {each: [repr(pattern.text)] for pattern, each in patterns}
                _refuse_unknown({k: text for k, text in named.items() if k not in known}, known)
                refuse_unused(
                    [label for label in known if label not in named], "pattern", list(named)
                )
        else:
            _refuse_unknown(_places(labels, known), known)
        return cls(None, tuple(leaves), treedef, patterns)

    @property
    def is_general(self) -> bool:
        """Whether it is made for any parameters: then some label may have none of them."""
        return self.function is not None

    def tree(self, params: Any) -> Any:
        """A tree of labels, whose structure is a prefix of that of params."""
        if self.function is not None:
            with errors.of_function(f"param_labels={self!r}", "a value of the parameters, which"):
                tree = self.function(params)
            _check_labels(tree)
            return tree
        if self.treedef is not None:
            tree = jax.tree.unflatten(self.treedef, self.leaves)
            if self.patterns is None or is_prefix(tree, params):
                return tree

        def label(path: Any, leaf: Any) -> Any:
            name = path_name(path)
            found = [each for pattern, each in self.patterns or () if pattern.is_in(name)]
            if not found and leaf is not None:
                raise ValueError(
                    f"no pattern of param_labels matches the path {name!r}: the patterns are "
                    f"{', '.join(repr(pattern.text) for pattern, _ in self.patterns or ())}. A last pair "
                    '(".*", label) is for all the rest.'
                )
            return found[0] if found else None

        return tree_map_with_path(label, params, is_leaf=_is_none)

    def without_match(self, params: Any) -> list[str]:
        """The patterns that match the path of no parameter."""
        if self.patterns is None or (
            self.treedef is not None
            and is_prefix(jax.tree.unflatten(self.treedef, self.leaves), params)
        ):
            return []
        names = [path_name(path) for path, _ in tree_flatten_with_path(params)[0]]
        return [pattern.text for pattern, _ in self.patterns if not any(map(pattern.is_in, names))]

    def __repr__(self) -> str:
        if self.function is not None:
            return getattr(self.function, "__name__", type(self.function).__name__)
        if self.patterns is None:
            return repr(jax.tree.unflatten(self.treedef, self.leaves))
        return repr([(pattern.given, label) for pattern, label in self.patterns])


def _hashing(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    try:
        hash(function)
    except TypeError:
        raise TypeError(
            f"param_labels={function!r:.80} does not hash, and a function of the parameters is told from "
            "others by its hash: give one made by def or lambda."
        ) from None
    return function


def _is_none(x: Any) -> bool:
    return x is None


def _pairs(labels: Any) -> Sequence[tuple[Any, Any]]:
    """Patterns with their labels, if it is a list of them; nothing if it is a tree."""
    many = type(labels) in (list, tuple)
    are_pairs = many and all(
        type(each) in (list, tuple)
        and len(each) == 2
        and isinstance(each[0], (str, re.Pattern))
        and jax.tree_util.all_leaves([each[1]])
        for each in labels
    )
    return labels if are_pairs else ()


def _pattern(index: int, pattern: Any, label: Hashable) -> tuple[Pattern, Hashable]:
    what = f"param_labels[{index}] is the pattern {pattern!r} for {label!r}"
    return Pattern.of(pattern, what), label


def _check_labels(labels: Any) -> None:
    """Raises a TypeError, with the path, for a label that does not hash."""
    for path, leaf in tree_flatten_with_path(labels)[0]:
        if isinstance(leaf, Tracer):
            raise TypeError(
                f"param_labels{keystr(path)} is {pytrees.describe(leaf)} and depends on the values of the "
                "parameters: labels are made once, of names, shapes and dtypes."
            )
        try:
            hash(leaf)
        except TypeError:
            raise TypeError(
                f"param_labels{keystr(path)} is {pytrees.describe(leaf)}, which is no label: labels are "
                "the keys of transforms, in a tree like the parameters or a prefix of it, a function "
                'that makes one of them, or a list of (regular expression, label), [("bias", "plain")].'
            ) from None


def _places(labels: Any, known: Collection[Hashable]) -> dict[Hashable, list[str]]:
    """From each label that is not known to the paths of those that have it."""
    found: dict[Hashable, list[str]] = {}
    for path, leaf in tree_flatten_with_path(labels)[0]:
        if leaf not in known:
            found.setdefault(leaf, []).append(keystr(path) or "all")
    return found


def _refuse_unknown(places: dict[Hashable, list[str]], known: Collection[Hashable]) -> None:
    if places:
        shown = "; ".join(f"{label!r} for {some(paths)}" for label, paths in places.items())
        raise ValueError(
            f"param_labels has labels without a transformation: {shown}. The labels in transforms are "
            f"{', '.join(map(repr, known))}; None as a transformation leaves parameters as they are."
        )


def refuse_unused(unused: Sequence[Hashable], what: str, others: Sequence[Any]) -> None:
    """Raises a ValueError for labels with a transformation and without parameters."""
    if unused:
        raise ValueError(
            f"transforms has {', '.join(map(repr, unused))}, a label that no {what} has, of "
            f"{some([str(each) for each in others])}: leave it out, or give a function of the parameters "
            "as param_labels, which may have labels for other models."
        )


def is_prefix(prefix: Any, tree: Any) -> bool:
    """Whether a tree has the structure of a prefix of another."""
    try:
        jax.tree.structure(prefix).flatten_up_to(tree)
    except ValueError:
        return False
    return True


class Cut:
    """Trees like the parameters, cut into the parts that a tree of labels, a prefix of them, stands for."""

    def __init__(self, what: str, labels: Any) -> None:
        self._what, self._tree = what, labels
        self.labels, self._treedef = jax.tree.flatten(labels)

    @classmethod
    def by(cls, labels: Labels, params: Any, known: Collection[Hashable]) -> Cut:
        """By the labels of these parameters, all of which must be known."""
        tree = labels.tree(params)
        if labels.is_general:
            _refuse_unknown(_places(tree, known), known)
        return cls("param_labels", tree)

    def parts(self, what: str, tree: Any) -> list[Any]:
        """The part of a tree, described as what, for each label."""
        try:
            return self._treedef.flatten_up_to(tree)
        except ValueError:
            raise ValueError(self._difference(what, tree)) from None

    def only(self, parts: Sequence[Any], label: Hashable, nones: bool = False) -> Any:
        """The tree of the parts with a label, and `optax.MaskedNode` for the others.

        nones: whether others that are None stay so.
        """
        return self.joined(
            part if each == label or (nones and part is None) else optax.MaskedNode()
            for part, each in zip(parts, self.labels, strict=True)
        )

    def joined(self, parts: Iterator[Any] | Sequence[Any]) -> Any:
        """The reverse of `parts`."""
        return self._treedef.unflatten(list(parts))

    def _difference(self, what: str, tree: Any) -> str:
        own = [path for path, _ in tree_flatten_with_path(self._tree, is_leaf=_is_none)[0]]
        other = [path for path, _ in tree_flatten_with_path(tree, is_leaf=_is_none)[0]]
        here = [keystr(path) for path in own if all(path != x[: len(path)] for x in other)]
        there = [keystr(path) for path in other if all(x != path[: len(x)] for x in own)]
        found = [
            f"only {owner} {some(paths)}"
            for owner, paths in ((f"{self._what} has", here), (f"the {what} have", there))
            if paths
        ]
        nones = tree_flatten_with_path(self._tree, is_leaf=_is_none)[0]
        if not found and (paths := [keystr(path) or "all" for path, leaf in nones if leaf is None]):
            found = [f"it is None, which is no array, for {some(paths)}"]
        if not found:  # Equal paths, different containers.
            found = [f"{self._treedef} against {jax.tree.structure(tree)}"]
        is_labels = self._what == "param_labels" and here
        hint = (
            ' Patterns are no dict, but pairs: [("bias$", "a"), (".*", "b")].' if is_labels else ""
        )
        return f"{self._what} is no prefix of the {what}: {'; '.join(found)}.{hint}"
