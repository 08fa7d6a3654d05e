"""Where the arrays of a training state lie, and where the update of each parameter is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding

from .._core import pytrees, sharing
from ..transforms.shards import kept_of_params
from .state import TrainState


class Places:
    """Where the arrays of a state lie that is on several devices.

    Compared by identity, which is quick: one of each is made.

    A step leaves every array where it was, and computes each update where the slots of the parameter
    lie, which may be split over more devices than the parameter is.
    """

    def __init__(self, state: TrainState) -> None:
        """state: of arrays, or of shapes with shardings."""
        self._written = [_place(x) for x in jax.tree.leaves(_written(state))]
        arrays = pytrees.Arrays("params", state.params)
        own = dict(zip(arrays.paths(), arrays.leaves, strict=True))
        self._work: dict[str, NamedSharding] = {}
        self._home: dict[str, NamedSharding] = {}
        known: dict[tuple[str, tuple[int, ...]], NamedSharding] = {}
        for path, kept in kept_of_params(state.tx, state.opt_state, state.params):
            for leaf in jax.tree.leaves(kept):
                place, param = _place(leaf), own[path]
                if place is not None:
                    known.setdefault((path, leaf.shape), place)
                if place is None or leaf.shape != param.shape or path in self._work:
                    continue
                if not place.is_equivalent_to(param.sharding, len(param.shape)):
                    self._work[path], self._home[path] = place, param.sharding
        for path, param in own.items():
            if param is not None and (place := self._work.get(path) or _place(param)):
                known[path, param.shape] = place
        self.known = sharing.KnownPlaces(frozenset(known.items()))
        """Where all that goes with a parameter is while the update is computed."""

    def left(self, state: TrainState) -> TrainState:
        """The state of after the step, with every array where it was before."""
        if all(place is None for place in self._written):
            return state
        leaves, treedef = jax.tree.flatten(_written(state))
        placed = [_put(*each) for each in zip(leaves, self._written, strict=True)]
        params, opt_state, model_state = treedef.unflatten(placed)
        changed = {"params": params, "opt_state": opt_state, "model_state": model_state}
        return state.replace(**changed)

    def at_work(self, tree: Any) -> Any:
        """Gradients or parameters where the updates are computed."""
        return _put_all(tree, self._work)

    def at_home(self, tree: Any) -> Any:
        """Gradients where the parameters lie, if the updates are computed elsewhere."""
        return _put_all(tree, self._home)


def _written(state: TrainState) -> Any:
    return state.params, state.opt_state, state.model_state


def _place(x: Any) -> NamedSharding | None:
    """Where an array lies, if it is on several devices."""
    sharding = getattr(x, "sharding", None)
    is_spread = isinstance(sharding, NamedSharding) and sharding.num_devices > 1
    return sharding if is_spread else None


def _put(x: Any, place: NamedSharding | None) -> Any:
    """An array that is traced in a place."""
    if place is None:
        return x
    if AxisType.Explicit in place.mesh.axis_types:
        return jax.sharding.reshard(x, place)
    return jax.lax.with_sharding_constraint(x, place)


def _put_all(tree: Any, places: Mapping[str, NamedSharding]) -> Any:
    """The arrays of a tree like the parameters in their places, by their paths."""
    if not places:
        return tree
    arrays = pytrees.Arrays("gradients", tree)
    pairs = zip(arrays.paths(), arrays.leaves, strict=True)
    placed = [None if x is None else _put(x, places.get(path)) for path, x in pairs]
    return arrays.treedef.unflatten(placed)
