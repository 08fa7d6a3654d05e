"""SM3: AdaGrad whose sums are kept for each index of an axis, and not for each element."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core.arguments import is_number
from .._core.hyper import Decay, NonNegative
from .._core.rule import Rule, Slot
from .._core.transform import build
from .._core.transformation import Transformation
from ..maths import (
    abs_squared,
    bounded,
    clamped,
    complement,
    ema,
    quotient,
    saturated,
    scaled,
    square_root,
)
from ._descent import descend
from ._factory import Paper, composed

AXES = 5
"""So many axes have sums of their own; those from the fifth on have common ones."""


def sums_of(axis):
    """The slot of an axis: a sum for each index of it."""
    stop = None if axis == AXES - 1 else axis + 1

    def shape(of_array):
        return of_array[axis:stop] if axis < max(len(of_array), 1) else None

    return Slot(nonnegative=True, shape=shape)


@dataclass(frozen=True)
class SM3(Rule):
    """AdaGrad with a sum of squares for each index of each axis, rows and columns of a matrix.

        ν = min over axes of S_axis + g²,   S_axis ← max of ν over all other axes
        μ ← β₁μ + (1-β₁)g/√(ν + ε),   d = μ

    ν is never less than AdaGrad's, which it is for arrays with one axis or none.

    b1: the decay rate β₁ of the momentum, in [0, 1).
    b2: β₂ for averages, ν = β₂·min over axes of S_axis + (1-β₂)g², in [0, 1); None for sums.
    eps: ε >= 0, against division by zero. The paper has none: 0/0 is 0.
    """

    paper = Paper("Anil et al. 2019", "https://arxiv.org/abs/1901.11150", "SM3-II")

    b1: Decay = 0.9
    b2: Decay = None
    eps: NonNegative = 0.0
    slots = {"mu": Slot()} | {f"axis_{axis}": sums_of(axis) for axis in range(AXES)}
    counts_steps = False

    def update(self, grad, slots, param, ctx):
        square = abs_squared(clamped(grad))
        sums = {name: x for name, x in slots.items() if name != "mu" and x is not None}
        axes = {name: axes_of(place, x, grad) for place, (name, x) in enumerate(sums.items())}
        least = functools.reduce(
            jnp.minimum, [jnp.expand_dims(x, axes[name]) for name, x in sums.items()]
        )
        if self.b2 is None:
            nu = saturated(least + square)
        else:
            nu = scaled(least, self.b2.value) + scaled(square, complement(self.b2))
        direction = quotient(bounded(grad), square_root(nu, self.eps))
        mu = ctx.store("mu", ema(direction, slots["mu"], self.b1))
        least_of_none = None if nu.size else 0
        new = {name: jnp.max(nu, axes[name], initial=least_of_none) for name in sums}
        return mu, dict.fromkeys(slots) | new | {"mu": mu}


def axes_of(place, sums, grad):
    """All axes of an array but those of its sums."""
    return tuple(axis for axis in range(grad.ndim) if not place <= axis < place + sums.ndim)


def _rule(b1: Any, b2: Any, eps: Any) -> SM3:
    return SM3(b1, None if is_number(b2) and b2 == 1 else b2, eps)


@composed(SM3, renamed={"momentum": "b1"})
def sm3(
    learning_rate: Any,
    momentum: Any = 0.9,
    *,
    b2: Any = None,
    eps: Any = 0.0,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """SM3: AdaGrad that keeps a number for each row and column, beside the momentum.

    Its authors let the learning rate rise quadratically at first, and then leave it. optax's has ε = 1e-8
    inside the root, and fails for arrays of shape ().

    momentum: the decay rate β₁ of the momentum, in [0, 1).
    """
    return descend(sm3, _rule(momentum, b2, eps), learning_rate, weight_decay, mask, storage)


@composed(SM3, b2=1.0)
def scale_by_sm3(
    b1: Any = 0.9, b2: Any = 1.0, eps: Any = 0.0, *, storage: Any = None
) -> Transformation:
    """SM3's direction for a chain. See `sm3`.

    b2: β₂ for averages, in [0, 1); 1.0 for sums.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.scale_by_sm3(), aj.scale_by_sm3(b2=0.999)
      (scale_by_sm3(b1=0.9, eps=0.0), scale_by_sm3(b1=0.9, b2=0.999, eps=0.0))
    """
    return build(scale_by_sm3, _rule(b1, b2, eps), storage=storage)
