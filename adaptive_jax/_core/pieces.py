"""One update of very many arrays outside of `jit`, in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from .leaves import Piece, matched, per_array
from .lifted import Lifted
from .plan import sees_all
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
        not any(sees_all(rule) for rule in lifted.rules)
        and all(isinstance(x, jax.Array) for x in arrays)
        and not any(isinstance(x, Tracer) for x in (*numbers, *arrays))
    )


def update_in_pieces(lifted: Lifted, trees: Any) -> tuple[Any, Any]:
    """One update of very many arrays, outside of `jit`: in programs for some equal ones at a time."""
    leaves, structure = jax.tree.flatten(trees)
    key = jax.tree.structure(lifted), structure, tuple([(x.shape, x.dtype) for x in leaves])
    pieces = _cuts.get(key, False)
    if pieces is False:
        while len(_cuts) >= _MOST_CUTS:
            _cuts.pop(next(iter(_cuts)), None)
        pieces = _cuts[key] = _cut(lifted, *trees)
    if pieces is None:
        return update_tree(lifted, *trees)
    new_leaves = list(leaves)
    for places, piece in pieces:
        new = update_tree(lifted, *jax.tree.map(leaves.__getitem__, places), piece=piece)
        for place, leaf in zip(jax.tree.leaves(places[:2]), jax.tree.leaves(new), strict=True):
            new_leaves[place] = leaf
    return jax.tree.unflatten(structure, new_leaves)[:2]


_MOST_CUTS = 16


_cuts: dict[Any, Any] = {}
"""How trees are cut, by rules, structures, shapes and dtypes: found once, as a program is traced once."""


def _cut(lifted: Lifted, updates: Any, state: Any, params: Any) -> Any:
    """How trees are cut: gradients, state and parameters of each piece, as places among all leaves.

    Beside them, what the piece is of the whole. None where so few arrays are equal that it does not
    pay. All checks run in here, as they do where a program is traced.
    """
    treedef, selected_of = _selected(lifted, updates, state, params)
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

    equal: dict[tuple[Any, Any, Any], list[int]] = {}
    for i, selected in enumerate(selected_of):
        if selected is not None:
            found, tree = jax.tree.flatten(places([i]))
            kinds = tuple([(x.shape, x.dtype, x.sharding) for x in map(leaves.__getitem__, found)])
            equal.setdefault((selected, tree, kinds), []).append(i)
    pieces, total, compiled = [], 0, 0
    for (selected, _, _), group in equal.items():
        size = -(-len(group) // -(-len(group) // _PIECE))  # Pieces of one size, where that goes.
        cuts = [group[start : start + size] for start in range(0, len(group), size)]
        total += len(group)
        compiled += sum({len(indices) for indices in cuts})
        for indices in cuts:
            pieces.append((places(indices), Piece([np.uint32(i) for i in indices], selected)))
    return pieces if compiled <= total / 2 else None


def _selected(lifted: Lifted, *trees: Any) -> tuple[Any, list[tuple[bool, ...] | None]]:
    """The structure of the gradients, and of each the rules whose masks select it; None without one."""
    found: list[Any] = []

    def look(*trees: Any) -> None:
        gradients, _, leaves = matched(lifted, *trees)
        selected = [None if leaf.gradient is None else leaf.selected for leaf in leaves]
        found.append((gradients.treedef, selected))

    jax.eval_shape(look, *trees)  # A mask may not look at values, here as elsewhere.
    return found[0]
