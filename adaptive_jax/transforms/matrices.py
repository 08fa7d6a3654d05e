"""Which arrays are matrices inside of a model, by their paths and shapes, and the optimizer of both."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from .._core import hyper, pytrees, views
from .._core.lifted import Unquoted
from .._core.mask import Selection
from .._core.paths import path_name
from .partition import Partition

REST = "rest"
"""The label of what is no matrix inside of a model."""

_IN_A_NAME = {
    "an embedding": {
        "embed", "embedding", "embeddings", "embedder", "emb", "wte", "wpe", "vocab", "vocabulary",
    },
    "a norm": {"norm", "norms", "layernorm", "rmsnorm", "batchnorm", "groupnorm", "ln", "bn"},
}  # fmt: skip
_LAST_IN_A_NAME = {
    "an embedding": {"token", "tokens", "position", "positions", "pos"},
    "a head": {"head", "logits", "classifier", "unembed", "unembedding"},
    "a bias or a scale": {"bias", "biases", "scale", "scales", "gain", "gamma", "beta"},
}
"""What an array is by the words in its path, anywhere in a name or as the last word of one."""
_NAMED = "named in axes"
_ATTENTION = {"attention", "attn", "multi", "mha"}


def role(path: str) -> str | None:
    """What an array is by its path, a/b/c, if it is no matrix inside of a model; None if it may be.

    Words count and not parts of words: "LayerNorm_0" has two, "ahead" is one. The head of a model is no
    head of an attention.

    Example:
      >>> from adaptive_jax.transforms.matrices import role
      >>> role("h/0/ln_1/scale"), role("lm_head/kernel"), role("MultiHeadAttention_0/query/kernel")
      ("a norm, by 'ln_1'", "a head, by 'lm_head'", None)
    """
    in_attention = False
    *_, last = names = path.split("/")
    for name in names:
        words = _words(name)
        in_attention |= not _ATTENTION.isdisjoint(words)
        for kinds, found in ((_IN_A_NAME, words), (_LAST_IN_A_NAME, words[-1:])):
            for kind, known in kinds.items():
                if not known.isdisjoint(found) and not (kind == "a head" and in_attention):
                    return f"{kind}, by {name!r}"
    return f"a head, by {last!r}" if last == "output" else None


def _words(name: str) -> list[str]:
    """The words of a name in lower case, without numbers: of "LayerNorm_0", layer and norm."""
    return [each.lower() for each in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def axes_by_path(path: str, shapes: Mapping[str, tuple[int, ...]]) -> views.MatrixAxes:
    """The axes of an array by its path, a/b/c, where the user says nothing.

    Of a convolution all but the last are the rows of one matrix. Of an attention, the heads of a matrix
    are not matrices of their own.

    shapes: those of all arrays, by their paths.
    """
    if any({"conv", "convolution", "convs"} & {*_words(name)} for name in path.split("/")):
        return views.MatrixAxes(..., -1)
    return _of_heads(path, shapes) or views.MatrixAxes()


_TO_HEADS = ("query", "key", "value")
_FROM_HEADS = ("out", "attention_output")


def _of_heads(path: str, shapes: Mapping[str, tuple[int, ...]]) -> views.MatrixAxes | None:
    """The axes of a kernel of an attention that has one for the heads, of Flax and Keras; None of others.

    These are query, key and value/kernel of (…, in, heads, d), and out/kernel of (…, heads, d, out). The
    kernels of scanned dense layers may have these names and as many axes, (layers, in, out): both of an
    attention have to fit to each other.
    """
    names = path.split("/")
    place = next((at for at in range(len(names) - 1, 0, -1) if names[at] == "kernel"), 0)
    if not place or names[place - 1] not in (*_TO_HEADS, *_FROM_HEADS):
        return None

    def shape_of(name: str) -> tuple[int, ...]:
        return shapes.get("/".join((*names[: place - 1], name, *names[place:])), ())

    def fit(to_heads: tuple[int, ...], from_heads: tuple[int, ...]) -> bool:
        if not len(to_heads) == len(from_heads) > 2:
            return False
        # Several heads of queries may share one of keys and values.
        heads, shared = from_heads[-3], to_heads[-2]
        return to_heads[-1] == from_heads[-2] and shared > 0 and heads % shared == 0

    own = shapes.get(path, ())
    if names[place - 1] in _TO_HEADS:
        is_one = any(fit(own, shape_of(name)) for name in _FROM_HEADS)
        return views.MatrixAxes(-3, (-2, -1)) if is_one else None
    return views.MatrixAxes((-3, -2), -1) if fit(shape_of("query"), own) else None


def axes_of_model(rule: str, axes: Any) -> Any:
    """What a rule's field `axes` is to hold: what a user gives, and for all others `axes_by_path`."""
    if isinstance(axes, views.MatrixAxes):
        return axes
    given = views.axes_of_field(rule, {} if axes is None else axes)
    return views.AxesByPath(given.patterns, axes_by_path)  # type: ignore[union-attr]


