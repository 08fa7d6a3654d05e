"""Adam and its family."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from .._core.arguments import one_of
from .._core.hyper import Decay, NonNegative
from .._core.rule import Rule, Slot
from ..maths import (
    bias_correction,
    bounded,
    complement,
    decayed,
    denominator,
    ema,
    least_denominator,
    quotient,
    saturated,
    scaled,
    second_moment,
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
        mu = ctx.store("mu", ema(bounded(grad), slots["mu"], self.b1))
        nu = ctx.store("nu", second_moment(grad, slots["nu"], self.b2))
        numerator, correction_1 = self.first_moment(grad, mu, ctx)
        correction_2 = bias_correction(self.b2, ctx.step) if self.bias_correction else 1
        return ratio(self, numerator, correction_1, nu, correction_2), {"mu": mu, "nu": nu}

    def first_moment(self, grad, mu, ctx):
        """μ̂, as what to divide and by what."""
        correction = bias_correction(self.b1, ctx.step) if self.bias_correction else 1
        if not self.nesterov:
            return mu, correction
        ahead = bias_correction(self.b1, ctx.step, ahead=True) if self.bias_correction else 1
        return ema(bounded(grad), mu * (correction / ahead), self.b1), correction


def ratio(rule, mu, correction_1, nu, correction_2):
    """μ̂/(√(ν̂ + ε_root) + ε), where μ̂ and ν̂ are μ and ν over their corrections.

    With ε̂: √correction_2·μ̂/(√(ν + ε_root) + ε̂). μ is divided last, so that μ̂ cannot overflow.
    """
    if rule.eps_hat:
        root = denominator(nu, rule.eps, rule.eps_root)
        return quotient(scaled(mu, jnp.sqrt(correction_2)), scaled(root, correction_1))
    root = denominator(quotient(nu, correction_2), rule.eps, rule.eps_root)
    return quotient(mu, scaled(root, correction_1))


@dataclass(frozen=True)
class NAdam(Rule):
    """Adam with Nesterov's momentum and a decay rate of its own for it, β₁(t) = β₁(1 - ½·0.96^(ψt)).

    d = ((1-β₁(t))/(1-Π(t))·g + β₁(t+1)/(1-Π(t+1))·μ)/(√ν̂ + ε), Π(t) = β₁(1)···β₁(t); the averages μ
    and ν are Adam's, with constant rates. Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ,
    algorithm 2 and section 3.1 with ψ = 1/250.
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 0.0
    momentum_decay: NonNegative = 1 / 250
    eps_hat: bool = False
    scalars = {"mu_product": 1.0}
    slots = {"mu": Slot(), "nu": Slot(nonnegative=True)}

    def momentum(self, step):
        """β₁(t)."""
        step = step.astype(self.momentum_decay.dtype)
        return self.b1.value * (1 - 0.5 * 0.96 ** (step * self.momentum_decay))

    def advance(self, scalars, step):
        return {"mu_product": scalars["mu_product"] * self.momentum(step)}

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(bounded(grad), slots["mu"], self.b1))
        nu = ctx.store("nu", second_moment(grad, slots["nu"], self.b2))
        product, ahead = ctx.scalars["mu_product"], self.momentum(ctx.step + 1)
        of_grad = (1 - self.momentum(ctx.step)) / (1 - product)
        of_mu = ahead / (1 - product * ahead)
        numerator = scaled(bounded(grad), of_grad) + scaled(mu, of_mu)
        correction_2 = bias_correction(self.b2, ctx.step)
        return ratio(self, numerator, 1, nu, correction_2), {"mu": mu, "nu": nu}


@dataclass(frozen=True)
class RAdam(Adam):
    """Adam whose step is rectified for the variance of 1/√ν̂, and plain μ̂ while that has none.

    ρ(∞) = 2/(1-β₂) - 1, ρ(t) = ρ(∞) - 2tβ₂ᵗ/(1-β₂ᵗ), r² = (ρ(t)-4)(ρ(t)-2)ρ(∞)/((ρ(∞)-4)(ρ(∞)-2)ρ(t))
    d = r·μ̂/(√(ν̂ + ε_root) + ε) once ρ(t) >= the threshold, μ̂ before.

    Liu et al. 2020, https://arxiv.org/abs/1908.03265, algorithm 2, with a threshold of 4.
    """

    threshold: NonNegative = 5.0

    def update(self, grad, slots, param, ctx):
        adaptive, new = super().update(grad, slots, param, ctx)
        mu, correction_1 = self.first_moment(grad, new["mu"], ctx)
        length = average_length(self.b2, ctx.step)
        limit = 2 / complement(self.b2) - 1
        r_squared = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
        rectifier = jnp.sqrt(jnp.maximum(r_squared, least_denominator(length.dtype)))
        return jnp.where(length >= self.threshold, rectifier * adaptive, mu / correction_1), new


def average_length(decay, step):
    """ρ(t) = 2/(1-β) - 1 - 2tβᵗ/(1-βᵗ): how many steps a moving average is worth after t of them.

    With L = -log β and g(z) = 1 - z/(eᶻ-1) it is 1 + 2(g(tL) - g(L))/L, of which no part cancels: of
    the numbers near 2000 in the definition, float32 would leave four digits.
    """

    def g(z):
        terms = 1 / 12 - z**2 * (1 / 720 - z**2 * (1 / 30240 - z**2 / 1209600))
        far = jnp.maximum(z, 0.25)
        return jnp.where(z < 0.25, z / 2 - z**2 * terms, 1 - far / jnp.expm1(far))

    rate = -jnp.log1p(-jnp.minimum(complement(decay), 1 - jnp.finfo(decay.value.dtype).epsneg))
    return 1 + 2 * (g(step.astype(rate.dtype) * rate) - g(rate)) / rate


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
        mu = ctx.store("mu", ema(bounded(grad), slots["mu"], self.b1))
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

    eps_in_max: False for ν ← max(β₂ν, |g|); d = μ/((1-β₁ᵗ)·(ν + ε)), as Keras has it.
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    eps_in_max: bool = True
    slots = {"mu": Slot(), "nu": Slot(nonnegative=True)}
    state_type_name = "ScaleByAdamState"

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(grad, slots["mu"], self.b1))
        size = jnp.abs(grad) + self.eps if self.eps_in_max else jnp.abs(grad)
        nu = ctx.store("nu", jnp.maximum(decayed(slots["nu"], self.b2), size))
        denominator = bias_correction(self.b1, ctx.step) * (
            nu if self.eps_in_max else nu + self.eps
        )
        direction = mu / jnp.maximum(denominator, least_denominator(nu.dtype))
        return direction, {"mu": mu, "nu": nu}
