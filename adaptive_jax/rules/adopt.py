"""ADOPT: Adam that normalises before it averages, by a second moment that has not seen the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core.hyper import Decay, NonNegative
from .._core.rule import Rule, Slot
from .._core.transformation import Transformation
from ..maths import abs_squared, bounded, clamped, ema, quotient, second_moment, square_root
from ._descent import optimizer
from ._factory import Paper, preconditioner


@dataclass(frozen=True)
class ADOPT(Rule):
    """Adam that converges with any β₂: the gradient over the root of earlier squares, then averaged.

        n = g/max(√ν, ε), between -(t-1)^p and (t-1)^p,   μ ← β₁μ + (1-β₁)n,   d = μ
        ν ← β₂ν + (1-β₂)g² afterwards

    At t = 1, ν ← g² and nothing moves, but for weight decay.

    b1: the decay rate β₁ of the average, in [0, 1).
    b2: the decay rate β₂ of the second moment, in [0, 1).
    eps: the smallest denominator ε >= 0.
    nesterov: True for d = β₁μ + (1-β₁)n: one step ahead.
    use_clipping: False for n without limits: the paper's first version.
    clip_exponent: the exponent p >= 0 of the limits.
    """

    paper = Paper("Taniguchi et al. 2024", "https://arxiv.org/abs/2411.02853", "algorithm 2")

    b1: Decay = 0.9
    b2: Decay = 0.9999
    eps: NonNegative = 1e-6
    nesterov: bool = False
    use_clipping: bool = True
    clip_exponent: NonNegative = 0.25
    slots = {"mu": Slot(), "nu": Slot(nonnegative=True)}
    takes_complex = False
    only_initialises = True

    def update(self, grad, slots, param, ctx):
        is_first = ctx.step == 1
        normed = quotient(bounded(grad), jnp.maximum(square_root(slots["nu"]), self.eps))
        if self.use_clipping:
            limit = (ctx.step - 1).astype(grad.dtype) ** self.clip_exponent
            normed = jnp.clip(normed, -limit, limit)
        normed = jnp.where(is_first, 0 * grad, normed)
        mu = ctx.store("mu", ema(normed, slots["mu"], self.b1))
        moved = second_moment(grad, slots["nu"], self.b2)
        nu = ctx.store("nu", jnp.where(is_first, abs_squared(clamped(grad)), moved))
        return ema(normed, mu, self.b1) if self.nesterov else mu, {"mu": mu, "nu": nu}


@optimizer(ADOPT)
def adopt(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.9999,
    eps: Any = 1e-6,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_exponent: Any = 0.25,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """ADOPT: Adam whose second moment has not seen the gradient that it divides, for any b2.

    Its first update moves nothing. optax has a function of t - 1, clip_value_fn, for clip_exponent.
    """
    ...


@preconditioner(ADOPT)
def scale_by_adopt(
    b1: Any = 0.9,
    b2: Any = 0.9999,
    eps: Any = 1e-6,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_exponent: Any = 0.25,
    storage: Any = None,
) -> Transformation:
    """ADOPT's direction for a chain. See `adopt`."""
    ...
