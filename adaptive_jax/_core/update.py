"""One update of a whole tree."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from .extra import Extra
from .leaves import Leaf, Piece, matched, per_array
from .lifted import Lifted
from .plan import Adding, plans, sees_all, stretches
from .sharing import KnownPlaces, in_shares
from .slots import measure_array, update_array
from .step import RuleAtStep
from .storage.sharding import divided_as


@functools.partial(jax.jit, static_argnames=("backend", "before", "places"))
def update_tree(
    lifted: Lifted,
    updates: Any,
    state: Any,
    params: Any,
    extra: Extra | None = None,
    piece: Piece | None = None,
    adding: Adding | None = None,
    backend: Any = None,
    before: int = 0,
    places: KnownPlaces | None = None,
) -> tuple[Any, Any]:
    """One update of a whole tree. Jitted here, once: a single dispatch when called outside of jit.

    All checks run while it is traced, so from the second call on they cost nothing.

    extra: the extra arguments that the rules ask for.
    piece: what there is to know of the larger tree whose arrays these are.
    adding: how updates are added to the parameters, which then come out in their place.
    backend: what compiles kernels for tiles; None for whole arrays.
    before: how many arrays there are before these, in other groups.
    places: where arrays lie whose types do not say it.
    """
    trees = matched(lifted, updates, state, params, extra, piece, before=before)
    numbers = {} if extra is None else extra.numbers
    rules = [
        RuleAtStep(*each, numbers)
        for each in zip(lifted.rules, lifted.storages, trees.states, strict=True)
    ]
    tiling = None
    if backend is not None:  # Pallas is imported where it is used.
        from .tiles.lift import Tiling

        tiling = Tiling(backend)
    for place, leaf in enumerate(trees.leaves):
        leaf.adding = None if adding is None else adding.of_array(place)
    for stretch in stretches(lifted.rules):
        _advance(rules, stretch, trees.leaves)
        is_last = stretch.stop == len(rules)
        # What is not added to the parameters in the kernel would have to be written out.
        run = tiling.update_array if tiling is not None and is_last else update_array
        planned = list(zip(trees.leaves, plans(rules, stretch, trees.leaves), strict=True))
        shared = {}
        if any(rule.matrix for rule in lifted.rules[stretch]):
            arguments = {
                at: (plan, _of(leaf, stretch, rules))
                for at, (leaf, plan) in enumerate(planned)
                if plan is not None
            }
            shared = in_shares(update_array, arguments, trees.gradients.paths(), places)
        for at, (leaf, plan) in enumerate(planned):
            if plan is None:
                continue
            sees_matrices = any(
                stage is not None and stage.axes is not None for stage in plan.stages
            )
            adds = is_last and not sees_matrices
            if at in shared:
                new = shared[at]
            else:
                plan = dataclasses.replace(plan, adding=leaf.adding if adds else None)
                new = run(plan, *_of(leaf, stretch, rules, adds))
            if sees_matrices and at not in shared:
                # Here, where each array is one: what is traced once for many would divide them all alike.
                new = jax.tree.map(divided_as, (leaf.direction, leaf.entries[stretch]), tuple(new))
            leaf.direction, leaf.entries[stretch] = new
            if is_last and not adds and leaf.adding is not None and leaf.param is not None:
                key = leaf.adding.key(leaf.param, leaf.index)
                leaf.direction = leaf.adding.added(leaf.param, leaf.direction, key)
    if tiling is not None:
        tiling.tell(lifted)
    new_states = [
        rule.new_state(trees.state_entries(place, per_array(rule.rule)))
        for place, rule in enumerate(rules)
    ]
    results = [leaf.direction for leaf in trees.leaves]
    if adding is not None:
        results = [leaf.param if leaf.gradient is None else leaf.direction for leaf in trees.leaves]
    return trees.gradients.treedef.unflatten(results), lifted.join(new_states)


def _advance(rules: Sequence[RuleAtStep], places: slice, leaves: Sequence[Leaf]) -> None:
    """Moves on the scalars of a stretch of the rules, the first of which may measure all arrays."""
    for place in range(places.start, places.stop):
        rule, own = rules[place], slice(place, place + 1)
        if rule.rule.advance is None or rule.rule.layerwise:
            continue
        of_each = zip(leaves, plans(rules, own, leaves), strict=True)
        planned = [(leaf, plan) for leaf, plan in of_each if plan is not None]
        counted = [(leaf, plan) for leaf, plan in planned if leaf.direction.size]
        measured = []
        if sees_all(rule.rule):
            measured = [measure_array(plan, *_of(leaf, own, rules)) for leaf, plan in counted]
            if not measured:
                continue
        dtypes, rows = [plan.dtype for _, plan in planned], [leaf.own[place] for leaf, _ in counted]
        rule.advance(measured, rules[:place], dtypes, rows)


def _of(
    leaf: Leaf, places: slice, rules: Sequence[RuleAtStep], adds: bool = False
) -> tuple[Any, ...]:
    """What a stretch of the rules gets of an array.

    adds: whether it adds to the parameter, which then comes as it is kept.
    """
    needs_first = any(rule.rule.needs_gradient for rule in rules[places])
    first = leaf.first if needs_first else None
    return (
        leaf.direction, leaf.entries[places], leaf.param if adds else leaf.seen, leaf.index,
        leaf.extra, first,
    )  # fmt: skip
