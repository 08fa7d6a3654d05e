"""Adam and its family."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from .._check import one_of
from .._rule import Decay, NonNegative, Rule, Slot
from ..maths import (
    bias_correction,
    decayed,
    ema,
    least_denominator,
    saturated,
    second_moment,
    square_root,
)


@dataclass(frozen=True)
class Adam(Rule):
    """μ ← β₁μ + (1-β₁)g; ν ← β₂ν + (1-β₂)g²; d = μ̂/(√(ν̂ + ε_root) + ε).

    Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1: μ̂ = μ/(1-β₁ᵗ), ν̂ = ν/(1-β₂ᵗ).

    bias_correction: False for μ̂ = μ and ν̂ = ν.
    eps_hat: True for the paper's other form, where ε̂ is added before the correction:
      d = √(1-β₂ᵗ)/(1-β₁ᵗ)·μ/(√(ν + ε_root) + ε̂).
    nesterov: True for NAdam, Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ:
      μ̂ = β₁μ/(1-β₁ᵗ⁺¹) + (1-β₁)g/(1-β₁ᵗ).
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 0.0
    nesterov: bool = False
    bias_correction: bool = True
    eps_hat: bool = False
    slots = {"mu": Slot(), "nu": Slot(nonnegative=True)}
    state_type_name = "ScaleByAdamState"

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(grad, slots["mu"], self.b1))
        nu = ctx.store("nu", second_moment(grad, slots["nu"], self.b2))
        correction_1 = bias_correction(self.b1, ctx.step) if self.bias_correction else 1
        correction_2 = bias_correction(self.b2, ctx.step) if self.bias_correction else 1
        numerator = mu
        if self.nesterov:
            ahead = bias_correction(self.b1, ctx.step, ahead=True) if self.bias_correction else 1
            numerator = ema(grad, mu * (correction_1 / ahead), self.b1)
        return ratio(self, numerator, correction_1, nu, correction_2), {"mu": mu, "nu": nu}


def ratio(rule, mu, correction_1, nu, correction_2):
    """μ̂/(√(ν̂ + ε_root) + ε), where μ̂ and ν̂ are μ and ν over their corrections.

    With ε̂: √correction_2·μ̂/(√(ν + ε_root) + ε̂). μ is divided last, so that μ̂ cannot overflow.
    """
    if rule.eps_hat:
        root = square_root(nu, rule.eps_root) + rule.eps
        return mu * jnp.sqrt(correction_2) / (correction_1 * root)
    root = square_root(nu / correction_2, rule.eps_root) + rule.eps
    return mu / (correction_1 * root)


@dataclass(frozen=True)
class AMSGrad(Rule):
    """Adam whose second moment never falls: ν̂_max ← max(ν̂_max, ν̂); d = μ̂/(√(ν̂_max + ε_root) + ε).

    Reddi, Kale & Kumar 2018, https://arxiv.org/abs/1904.09237, who correct no bias.

    maximum_of: "corrected" for the maximum of ν̂; "raw" for that of ν, corrected afterwards by today's
      1-β₂ᵗ, as PyTorch and Keras do. Only the second can be combined with eps_hat.
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 0.0
    bias_correction_mu: bool = True
    bias_correction_nu: bool = True
    maximum_of: str = "corrected"
    eps_hat: bool = False
    slots = {"mu": Slot(), "nu": Slot(nonnegative=True), "nu_max": Slot(nonnegative=True)}
    state_type_name = "ScaleByAmsgradState"

    def __post_init__(self):
        super().__post_init__()
        one_of("maximum_of", self.maximum_of, ("corrected", "raw"))
        if self.eps_hat and self.maximum_of != "raw":
            raise ValueError(
                'eps_hat=True needs maximum_of="raw": ε̂ is added before the correction.'
            )

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(grad, slots["mu"], self.b1))
        nu = ctx.store("nu", second_moment(grad, slots["nu"], self.b2))
        correction_1 = bias_correction(self.b1, ctx.step) if self.bias_correction_mu else 1
        correction_2 = bias_correction(self.b2, ctx.step) if self.bias_correction_nu else 1
        if self.maximum_of == "corrected":
            nu_max = ctx.store("nu_max", jnp.maximum(slots["nu_max"], saturated(nu / correction_2)))
            correction_2 = 1
        else:
            nu_max = ctx.store("nu_max", jnp.maximum(slots["nu_max"], nu))
        direction = ratio(self, mu, correction_1, nu_max, correction_2)
        return direction, {"mu": mu, "nu": nu, "nu_max": nu_max}


@dataclass(frozen=True)
class AdaMax(Rule):
    """μ ← β₁μ + (1-β₁)g; ν ← max(β₂ν, |g| + ε); d = μ/((1-β₁ᵗ)·ν).

    Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 2, which has no ε.
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    slots = {"mu": Slot(), "nu": Slot(nonnegative=True)}
    state_type_name = "ScaleByAdamState"

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(grad, slots["mu"], self.b1))
        nu = ctx.store("nu", jnp.maximum(decayed(slots["nu"], self.b2), jnp.abs(grad) + self.eps))
        denominator = bias_correction(self.b1, ctx.step) * nu
        direction = mu / jnp.maximum(denominator, least_denominator(nu.dtype))
        return direction, {"mu": mu, "nu": nu}
