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


def convolutions_flat(path: str) -> views.MatrixAxes:
    """The axes of an array by its path: of a convolution all but the last are the rows of one matrix."""
    is_one = any({"conv", "convolution", "convs"} & {*_words(name)} for name in path.split("/"))
    return views.MatrixAxes(..., -1) if is_one else views.MatrixAxes()


def axes_of_model(rule: str, axes: Any) -> Any:
    """What a rule's field `axes` is to hold: what a user gives, and for all others `convolutions_flat`."""
    if isinstance(axes, views.MatrixAxes):
        return axes
    given = views.axes_of_field(rule, {} if axes is None else axes)
    return views.AxesByPath(given.patterns, convolutions_flat)  # type: ignore[union-attr]


@dataclass(frozen=True)
class Hidden:
    """A function from parameters to labels: which are matrices inside of a model.

    label: that of these; of all others it is "rest".
    where: what the user selects in place of that.
    named: the patterns to which the user gives axes.
    """

    label: str
    where: Selection | None
    named: tuple[Any, ...]

    def __call__(self, params: Any) -> Any:
        """A tree of labels."""
        if self.where is not None:
            selected = self.where.tree(params)
            return jax.tree.map(lambda is_one: self.label if is_one else REST, selected)
        return tree_map_with_path(lambda path, x: self._of(path_name(path), x)[0], params)

    def reasons(self, params: Any) -> dict[str, str]:
        """Why each array has its label, by its path as `keystr` has it."""
        if self.where is None:
            each = tree_leaves_with_path(params)
            return {keystr(path): self._of(path_name(path), x)[1] for path, x in each}
        selected = pytrees.Arrays("params", params)
        found = selected.broadcast("where", self.where.tree(params), "")
        texts = {True: "selected by where", False: "left out by where"}
        pairs = zip(selected.paths(), found, strict=True)
        return {path: texts[bool(is_one)] for path, is_one in pairs if is_one is not None}

    def _of(self, name: str, x: Any) -> tuple[str, str]:
        """The label of an array, and why."""
        if np.ndim(x) < 2:
            return REST, ("one axis" if np.ndim(x) else "a number")
        if jax.numpy.iscomplexobj(x):
            return REST, "complex"
        if any(pattern.is_in(name) for pattern in self.named):
            return self.label, "named in axes"
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
