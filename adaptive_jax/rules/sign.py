"""Steps of one size in every coordinate: the sign of a momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core.hyper import Decay
from .._core.rule import Rule, Slot
from .._core.transformation import Transformation
from ..maths import ema
from ._descent import optimizer
from ._factory import Paper, preconditioner


@dataclass(frozen=True)
class Lion(Rule):
    """The sign of a momentum that looks at the gradient twice, at two rates.

        d = sign(β₁μ + (1-β₁)g),   μ ← β₂μ + (1-β₂)g

    b1: β₁ in [0, 1), the share of the momentum in the sign.
    b2: β₂ in [0, 1), the decay rate of the momentum.
    """

    paper = Paper("Chen et al. 2023", "https://arxiv.org/abs/2302.06675", "algorithm 2")
    b1: Decay = 0.9
    b2: Decay = 0.99
    slots = {"mu": Slot()}
    takes_complex = False
    state_type_name = "ScaleByLionState"

    def update(self, grad, slots, param, ctx):
        direction = jnp.sign(ema(grad, slots["mu"], self.b1)) + 0 * grad  # A NaN stays visible.
        return direction, {"mu": ctx.store("mu", ema(grad, slots["mu"], self.b2))}


@optimizer(Lion)
def lion(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.99,
    mu_dtype: Any = None,
    weight_decay: Any = 1e-3,
    mask: Any = None,
    *,
    storage: Any = None,
) -> Transformation:
    """Lion: with a third to a tenth of Adam's learning rate, and as much more weight decay."""
    ...


@preconditioner(Lion)
def scale_by_lion(
    b1: Any = 0.9, b2: Any = 0.99, mu_dtype: Any = None, *, storage: Any = None
) -> Transformation:
    """Lion's direction for a chain. See `lion`."""
    ...
