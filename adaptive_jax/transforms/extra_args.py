"""The extra arguments that rules in a transformation ask for, and their means over many mini-steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import maths
from .._core import export, pytrees
from .._core.lifted import Lifted
from .._core.rule import Rule
from .._core.wrapper import walk

_HAS = "has_"


def asked_for(transformation: Any) -> dict[str, str]:
    """The extra arguments that its rules ask for: from their names to "number" or "array"."""
    return {name: kind for rule in _rules(transformation) for name, kind in rule.extra_args.items()}


def averages_any(transformation: Any) -> bool:
    """Whether its rules ask for extra arguments that are averaged: `value`, or trees."""
    asked = asked_for(transformation)
    return "value" in asked or "array" in asked.values()


def asks_for_gradient(transformation: Any) -> bool:
    """Whether a rule in it asks for the gradient as it came."""
    return any(rule.needs_gradient for rule in _rules(transformation))


def _rules(transformation: Any) -> Iterator[Rule]:
    for (data,) in walk(transformation):
        if isinstance(data, Lifted):
            yield from data.rules


@export.state
class ExtraMeans(NamedTuple):
    """The means of extra arguments over the mini-steps of a group, as far as it has come.

    value: that of `value`; None where no rule asks for it.
    trees: by name, of those like the parameters.
    counts: how many mini-steps have had a tree, by its name, where a number `has_…` says so.
    """

    value: Any
    trees: dict[str, Any]
    counts: dict[str, jax.Array]

    @classmethod
    def first(cls, transformation: Any, params: Any) -> ExtraMeans | None:
        """Before the first mini-step: zeros. None for a transformation that asks for none of them."""
        if not averages_any(transformation):
            return None
        asked = asked_for(transformation)
        names = [name for name, kind in asked.items() if kind == "array"]
        dtypes = map(jnp.result_type, jax.tree.leaves(params))
        number = jnp.zeros((), maths.compute_dtype(jnp.float32, *dtypes))
        return cls(
            value=number if "value" in asked else None,
            trees={name: zeros_like(params) for name in names},
            counts={name: jnp.zeros((), jnp.int32) for name in names if _HAS + name in asked},
        )

    def with_one_more(
        self, extra_args: Mapping[str, Any], gradients: pytrees.Arrays, taken: Any
    ) -> ExtraMeans:
        """With the extra arguments of one mini-step more.

        gradients: those of the mini-step, like which the trees are.
        taken: how many mini-steps there are with it.
        """
        value, trees, counts = self.value, dict(self.trees), dict(self.counts)
        given = extra_args.get("value")
        # Where it is missing, or no number, the rule that asks for it says so.
        if value is not None and given is not None and np.shape(given) == ():
            value = running_mean(value, given, taken)
        for name, old in self.trees.items():
            if extra_args.get(name) is None:
                continue
            count, is_there = taken, jnp.ones((), jnp.bool_)
            if name in counts and extra_args.get(_HAS + name) is not None:
                is_there = jnp.asarray(extra_args[_HAS + name], jnp.bool_)
                counts[name] = counts[name] + is_there.astype(jnp.int32)
                count = jnp.maximum(counts[name], 1)
            means = gradients.match(f"the state's mean of {name}", old)
            what = f"the extra argument {name}"
            new = gradients.same_shapes(what, extra_args[name], may_be_real=True)
            gradients.check_present(what, new)
            trees[name] = gradients.treedef.unflatten(
                [
                    mean if x is None else jnp.where(is_there, running_mean(mean, x, count), mean)
                    for mean, x in zip(means, new, strict=True)
                ]
            )
        return ExtraMeans(value, trees, counts)

    def handed_on(self, extra_args: Mapping[str, Any], gradients: pytrees.Arrays) -> dict[str, Any]:
        """The extra arguments of the whole group: those of its last mini-step, and the means."""
        found = dict(extra_args)
        if found.get("value") is not None:
            found |= {} if self.value is None else {"value": self.value}
        for name, tree in self.trees.items():
            if found.get(name) is None:
                continue
            means, last = map(gradients.treedef.flatten_up_to, (tree, found[name]))
            found[name] = gradients.treedef.unflatten(
                [
                    None if x is None else mean if jnp.iscomplexobj(x) else jnp.real(mean)
                    for mean, x in zip(means, last, strict=True)
                ]
            )
            if name in self.counts and found.get(_HAS + name) is not None:
                found[_HAS + name] = self.counts[name] > 0
        return found


def zeros_like(params: Any) -> Any:
    """Zeros, as wide as means of gradients of these parameters are."""
    return jax.tree.map(
        lambda x: jnp.zeros_like(x, maths.compute_dtype(jnp.result_type(x))), params
    )


def running_mean(mean: jax.Array, new: Any, taken: Any) -> jax.Array:
    """The mean of so many numbers, of the mean of all but the last one and that."""
    new = jax.lax.convert_element_type(new, mean.dtype)
    # No part of it is larger than the largest of them.
    return (mean - maths.quotient(mean, taken)) + maths.quotient(new, taken)