@dataclass(frozen=True)
class Hidden:
    """A function from parameters to labels: which are matrices inside of a model.

    label: that of these; of all others it is "rest".
    where: what the user selects in place of that.
    named: the patterns to which the user gives axes.
    by_path: whether all others have those of `axes_by_path`.
    """

    label: str
    where: Selection | None
    named: tuple[Any, ...]
    by_path: bool = True

    def __call__(self, params: Any) -> Any:
        """A tree of labels."""
        if self.where is not None:
            self._selected(params)  # Raises where it does not fit.
            selected = self.where.tree(params)
            return jax.tree.map(lambda is_one: self.label if is_one else REST, selected)
        return tree_map_with_path(lambda path, x: self._of(path_name(path), x)[0], params)

    def reasons(self, params: Any) -> dict[str, str]:
        """Why each array has its label, by its path as `keystr` has it."""
        if self.where is None:
            each = tree_leaves_with_path(params)
            shapes = {path_name(path): np.shape(x) for path, x in each}
            return {keystr(path): self._reason(path_name(path), x, shapes) for path, x in each}
        texts = {True: "selected by where", False: "left out by where"}
        found = self._selected(params).items()
        return {path: texts[bool(is_one)] for path, is_one in found if is_one is not None}

    def _selected(self, params: Any) -> dict[str, Any]:
        """What `where` says of each array, by its path; None for None."""
        arrays = pytrees.Arrays("parameters", params)
        found = arrays.broadcast("where", self.where.tree(params))  # type: ignore[union-attr]
        return dict(zip(arrays.paths(), found, strict=True))

    def _reason(self, name: str, x: Any, shapes: Mapping[str, tuple[int, ...]]) -> str:
        label, why = self._of(name, x)
        is_usual = label == self.label and why != _NAMED and self.by_path
        return f"{why}, of all heads" if is_usual and _of_heads(name, shapes) else why

    def _of(self, name: str, x: Any) -> tuple[str, str]:
        """The label of an array, and why."""
        if np.ndim(x) < 2:
            return REST, ("one axis" if np.ndim(x) else "a number")
        if jax.numpy.iscomplexobj(x):
            return REST, "complex"
        if any(pattern.is_in(name) for pattern in self.named):
            return self.label, _NAMED
        other = role(name)
        return (self.label, "a matrix inside of the model") if other is None else (REST, other)


@dataclass(frozen=True, repr=False)
class OfMatrices(Partition):
    """An optimizer of matrices, and another one for all other arrays, as one call made them.

    The first one in it was made by the same factory.

    argument: the argument of the call that "rest" is to be shown as: "rest", the name of one for its
      learning rate, or None.
    """

    argument: str | None = None

    def explained(self, params: Any) -> Mapping[str, str]:
        return self.param_labels.function.reasons(params)  # type: ignore[union-attr]

    def __repr__(self) -> str:
        """The call."""
        label = next(each for each in self.transforms if each != REST)
        data, rest = self.transforms[label].data, self.transforms[REST]
        values = data.arguments()
        if self.argument == "rest":
            values["rest"] = Unquoted(repr(rest))
        elif self.argument is not None:
            values[self.argument] = rest.data.arguments()["learning_rate"]
        parameters = inspect.signature(data.factory).parameters
        shown = [
            f"{name}={hyper.show(values[name])}"
            for name, parameter in parameters.items()
            if name in values
            and not (isinstance(values[name], (bool, str)) and values[name] == parameter.default)
        ]
        return f"{data.factory.__name__}({', '.join(shown)})"
