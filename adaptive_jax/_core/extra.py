"""What comes with the gradients: extra arguments, and the gradient as it was before other rules."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import contract, pytrees
from .rule import Rule

_Function = TypeVar("_Function", bound=Callable[..., Any])


FIRST_GRADIENT = "first_gradient"
"""The extra argument under which a chain tells its members the gradients that came to it.

It is for members of this library alone. Who hands other gradients on than those that came, as means of
many steps, does the same to it, or drops it: then the gradients that come first take its place.
"""


ARRAYS_BEFORE = "arrays_before"
"""The extra argument under which a partition tells a group how many arrays the groups before it have.

It is a number of Python's, for members of this library alone: the random bits of an array are made of its
place, and so arrays of two groups get others.
"""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["numbers", "trees", "first"], meta_fields=[]
)
@dataclass(frozen=True)
class Extra:
    """The extra arguments that rules ask for.

    numbers: by name.
    trees: by name, those like the parameters.
    first: the gradients as they came at first, where a rule asks for them, and they are others.
    """

    numbers: Mapping[str, Any] = field(default_factory=dict)
    trees: Mapping[str, Any] = field(default_factory=dict)
    first: Any = None

    def matched(self, gradients: pytrees.Arrays) -> tuple[dict[str, list[Any]], list[Any]]:
        """Of each tree what it has for each gradient, and the gradients that came at first."""
        advice = " It is a tree like the gradients."
        trees = {
            name: gradients.same_shapes(
                f"the extra argument {name}", tree, advice, may_be_real=True
            )
            for name, tree in self.trees.items()
        }
        for name, found in trees.items():
            gradients.check_present(f"the extra argument {name}", found)
        if self.first is None:
            return trees, list(gradients.leaves)
        first = gradients.same_shapes("the gradient of the chain", self.first, may_be_real=True)
        gradients.check_present("the gradient of the chain", first)
        return trees, first


def asked(rules: Sequence[Rule], given: Mapping[str, Any]) -> Extra | None:
    """The extra arguments that rules ask for, of those that are given; None if they ask for none."""
    numbers, trees = {}, {}
    for rule in rules:
        for name, kind in rule.extra_args.items():
            if given.get(name) is None:
                raise ValueError(
                    f"{rule!r} needs the extra argument {name}, {_KINDS[kind]}: call "
                    f"update(gradients, state, params, {name}=…){_MADE_BY.get(name, '')}."
                )
            if kind == "array":
                trees[name] = pytrees.gradients(given[name])
            else:
                numbers[name] = _number(rule, name, given[name])
    needs = [rule for rule in rules if rule.needs_gradient]
    first = first_gradient(needs[0], given) if needs else None
    if not numbers and not trees and first is None:
        return None
    return Extra(numbers, trees, first)


_KINDS = {"number": "a number", "array": "a tree like the parameters"}
_ESTIMATORS = (
    ", or train with an estimator, which gives it: aj.train_step(loss, gradient=aj.hutchinson()), or "
    "gradient=aj.gauss_newton_bartlett(sampled_loss) for Gauss and Newton's"
)
_MADE_BY = {"hessian_diagonal": _ESTIMATORS, "has_hessian_diagonal": _ESTIMATORS}
"""What makes an extra argument, as a person would write it."""


def _number(rule: Rule, name: str, value: Any) -> jax.Array:
    if not contract.is_real(value) or np.shape(value) != ():
        raise ValueError(
            f"{rule!r} needs the extra argument {name}, one real number, and got "
            f"{pytrees.describe(value)}."
        )
    return jnp.asarray(value)


def first_gradient(rule: Rule, given: Mapping[str, Any]) -> Any:
    """The gradients that came first to what calls the caller; None for those that come to the caller.

    A chain of optax calls its members as anybody calls a transformation, and what they get may have
    been changed by those before. So the callers are looked at; for rules that ask for the gradient alone.

    rule: one that asks for it.
    given: the extra arguments.
    """
    if FIRST_GRADIENT in given:  # None is the tree of no gradients.
        return given[FIRST_GRADIENT]
    frame, codes = sys._getframe(2), _chains()
    while frame is not None and frame.f_code not in codes:
        frame = frame.f_back
    if frame is None:
        return None
    if (of_group := _of_group.get()) is not None:
        return of_group
    if given.get("grad") is None:
        raise ValueError(
            f"{rule!r} needs the gradient as it came to the first transformation, and a chain of optax, "
            "or another wrapper in a chain, does not hand it on. Use aj.chain, or call "
            "update(gradients, state, params, grad=gradients)."
        )
    return given["grad"]


_of_group: contextvars.ContextVar[Any] = contextvars.ContextVar("of_group", default=None)


@contextlib.contextmanager
def in_place_of_first(gradients: Any) -> Iterator[None]:
    """Says which gradients come first to what is called inside, also where a chain of optax calls it."""
    token = _of_group.set(gradients)
    try:
        yield
    finally:
        _of_group.reset(token)


_own_chains: set[CodeType] = set()


def hands_on(update: _Function) -> _Function:
    """Says that a function hands gradients on to one member after the other. A decorator."""
    _own_chains.add(update.__code__)  # type: ignore[attr-defined]
    return update


@functools.cache
def _chains_of_optax() -> frozenset[CodeType]:
    identity = optax.identity()
    made: Any = (optax.chain(identity, identity), optax.named_chain(("identity", identity)))
    return frozenset(each.update.__code__ for each in made)


def _chains() -> frozenset[CodeType]:
    """The functions that call members of a chain."""
    return _chains_of_optax() | _own_chains
