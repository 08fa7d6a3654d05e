"""One update of very many arrays outside of `jit`, in pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from . import hyper, states
from .leaves import Piece, matched, per_array
from .lifted import Lifted
from .plan import sees_all
from .rule import Rule, replace, trees_of
from .update import update_tree

_MOST_ARRAYS = 256
"""The most arrays that are one program outside of `jit`: XLA compiles larger ones for too long."""


_PIECE = 8
"""The most arrays of a piece: more take longer to compile, fewer longer to call."""


def is_cut(lifted: Lifted, trees: Any) -> bool:
    """Whether so many arrays are updated, outside of `jit`, each by what there is for it alone."""
    if len(jax.tree.leaves(trees[0])) <= _MOST_ARRAYS:
        return False
    arrays, numbers = jax.tree.leaves(trees), jax.tree.leaves(lifted)
    return (
        not any(sees_all(rule) or _corrects_by_tree(rule) for rule in lifted.rules)
        and all(isinstance(x, jax.Array) for x in arrays)
        and not any(isinstance(x, Tracer) for x in (*numbers, *arrays))
    )


def _corrects_by_tree(rule: Rule) -> bool:
    """Whether the state has a tree of bias corrections, which is moved on as a whole."""
    return not trees_of(rule).keys().isdisjoint(states.scheduled_decays(rule))


def update_in_pieces(lifted: Lifted, trees: Any, before: int = 0) -> tuple[Any, Any]:
    """One update of very many arrays, outside of `jit`: in programs for some equal ones at a time.

    before: how many arrays there are before these, in other groups.
    """
    leaves, structure = jax.tree.flatten(trees)
    kinds = tuple([(x.shape, x.dtype) for x in leaves])
    key = jax.tree.structure(lifted), structure, kinds, before
    pieces = _cuts.get(key, False)
    if pieces is False:
        while len(_cuts) >= _MOST_CUTS:
            _cuts.pop(next(iter(_cuts)), None)
        pieces = _cuts[key] = _cut(lifted, before, *trees)
    if pieces is None:
        return update_tree(lifted, *trees, before=before)
    new_leaves = list(leaves)
    numbers = [
        {name: hyper.each_of(value) for name, value in trees_of(rule).items()}
        for rule in lifted.rules
    ]
    for places, own, piece in pieces:
        of_piece = _with_own(lifted, numbers, own)
        new = update_tree(of_piece, *jax.tree.map(leaves.__getitem__, places), piece=piece)
        for place, leaf in zip(jax.tree.leaves(places[:2]), jax.tree.leaves(new), strict=True):
            new_leaves[place] = leaf
    return jax.tree.unflatten(structure, new_leaves)[:2]


def _with_own(
    lifted: Lifted,
    numbers: Sequence[Mapping[str, Sequence[Any]]],
    own: Sequence[Sequence[Sequence[int]]],
) -> Lifted:
    """The rules with a list of hyperparameters for the arrays of a piece, in the place of each tree.

    numbers: of each rule, what is in its trees.
    own: of each array, which of them are its own, for each rule.
    """
    if not any(numbers):
        return lifted
    rules = []
    for rule, values, rows in zip(lifted.rules, numbers, zip(*own, strict=True), strict=True):
        columns = zip(values.items(), zip(*rows, strict=True), strict=True)
        lists = {name: [all_of[at] for at in column] for (name, all_of), column in columns}
        rules.append(replace(rule, **lists))
    return dataclasses.replace(lifted, rules=tuple(rules))


_MOST_CUTS = 16


_cuts: dict[Any, Any] = {}
"""How trees are cut, by rules, structures, shapes and dtypes: found once, as a program is traced once."""


def _cut(lifted: Lifted, before: int, updates: Any, state: Any, params: Any) -> Any:
    """How trees are cut: gradients, state and parameters of each piece, as places among all leaves.

    Beside them, which hyperparameters of trees are those of its arrays, and what it is of the whole.
    None where so few arrays are equal that it does not pay. All checks run in here, as they do where a
    program is traced.
    """
    treedef, kept = _kept(lifted, updates, state, params)
    leaves, structure = jax.tree.flatten((updates, state, params))
    of_updates, of_state, of_params = jax.tree.unflatten(structure, range(len(leaves)))
    gradient_at = treedef.flatten_up_to(of_updates)
    param_at = [None] * len(gradient_at) if params is None else treedef.flatten_up_to(of_params)
    states_at = lifted.split(of_state)
    entries_at = [
        {name: treedef.flatten_up_to(getattr(old, name)) for name in per_array(rule)}
        for rule, old in zip(lifted.rules, states_at, strict=True)
    ]

    def places(indices: Sequence[int]) -> Any:
        of_rules = [
            old._replace(**{name: [at[i] for i in indices] for name, at in each.items()})
            if each
            else old
            for old, each in zip(states_at, entries_at, strict=True)
        ]
        gradients, of_params = ([at[i] for i in indices] for at in (gradient_at, param_at))
        return gradients, lifted.join(of_rules), of_params

    numbers = [[hyper.each_of(value) for value in trees_of(rule).values()] for rule in lifted.rules]
    equal: dict[tuple[Any, Any, Any, Any], list[int]] = {}
    for i, leaf in enumerate(kept):
        if leaf is not None:
            found, tree = jax.tree.flatten(places([i]))
            kinds = tuple([(x.shape, x.dtype, x.sharding) for x in map(leaves.__getitem__, found)])
            own = [
                [each[at] for each, at in zip(*of_rule, strict=True)]
                for of_rule in zip(numbers, leaf.own, strict=True)
            ]
            key = leaf.choices, tree, kinds, jax.tree.structure(own)
            equal.setdefault(key, []).append(i)
    pieces, total, compiled = [], 0, 0
    for (choices, *_), group in equal.items():
        size = -(-len(group) // -(-len(group) // _PIECE))  # Pieces of one size, where that goes.
        cuts = [group[start : start + size] for start in range(0, len(group), size)]
        total += len(group)
        compiled += sum({len(indices) for indices in cuts})
        for indices in cuts:
            piece = Piece([np.uint32(before + i) for i in indices], *choices)
            pieces.append((places(indices), [kept[i].own for i in indices], piece))
    return pieces if compiled <= total / 2 else None


class _Kept(NamedTuple):
    """Of an array with a gradient: its selected and axes, and its hyperparameters in trees."""

    choices: tuple[Any, ...]
    own: tuple[tuple[int, ...], ...]


def _kept(lifted: Lifted, *trees: Any) -> tuple[Any, list[Any]]:
    """The structure of the gradients, and what to know of each; None of one that is None."""
    found: list[Any] = []

    def look(*trees: Any) -> None:
        gradients, _, leaves = matched(lifted, *trees)
        each = [None if x.gradient is None else _Kept((x.selected, x.axes), x.own) for x in leaves]
        found.append((gradients.treedef, each))

    jax.eval_shape(look, *trees)  # A mask may not look at values, here as elsewhere.
    return found[0]
