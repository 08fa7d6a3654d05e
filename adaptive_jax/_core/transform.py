"""The lift: from the maths of one array to an optax transformation of a whole pytree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import contract
from .lifted import Lifted, Text
from .rule import Rule, fields
from .storage import named
from .transformation import Transformation


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
        if not isinstance(rule, Rule):
            raise TypeError(
                f"transform takes rules, got {rule!r} of type {type(rule).__name__}. Transformations, "
                "such as aj.adam(1e-3) and those of optax, are put together by aj.chain."
            )
        fields(type(rule))  # Raises for a rule that is not a frozen dataclass.
        contract.update_arguments(type(rule))
    named.check_slot_names(storage, {name for rule in rules for name in rule.slots})
    storages = tuple(tuple(named.per_slot(storage, rule.slots).values()) for rule in rules)
    if storage is not None:
        options["storage"] = Text(repr(storage))  # A mapping does not hash.
    order = tuple(range(len(rules)) if order is None else order)
    return Transformation.of(Lifted(rules, storages, factory, tuple(options.items()), order))
