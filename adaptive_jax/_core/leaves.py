"""The trees of an update, checked and matched leaf by leaf."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from . import pytrees
from .extra import Extra
from .lifted import Lifted
from .rule import Rule, masks_of, places
from .views import MatrixAxes, axes_of_arrays, view


@dataclass
class Leaf:
    """One array of the tree, on its way from its gradient to its update.

    gradient: None for an array that is left alone, with its slots.
    param: None where no parameters came.
    entries: of each rule, from names to what the state holds for the array, the new in the end: its
      slots, and the scalars of a layerwise rule.
    extra: from names to what the extra arguments that are trees have for it.
    first: the gradient as it came to what stands around the rules, where one of them asks for it.
    selected: of each rule, whether its mask selects the array; what several say, in a tuple.
    own: of each rule, which of the hyperparameters in its trees are those of the array.
    axes: of each rule that sees matrices, those of the array; None of any other.
    index: the place of the array in the whole tree, or among the arrays of all groups.
    adding: how its update is added to the parameter; None where it is not.
    direction: the gradient, then what the last rule that saw it made of it.
    """

    gradient: Any
    param: Any
    entries: list[dict[str, Any]]
    extra: dict[str, Any]
    first: Any
    selected: tuple[Any, ...]
    own: tuple[tuple[int, ...], ...]
    axes: tuple[MatrixAxes | None, ...]
    index: Any
    adding: Any = field(init=False, default=None)
    direction: Any = field(init=False)

    def __post_init__(self) -> None:
        self.direction = self.gradient

    @property
    def seen(self) -> Any:
        """The parameter as the rules see it."""
        if self.adding is None or self.param is None:
            return self.param
        return self.adding.seen(self.param)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["indices"], meta_fields=["selected", "axes"]
)
@dataclass(frozen=True)
class Piece:
    """What arrays of a larger tree, updated by themselves, have to know of it.

    indices: the place of each in that tree.
    selected: of each rule, whether its mask selects them all, or none.
    axes: of each rule that sees matrices, those of them all.
    """

    indices: list[Any]
    selected: tuple[Any, ...]
    axes: tuple[MatrixAxes | None, ...]


class Matched(NamedTuple):
    """The gradients, of each rule its state, and what belongs to each gradient."""

    gradients: pytrees.Arrays
    states: tuple[Any, ...]
    leaves: list[Leaf]

    def state_entries(self, place: int, names: Iterable[str]) -> dict[str, Any]:
        """Entries of a rule's state, as trees of what there is of them for each leaf."""
        return {
            name: self.gradients.slot_tree(
                getattr(self.states[place], name),
                [leaf.entries[place][name] for leaf in self.leaves],
            )
            for name in names
        }


def per_array(rule: Rule) -> tuple[str, ...]:
    """The entries of a rule's state that are trees like the parameters."""
    return (*rule.scalars, *rule.slots) if rule.layerwise else tuple(rule.slots)


def matched(
    lifted: Lifted,
    updates: Any,
    state: Any,
    params: Any,
    extra: Extra | None = None,
    piece: Piece | None = None,
    evaluates: bool = False,
    before: int = 0,
) -> Matched:
    """All trees of an update, checked, in the order of the gradients.

    evaluates: whether nothing is updated, and updates are the parameters.
    before: how many arrays there are before these, in other groups.
    """
    rules = lifted.rules
    what = "params" if evaluates else "gradients"
    gradients = pytrees.Arrays(what, updates)
    pytrees.check_no_complex(what, updates, rules)
    if piece is None:
        tree = gradients.treedef.unflatten(gradients.leaves)
        of_rules = [axes_of_arrays(rule, what, tree) for rule in rules]
        axes = list(zip(*of_rules, strict=True))
    else:
        axes = [piece.axes] * len(gradients.leaves)
    of_params = gradients.params(params, [rule for rule in rules if rule.needs_params])
    states = lifted.split(state)
    entries = []
    for place, (rule, storages, old) in enumerate(zip(rules, lifted.storages, states, strict=True)):
        scalars = rule.scalars if rule.layerwise else ()
        trees = {
            name: gradients.match(f"the state's {name}", getattr(old, name)) for name in scalars
        }
        views = [
            None if leaf is None else view(each[place], np.shape(leaf))
            for leaf, each in zip(gradients.leaves, axes, strict=True)
        ]
        for (name, slot), storage in zip(rule.slots.items(), storages, strict=True):
            tree = getattr(old, name)
            trees[name] = gradients.slot(name, tree, storage, slot, views, of_params)
        entries.append(trees)
    extras, first = (extra or Extra()).matched(gradients)
    if piece is None:
        indices: Sequence[Any] = [np.uint32(before + i) for i in range(len(gradients.leaves))]
        by_rule = [_selected(rule, gradients, params) for rule in rules]
        selected = list(zip(*by_rule, strict=True))
    else:
        indices, selected = piece.indices, [piece.selected] * len(gradients.leaves)
    own = list(zip(*(places(rule, gradients) for rule in rules), strict=True))
    leaves = [
        Leaf(
            gradients.leaves[i],
            of_params[i],
            [{name: values[i] for name, values in of_rule.items()} for of_rule in entries],
            {name: values[i] for name, values in extras.items()},
            first[i],
            selected[i],
            own[i],
            axes[i],
            indices[i],
        )
        for i in range(len(gradients.leaves))
    ]
    return Matched(gradients, states, leaves)


def _selected(rule: Rule, gradients: pytrees.Arrays, params: Any) -> list[Any]:
    """What a rule's mask says of each array: True without one, a tuple where it has several."""
    found = [gradients.selected(mask, params) for mask in masks_of(rule) or [None]]
    return found[0] if len(found) == 1 else list(zip(*found, strict=True))
