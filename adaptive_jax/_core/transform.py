"""The lift: from the maths of one array to an optax transformation of a whole pytree."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .. import maths
from . import contract, export, hyper, pytrees, states
from .extra import ARRAYS_BEFORE, asked
from .first import first_numbers, first_values
from .lifted import Lifted, Unquoted, with_complements
from .pieces import is_cut, update_in_pieces
from .plan import Adding
from .rule import Rule, fields, values_of_arrays
from .sharing import places_for
from .storage import named
from .tiles.row import update_and_add
from .transformation import Transformation
from .update import update_tree
from .views import axes_of_arrays, check_all_found
from .wrapper import check_one_evaluates


def transform(*rules: Rule, storage: Any = None) -> Transformation:
    """Rules in a row, lifted from one array to an optax gradient transformation of pytrees.

    Each rule turns the direction that the one before it gave into a new one; the first gets the
    gradient, the last one gives the update. The result is an `optax.GradientTransformationExtraArgs`,
    and a pytree whose leaves are the hyperparameters: it goes through `jax.jit` as an argument and
    comes out of `jax.vmap` as many optimizers.

    The maths runs in float32, or in float64 where parameters or gradients are; an update has the dtype
    of its gradient. A gradient that is None gives None and leaves its slots alone.

    Args:
      *rules: the rules, in the order in which they apply.
      storage: how slots are kept: None or "float32" (at least), "bfloat16", "int8", "int16",
        "factored" (for slots that are never negative), a `Storage`, or a mapping from names of slots to
        these. What rounds at random adds a `count` to the state.

    Returns:
      The transformation. The state of one rule is a NamedTuple of `count` (if the rule counts its
      steps) and the rule's slots, or `optax.EmptyState()` if it has neither. The state of several
      rules is the tuple of theirs, as in `optax.chain`.

    Raises:
      TypeError: for what is not a rule, or not a storage.
      ValueError: for no rules at all, an unknown storage, or a storage for an unknown slot.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.transform(aj.WeightDecay(0.01), aj.LearningRate(0.1))
      transform(WeightDecay(weight_decay=0.01), LearningRate(learning_rate=0.1))
    """
    return build(None, *rules, storage=storage)


def build(
    factory: Callable[..., Any] | None,
    *rules: Rule,
    storage: Any = None,
    order: Sequence[int] | None = None,
    **options: Any,
) -> Transformation:
    """`transform`, for an optimizer whose repr is to be the call of factory.

    order: for each entry of the state the place of its rule, where it is not that of the rules.
    options: arguments of that call that no rule has as a field, where they are not the default.
    """
    if not rules:
        raise ValueError("transform needs at least one rule, such as aj.LearningRate(1e-3).")
    for rule in rules:
        if isinstance(rule, type) and issubclass(rule, Rule):
            raise TypeError(
                f"transform takes rules, got the class {rule.__name__}: {rule.__name__}(…)."
            )
        if not isinstance(rule, Rule):
            raise TypeError(
                f"transform takes rules, got {rule!r} of type {type(rule).__name__}. Transformations, "
                "such as aj.adam(1e-3) and those of optax, are put together by aj.chain."
            )
        fields(type(rule))  # Raises for a rule that is not a frozen dataclass.
        contract.check_rule(rule, fields(type(rule)).data)
    contract.check_rates(rules)
    named.check_slot_names(storage, {name for rule in rules for name in rule.slots})
    storages = tuple(tuple(named.per_slot(storage, rule.slots).values()) for rule in rules)
    if storage is not None:
        options["storage"] = Unquoted(repr(storage))  # A mapping does not hash.
    order = tuple(range(len(rules)) if order is None else order)
    optimizer = Optimizer(rules, storages, factory, tuple(options.items()), order)
    check_one_evaluates(optimizer)
    return Transformation.of(optimizer)


@export.node
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rules"],
    meta_fields=["storages", "factory", "options", "order"],
)
@dataclass(frozen=True, repr=False)
class Optimizer(Lifted):
    """Rules in a row as what a transformation is made of."""

    def init(self, params: Any) -> Any:
        """The state at first. It maps over params only: some tools of optax pass a placeholder."""
        export.states_of_optax()
        pytrees.check_floats("params", params)
        pytrees.check_no_complex("params", params, self.rules)
        for rule in self.rules:
            axes_of_arrays(rule, "params", params)
            check_all_found(rule, params)
        dtypes = map(jnp.result_type, jax.tree.leaves(params))
        scalar_dtype = maths.compute_dtype(jnp.float32, *dtypes)
        rule_states = []
        arrays = None if pytrees.is_placeholder(params) else pytrees.Arrays("params", params)
        for rule, storages, layout in zip(self.rules, self.storages, self.layout(), strict=True):
            entries: dict[str, Any] = (
                {"count": jnp.zeros((), jnp.int32)} if "count" in layout.fields else {}
            )
            for name in states.scheduled_decays(rule):
                decays = hyper.each_of(getattr(rule, name))
                zeros = [None if b is None else jnp.zeros((), scalar_dtype) for b in decays]
                entries[f"{name}_correction"] = hyper.rebuilt(getattr(rule, name), zeros)
            own = {} if arrays is None else values_of_arrays(rule, arrays)
            for name in rule.scalars:
                entries[name] = first_numbers(rule, name, scalar_dtype, params, own)
            for name, storage in zip(rule.slots, storages, strict=True):
                entries[name] = first_values(rule, name, storage, params, own)
            rule_states.append(layout.make(**entries))
        return self.join(rule_states)

    def update(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        """optax's `update`. Extra arguments that no rule asks for are meant for others in a chain."""
        lifted = with_complements(self)
        extra, before = asked(self.rules, extra_args), extra_args.get(ARRAYS_BEFORE, 0)
        try:
            if extra is None and is_cut(lifted, (updates, state, params)):
                return update_in_pieces(lifted, (updates, state, params), before)
            places = places_for(self.rules)
            return update_tree(lifted, updates, state, params, extra, before=before, places=places)
        except TypeError:
            # What is no array at all is refused by jit, before the checks inside.
            pytrees.Arrays("gradients", updates).params(params, ())
            arrays = pytrees.with_gradient(updates, params)
            if arrays is params:
                raise
        return self.update(updates, state, arrays, **extra_args)

    def update_and_add(
        self, updates: Any, state: Any, params: Any, adding: Adding, backend: Any, **extra_args: Any
    ) -> tuple[Any, Any]:
        """The parameters after an update, and the new state.

        adding: how updates are added.
        backend: of tiles; None for whole arrays.
        """
        return update_and_add(self, updates, state, params, adding, backend, extra_args)
