"""What a rule is told about the step at hand."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from .. import maths
from .refresh import refreshed


class Context:
    """What the lift tells a rule about the step at hand.

    step: 1 for the first update, int32, shape (). None for a rule that does not count its steps.
    scalars: in `update` all that `advance` returned for this step, as arrays, the rule's `scalars`
      among them; in `measure` the rule's `scalars` before the step; in `evaluate` those of the state.
    extra: the extra arguments that the rule asks for by its `extra_args`: a number, or what there is
      for this array.
    selected: whether the rule's mask selects this array; True without a mask. Of a rule with several
      masks a tuple, in the order of the fields.
    store: `store(name, value)` returns value as the slot will hold it. A rule that computes its
      direction from stored values takes the same steps after a restart, whatever the storage.
    gradient: the gradient of this array as it came to the outermost `aj.chain`, or to the row of rules
      where there is none around it. For rules with `needs_gradient`.
    learning_rate: the product of the learning rates of the rules before this one in its row; 1 if
      there are none. A rule that is to see a learning rate comes after it. With
      `needs_learning_rate`, those of the members of this library directly before it in an `aj.chain`
      are in its row.

    Its property `key` is a key for random bits, and its method `refresh` computes every so many steps.

    In `advance`, which sees no array, there are step, extra with the numbers, learning_rate and key.
    """

    step: Any
    scalars: Mapping[str, Any]
    extra: Mapping[str, Any]
    selected: Any
    store: Callable[[str, jax.Array], jax.Array]
    gradient: jax.Array
    learning_rate: Any

    def __init__(self, of: str, *, index: Any, **known: Any) -> None:
        """of: the rule and its method, `Adam.update`. known: what there is in that method."""
        self.__dict__.update(known, _of=of, _index=index)

    @property
    def key(self) -> jax.Array:
        """A key for random bits, a uint32 of shape (): another one for each step, array and kind of rule.

        `aj.maths.random_bits(shape, ctx.key)` makes a uint32 of each element's place, the upper 16 bits of
        which are random, the same however an array is sharded. For a second draw,
        `aj.maths.random_key(ctx.key, 0, salt)` makes another key of it.

        Example:
          >>> import adaptive_jax as aj, jax.numpy as jnp
          >>> from dataclasses import dataclass
          >>> @dataclass(frozen=True)
          ... class Flipped(aj.Rule):
          ...     counts_steps = True
          ...     def update(self, grad, slots, param, ctx):
          ...         bits = aj.maths.random_bits(grad.shape, ctx.key)
          ...         return jnp.where(bits >> 31, grad, -grad), {}
          >>> tx = aj.transform(Flipped())
          >>> print(jnp.abs(tx.update(jnp.ones(3), tx.init(jnp.ones(3)))[0]))
          [1. 1. 1.]
        """
        rule, _, method = self._of.partition(".")
        if self.step is None:
            raise ValueError(
                f"{self._of} asks for ctx.key, which is made of the step, and {rule} does not count its "
                "steps: counts_steps = True."
            )
        salt = f"{rule}.{method == 'advance'}"  # No slot is called so: their bits are others.
        return maths.random_key(self.step, self._index, zlib.crc32(salt.encode()))

    def refresh(
        self,
        k: int | jax.Array,
        function: Callable[..., Any],
        old: Any,
        *args: Any,
        first: Callable[..., Any] | None = None,
        spread: bool = False,
    ) -> Any:
        """function(old, *args) at the steps 1, k+1, 2k+1, …, and old at all others.

        For what is dear and may lag behind: the roots of a matrix, its eigenvectors. It is a branch,
        which costs nothing where it is not due, under `vmap` too (there it is due for all where it is for
        one). Nothing is differentiated through it. Where an element of the new value is not finite, old
        is kept as a whole. A part of old that the functions return as it is, is not looked at: it says
        that what is computed of it comes after, and may be written over it.

        k: a whole number, 1 or more; or an array of shape (), True in the steps where it is due, such as
          `advance` makes of numbers of its own.
        old: an array or a tree of some; what the functions return has its structure and shapes.
        first: what is called at step 1 in place of function, where that needs something to start from.
        spread: True so that not all arrays are due in the same step: the array at place i is it at the
          steps i % k + 1, i % k + k + 1, …, and all of them at step 1.
        """
        return refreshed(self._of, self.step, self._index, k, function, old, args, first, spread)

    def __getattr__(self, name: str) -> Any:
        """Says why there is nothing under a name."""
        if name.startswith("_"):
            raise AttributeError(name)
        rule, _, method = self.__dict__.get("_of", "").partition(".")
        why = f"the context has no {name!r}"
        if name == "statistic":
            why = (
                "the context has no `statistic` any more: what `advance` returns is in ctx.scalars, by "
                "its name"
            )
        elif name == "gradient" and method in ("measure", "update"):
            why = (
                f"{rule} does not say that it needs the gradient as it came: write needs_gradient = True "
                "into the class, so that it is handed on"
            )
        elif name == "learning_rate" and method in ("measure", "advance", "update"):
            why = (
                "a rule before it does not count its steps, and cannot tell its learning rate, or, where "
                "`advance` makes numbers for all arrays, has one for each of them"
            )
        elif name in Context.__annotations__:
            why = (
                "it sees the numbers of all arrays, and no array" if method == "advance" else
                "nothing is updated there"
            )  # fmt: skip
        raise AttributeError(f"{rule}.{method} asks for ctx.{name}: {why}.")
