"""Whole optimizers of matrices: embeddings, heads, norms and vectors go to another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._core.lifted import Unquoted
from .._core.mask import Selection
from .._core.rule import Rule, replace
from .._core.storage import named
from .._core.transformation import Transformation, member
from .._core.views import AxesByPath, MatrixAxes
from ..transforms.labels import Labels
from ..transforms.matrices import REST, Hidden, OfMatrices, axes_of_model
from ._descent import descend
from .adam import adam


def descend_matrices(
    factory: Callable[..., Transformation],
    direction: Rule,
    learning_rate: Any,
    weight_decay: Any,
    mask: Any,
    storage: Any,
    *,
    where: Any,
    rest: Any,
    adam_learning_rate: Any,
    **options: Any,
) -> Transformation:
    """θ ← θ - η(d + λθ) of the matrices inside of a model, for a direction d of these; Adam for the rest.

    where, rest, adam_learning_rate: as in the docstring of `muon`.
    options: arguments of factory that no rule has as a field, where they are not the default.
    """
    label, name = factory.__name__, type(direction).__name__
    if rest is not None and adam_learning_rate is not None:
        raise ValueError(
            f"{label} got both rest={rest!r:.80} and adam_learning_rate={adam_learning_rate!r}, which is "
            "the learning rate of the Adam that takes the rest by itself: give one of them."
        )
    given = direction.axes  # type: ignore[attr-defined]
    direction = replace(direction, axes=axes_of_model(name, given))
    options |= {"axes": None if given is None else Unquoted(repr(given))}
    selection = None
    if where is not None:
        selection = Selection.of(where, "where")
        options["where"] = Unquoted(repr(selection))
    if rest is not None:
        argument, rest = "rest", member(rest, f"rest of {label}")
    else:
        argument = None if adam_learning_rate is None else "adam_learning_rate"
        rate = learning_rate if adam_learning_rate is None else adam_learning_rate
        slots = {"mu", "nu", *direction.slots}
        named.check_slot_names(storage, slots)
        rest = adam(rate, b2=0.95, eps=1e-10, storage=named.of_slots(storage, ("mu", "nu")))
        storage = named.of_slots(storage, direction.slots)
    matrices = descend(
        factory, direction, learning_rate, weight_decay, mask, storage, decays=True, **options
    )
    named_axes = given.patterns if isinstance(given, AxesByPath) else ()
    labels = Hidden(
        label,
        selection,
        tuple(pattern for pattern, _ in named_axes),
        by_path=not isinstance(given, MatrixAxes),
    )
    transforms = dict(sorted({label: matrices, REST: rest}.items()))
    return Transformation.of(
        OfMatrices(transforms, Labels.of(labels, transforms), argument=argument)
    )
