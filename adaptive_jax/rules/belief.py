"""Adam with another second moment: of what surprises, or one that moves by steps of a gradient's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core.hyper import Decay, NonNegative
from .._core.rule import Rule, Slot
from .._core.transformation import Transformation
from ..maths import (
    abs_squared,
    bias_correction,
    bounded,
    clamped,
    complement,
    denominator,
    ema,
    mean_of_squares,
    quotient,
    scaled,
)
from ._descent import optimizer
from ._factory import Paper, preconditioner
from .adam import corrected_mean, rectified


@dataclass(frozen=True)
class AdaBelief(Rule):
    """Adam whose second moment is of the difference between a gradient and its average.

        μ ← β₁μ + (1-β₁)g,   ν ← β₂ν + (1-β₂)(g-μ)² + ε_root,   d = μ̂/(√ν̂ + ε)

    Steps are long where gradients are as they were expected. Of constant ones, ν falls until it is
    ε_root/(1-β₂), and the step grows with it: to 3,000,000 η|g| with the paper's ε.

    b1: the decay rate β₁ of the first moment, in [0, 1).
    b2: the decay rate β₂ of the second moment, in [0, 1).
    eps: ε >= 0, against division by zero.
    eps_root: ε_root >= 0, which enters ν in every step. In the paper it is ε too.
    nesterov: True for μ̂ = β₁μ/(1-β₁ᵗ⁺¹) + (1-β₁)g/(1-β₁ᵗ): one step ahead, as in NAdam.
    rectify: True for r(t)·d once ρ(t) >= 5, μ̂ before: RAdam's, as the authors' package has it.
    """

    paper = Paper("Zhuang et al. 2020", "https://arxiv.org/abs/2010.07468", "algorithm 2")

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-16
    eps_root: NonNegative = 1e-16
    nesterov: bool = False
    rectify: bool = False
    slots = {"mu": Slot(), "nu": Slot(nonnegative=True)}
    state_type_name = "ScaleByBeliefState"

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(bounded(grad), slots["mu"], self.b1))
        surprise, more = bounded(grad) - mu, quotient(self.eps_root, complement(self.b2))
        nu = ctx.store("nu", mean_of_squares(surprise, slots["nu"], self.b2, more))
        mean, correction_1 = corrected_mean(grad, mu, self.b1, ctx.step, self.nesterov)
        root = denominator(quotient(nu, bias_correction(self.b2, ctx.step)), self.eps)
        direction = quotient(mean, scaled(root, correction_1))
        if self.rectify:
            plain = quotient(mean, correction_1)
            direction = rectified(direction, plain, self.b2, ctx.step, threshold=5)
        return direction, {"mu": mu, "nu": nu}


@dataclass(frozen=True)
class Yogi(Rule):
    """Adam whose second moment grows as fast as Adam's, and falls by no more than the gradient's square.

        μ ← β₁μ + (1-β₁)g,   ν ← ν - (1-β₂)sign(ν-g²)g²,   d = μ/(√(ν + ε_root) + ε)

    So the learning rate cannot rise faster than small gradients let it.

    b1: the decay rate β₁ of the first moment, in [0, 1).
    b2: 1 - β₂ is the share of g² by which ν moves, β₂ in [0, 1).
    eps: ε >= 0, against division by zero.
    eps_root: ε_root >= 0, added inside the root; > 0 to differentiate through the update.
    initial_accumulator_value: ν at first, >= 0.
    bias_correction: True for μ̂ = μ/(1-β₁ᵗ) and ν̂ = ν/(1-β₂ᵗ): optax's, of a ν that does not start at 0.
    """

    paper = Paper(
        "Zaheer et al. 2018",
        "https://papers.nips.cc/paper/2018/hash/90365351ccc7437a1309dc64e4db32a3-Abstract.html",
        "algorithm 2",
    )

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-3
    eps_root: NonNegative = 0.0
    initial_accumulator_value: NonNegative = 1e-6
    bias_correction: bool = False
    slots = {"mu": Slot(), "nu": Slot("initial_accumulator_value", nonnegative=True)}
    state_type_name = "ScaleByAdamState"

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(bounded(grad), slots["mu"], self.b1))
        square = abs_squared(clamped(grad))
        change = scaled(square * jnp.sign(slots["nu"] - square), complement(self.b2))
        nu = ctx.store("nu", slots["nu"] - change)
        if not self.bias_correction:
            return quotient(mu, denominator(nu, self.eps, self.eps_root)), {"mu": mu, "nu": nu}
        root = denominator(
            quotient(nu, bias_correction(self.b2, ctx.step)), self.eps, self.eps_root
        )
        mean = quotient(mu, scaled(root, bias_correction(self.b1, ctx.step)))
        return mean, {"mu": mu, "nu": nu}


@optimizer(AdaBelief)
def adabelief(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-16,
    eps_root: Any = 1e-16,
    *,
    nesterov: bool = False,
    rectify: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """AdaBelief: Adam that divides by how far gradients are from their average."""
    ...


@preconditioner(AdaBelief)
def scale_by_belief(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-16,
    eps_root: Any = 1e-16,
    *,
    nesterov: bool = False,
    rectify: bool = False,
    storage: Any = None,
) -> Transformation:
    """AdaBelief's direction for a chain. See `adabelief`."""
    ...


@optimizer(Yogi)
def yogi(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-3,
    *,
    eps_root: Any = 0.0,
    initial_accumulator_value: Any = 1e-6,
    bias_correction: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Yogi: Adam whose second moment falls slowly.

    As in the paper, no bias is corrected, and μ starts at 0; in optax it starts at 1e-6, so that
    parameters move without gradients.
    """
    ...


@preconditioner(Yogi)
def scale_by_yogi(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-3,
    eps_root: Any = 0.0,
    initial_accumulator_value: Any = 1e-6,
    *,
    bias_correction: bool = False,
    storage: Any = None,
) -> Transformation:
    """Yogi's direction for a chain. See `yogi`."""
    ...
