"""One update of very many arrays outside of `jit`, in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from .lifted import Lifted
from .update import matched, selection, update_tree

_MOST_ARRAYS = 256
"""The most arrays that are one program outside of `jit`: XLA compiles larger ones for too long."""


_PIECE = 8
"""The most arrays of a piece: more take longer to compile, fewer longer to call."""


def is_cut(lifted: Lifted, trees: Any) -> bool:
    """Whether so many arrays are updated, outside of `jit`, and by no statistic of all of them."""
    if len(jax.tree.leaves(trees[0])) <= _MOST_ARRAYS:
        return False
    arrays, numbers = jax.tree.leaves(trees), jax.tree.leaves(lifted)
    return (
        all(rule.statistic is None for rule in lifted.rules)
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
    for places, indices, selected in pieces:
        piece = jax.tree.map(leaves.__getitem__, places)
        new = update_tree(lifted, *piece, indices=indices, selected=selected)
        for place, leaf in zip(jax.tree.leaves(places[:2]), jax.tree.leaves(new), strict=True):
            new_leaves[place] = leaf
    return jax.tree.unflatten(structure, new_leaves)[:2]


_MOST_CUTS = 16


_cuts: dict[Any, Any] = {}
"""How trees are cut, by rules, structures, shapes and dtypes: found once, as a program is traced once."""


def _cut(lifted: Lifted, updates: Any, state: Any, params: Any) -> Any:
    """How trees are cut: gradients, state and parameters of each piece, as places among all leaves.

    Beside them, the indices of its arrays, and which of them the masks select. None where so few arrays
    are equal that it does not pay. All checks run in here, as they do where a program is traced.
    """
    gradients, _, _, slots = matched(lifted, updates, state, params)
    masks: list[Sequence[bool]] = []
    # Traced: a mask may not look at values, here as elsewhere.
    jax.eval_shape(lambda params: masks.extend(selection(lifted, gradients, params)), params)
    leaves, structure = jax.tree.flatten((updates, state, params))
    of_updates, of_state, of_params = jax.tree.unflatten(structure, range(len(leaves)))
    flat = gradients.treedef.flatten_up_to
    gradient_at = flat(of_updates)
    param_at = [None] * len(gradient_at) if params is None else flat(of_params)
    states_at = lifted.split(of_state)
    slots_at = [
        {name: flat(getattr(old, name)) for name in each}
        for old, each in zip(states_at, slots, strict=True)
    ]

    def places(piece: Sequence[int]) -> Any:
        of_rules = [
            old._replace(**{name: [at[i] for i in piece] for name, at in each.items()})
            if each
            else old
            for old, each in zip(states_at, slots_at, strict=True)
        ]
        return [gradient_at[i] for i in piece], lifted.join(of_rules), [param_at[i] for i in piece]

    equal: dict[tuple[Any, Any, Any], list[int]] = {}
    for i, gradient in enumerate(gradients.leaves):
        if gradient is not None:
            found, tree = jax.tree.flatten(places([i]))
            selected = tuple([each[i] for each in masks])
            kinds = tuple([(x.shape, x.dtype, x.sharding) for x in map(leaves.__getitem__, found)])
            equal.setdefault((selected, tree, kinds), []).append(i)
    pieces, total, compiled = [], 0, 0
    for (selected, _, _), group in equal.items():
        size = -(-len(group) // -(-len(group) // _PIECE))  # Pieces of one size, where that goes.
        cuts = [group[start : start + size] for start in range(0, len(group), size)]
        total += len(group)
        compiled += sum({len(piece) for piece in cuts})
        for piece in cuts:
            indices = [np.uint32(i) for i in piece]
            pieces.append((places(piece), indices, tuple((x,) * len(piece) for x in selected)))
    return pieces if compiled <= total / 2 else None
