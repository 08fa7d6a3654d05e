"""An optimizer that is Keras's Muon for some arrays and its Adam for all others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._core import hyper
from ..._core.lifted import Unquoted
from ..._core.paths import Pattern
from ..._core.rule import Rule
from ..._core.storage import named
from ..._core.transform import build, transform
from ..._core.transformation import Transformation
from ...transforms.chain import Chained
from ...transforms.labels import Labels
from ...transforms.matrices import REST, Hidden, OfMatrices

MATRICES = "muon"
"""The label of what is for Muon."""

NONE_OR_NUMBER = ("weight_decay", "adam_weight_decay", "rms_rate")
"""Arguments whose default is a number, and that a rule may have as None."""

OPTIONS = ("muon_a", "muon_b", "muon_c", "exclude_embeddings")
"""Arguments that no rule has as a field."""


@dataclass(frozen=True)
class ByPath(Hidden):
    """A function from parameters to labels: Muon is for what has two axes and no path that is left out."""

    excludes_embeddings: bool = True
    excluded: tuple[Pattern, ...] = ()

    def _of(self, name: str, x: Any) -> tuple[str, str]:
        if np.ndim(x) != 2:
            return REST, {0: "a number", 1: "one axis"}.get(np.ndim(x), "more than two axes")
        if jnp.iscomplexobj(x):
            return REST, "complex"
        if self.excludes_embeddings and "embedding" in name.lower():
            return REST, "an embedding, by its path"
        found = [pattern.text for pattern in self.excluded if pattern.is_in(name)]
        return (REST, f"left out by {found[0]!r}") if found else (self.label, "a matrix")


@dataclass(frozen=True, repr=False)
class MuonAndAdam(Chained):
    """Clipping, if there is some, and the optimizer of each array, as one call made them.

    options: the arguments of the call that no rule has as a field.
    """

    options: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        """The call."""
        groups = self.members[-1].data
        matrices, rest = (groups.transforms[label].data for label in (MATRICES, REST))
        clipping = [rule for member in self.members[:-1] for rule in member.data.rules]
        rules = (*clipping, *matrices.rules, *rest.rules)
        values = dict.fromkeys(NONE_OR_NUMBER)
        values |= replace(matrices, rules=rules, options=self.options).arguments()
        parameters = inspect.signature(matrices.factory).parameters
        shown = [
            f"{name}={hyper.show(values[name])}"
            for name, parameter in parameters.items()
            if name in values
            and not (
                isinstance(values[name], (bool, str, tuple)) and values[name] == parameter.default
            )
        ]
        return f"{matrices.factory.label}({', '.join(shown)})"


def of_each_array(
    optimizer: Callable[..., Any],
    rules: Sequence[Rule],
    given: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Transformation:
    """The transformation of rules that clip, then those of Muon, then those of Adam.

    Of each, the first is the direction, and the second one the step.
    """
    *clipping, muon, step_of_muon, adam, step_of_adam = rules
    excluded = tuple(given["exclude_layers"] or ())
    patterns = [
        Pattern.of(each, f"exclude_layers[{index}] is {each!r}")
        for index, each in enumerate(excluded)
    ]
    labels = ByPath(
        MATRICES,
        None,
        (),
        by_path=False,
        excludes_embeddings=bool(given["exclude_embeddings"]),
        excluded=tuple(patterns),
    )
    of_each = {MATRICES: (muon, step_of_muon), REST: (adam, step_of_adam)}
    storage = given["storage"]
    named.check_slot_names(storage, {name for pair in of_each.values() for name in pair[0].slots})
    transforms = {
        label: build(optimizer, *pair, storage=named.of_slots(storage, pair[0].slots))
        for label, pair in of_each.items()
    }
    groups = Transformation.of(OfMatrices(transforms, Labels.of(labels, transforms)))
    options = {**options, **{name: given[name] for name in OPTIONS}}
    options |= {"exclude_layers": excluded} if excluded else {}
    options |= {} if storage is None else {"storage": Unquoted(repr(storage))}
    first = [transform(*clipping)] if clipping else []
    return Transformation.of(MuonAndAdam((*first, groups), tuple(options.items())))
