"""Adam and its family: a first moment over the root of a second one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .. import _moved, maths
from .._core.hyper import Decay, NonNegative
from .._core.rule import Rule, Slot
from .._core.storage import named
from .._core.transformation import Transformation
from ..maths import (
    bias_correction,
    bounded,
    complement,
    denominator,
    ema,
    least_denominator,
    quotient,
    scaled,
    second_moment,
)
from ._descent import descend, optimizer
from ._factory import Paper, composed, preconditioner
from .scaling import DECOUPLED

__getattr__ = _moved.moved_from(__name__)


@dataclass(frozen=True)
class Adam(Rule):
    """A moving average of gradients over the root of one of their squares.

        μ ← β₁μ + (1-β₁)g,   ν ← β₂ν + (1-β₂)g²,   μ̂ = μ/(1-β₁ᵗ),   ν̂ = ν/(1-β₂ᵗ)
        d = μ̂/(√(ν̂ + ε_root) + ε)

    b1: the decay rate β₁ of the first moment, in [0, 1).
    b2: the decay rate β₂ of the second moment, in [0, 1).
    eps: ε >= 0, against division by zero.
    eps_root: ε_root >= 0, added inside the root; > 0 to differentiate through the update.
    nesterov: True for μ̂ = β₁μ/(1-β₁ᵗ⁺¹) + (1-β₁)g/(1-β₁ᵗ): one step ahead, as in NAdam.
    bias_correction: False for μ̂ = μ and ν̂ = ν: RMSprop with an average of gradients.
    eps_hat: True for d = √(1-β₂ᵗ)/(1-β₁ᵗ)·μ/(√(ν + ε_root) + ε̂): the paper's other form, where ε̂ is
      added before the correction.
    """

    paper = Paper("Kingma & Ba 2015", "https://arxiv.org/abs/1412.6980", "algorithm 1")

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
        if self.bias_correction:
            return corrected_mean(grad, mu, self.b1, ctx.step, self.nesterov)
        return (ema(bounded(grad), mu, self.b1) if self.nesterov else mu), 1


def corrected_mean(grad, mu, decay, step, nesterov):
    """μ̂ of an average that starts at 0, one step ahead for Nesterov's, as what to divide and by what."""
    correction = bias_correction(decay, step)
    if not nesterov:
        return mu, correction
    ahead = bias_correction(decay, step, ahead=True)
    return ema(bounded(grad), mu * (correction / ahead), decay), correction


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
    """Adam with Nesterov's momentum and a decay rate of its own for it.

        β₁(t) = β₁(1 - ½·0.96^(ψt)),   Π(t) = β₁(1)···β₁(t)
        d = ((1-β₁(t))/(1-Π(t))·g + β₁(t+1)/(1-Π(t+1))·μ)/(√(ν̂ + ε_root) + ε)

    The averages μ and ν are Adam's, with constant rates. The paper has ψ = 1/250.

    b1: the decay rate β₁ of the first moment, in [0, 1).
    b2: the decay rate β₂ of the second moment, in [0, 1).
    eps: ε >= 0, against division by zero.
    eps_root: ε_root >= 0, added inside the root; > 0 to differentiate through the update.
    momentum_decay: ψ >= 0, for the decay rate β₁(t) = β₁(1 - ½·0.96^(ψt)) of the momentum.
    eps_hat: True for d = √(1-β₂ᵗ)·μ̂/(√(ν + ε_root) + ε̂): Adam's other form.
    """

    paper = Paper(
        "Dozat 2016", "https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ", "algorithm 2"
    )

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 0.0
    momentum_decay: NonNegative = 1 / 250
    eps_hat: bool = False
    scalars = {"mu_product": 1.0}
    per_array = ("b2", "eps", "eps_root")
    slots = {"mu": Slot(), "nu": Slot(nonnegative=True)}

    def momentum(self, step):
        """β₁(t)."""
        step = step.astype(self.momentum_decay.dtype)
        return self.b1.value * (1 - 0.5 * 0.96 ** (step * self.momentum_decay))

    def advance(self, scalars, measured, ctx):
        return {"mu_product": scalars["mu_product"] * self.momentum(ctx.step)}

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

        ρ(∞) = 2/(1-β₂) - 1,   ρ(t) = ρ(∞) - 2tβ₂ᵗ/(1-β₂ᵗ)
        r(t)² = (ρ(t)-4)(ρ(t)-2)ρ(∞)/((ρ(∞)-4)(ρ(∞)-2)ρ(t))
        d = r(t)·μ̂/(√(ν̂ + ε_root) + ε) once ρ(t) >= threshold,   d = μ̂ before

    ρ(t) counts the steps that the average of squares is worth, and r(t) → 1 makes up for its variance.

    threshold: the length ρ(t) of the average from which on the step is rectified, 4 in the paper.
    """

    paper = Paper("Liu et al. 2020", "https://arxiv.org/abs/1908.03265", "algorithm 2")

    threshold: NonNegative = 5.0

    def update(self, grad, slots, param, ctx):
        adaptive, new = super().update(grad, slots, param, ctx)
        mu, correction_1 = self.first_moment(grad, new["mu"], ctx)
        return rectified(adaptive, mu / correction_1, self.b2, ctx.step, self.threshold), new


def rectified(adaptive, plain, decay, step, threshold):
    """r(t) times the adaptive direction once ρ(t) >= the threshold, and the plain one before."""
    length, limit = average_length(decay, step), 2 / complement(decay) - 1
    r_squared = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
    rectifier = jnp.sqrt(jnp.maximum(r_squared, least_denominator(length.dtype)))
    return jnp.where(length >= threshold, rectifier * adaptive, plain)


def average_length(decay, step):
    """ρ(t) = 2/(1-β) - 1 - 2tβᵗ/(1-βᵗ): how many steps a moving average is worth after t of them.

    With L = -log β and g(z) = 1 - z/(eᶻ-1) it is 1 + 2(g(tL) - g(L))/L, of which no part cancels: of
    the numbers near 2000 in the definition, float32 would leave four digits.
    """

    def g(z):
        terms = 1 / 12 - z**2 * (1 / 720 - z**2 * (1 / 30240 - z**2 / 1209600))
        far = jnp.maximum(z, 0.25)
        return jnp.where(z < 0.25, z / 2 - z**2 * terms, 1 - far / jnp.expm1(far))

    rate = -maths.log(decay)
    return 1 + 2 * (g(step.astype(rate.dtype) * rate) - g(rate)) / rate


@optimizer(Adam)
def adam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    bias_correction: bool = True,
    eps_hat: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Adam: a moving average of gradients over the root of one of their squares.

    With bias_correction=False it is RMSprop with an average of gradients, μ/(√ν + ε).

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp, optax
      >>> tx = aj.adam(1e-3)
      >>> tx
      adam(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0)
      >>> params = {"w": jnp.array([1.0, -2.0])}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)  # the gradients of ‖w‖²/2
      >>> print(optax.apply_updates(params, updates)["w"])
      [ 0.999 -1.999]
    """
    ...


@optimizer(Adam, paper=DECOUPLED)
def adamw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    weight_decay: Any = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
    bias_correction: bool = True,
    eps_hat: bool = False,
    storage: Any = None,
) -> Transformation:
    """AdamW: Adam with decoupled weight decay, θ ← θ - η(μ̂/(√ν̂ + ε) + λθ).

    Example:
      >>> import adaptive_jax as aj
      >>> aj.adamw(1e-3, weight_decay=0.01)
      adamw(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0, weight_decay=0.01)
    """
    ...


@composed(
    Adam,
    variants={"momentum_decay=ψ": NAdam},
    paper=NAdam.paper,
    nesterov=True,
    momentum_decay=None,
)
def nadam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    bias_correction: bool = True,
    eps_hat: bool = False,
    momentum_decay: Any = None,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """NAdam: Adam with Nesterov's momentum, μ̂ = β₁μ/(1-β₁ᵗ⁺¹) + (1-β₁)g/(1-β₁ᵗ).

    As in optax, ν̂ has no further factor β₂, and β₁ no schedule of its own unless momentum_decay is
    given, which is 1/250 in the paper and here None for a constant β₁.
    """
    if momentum_decay is None:
        rule = Adam(b1, b2, eps, eps_root, nesterov, bias_correction, eps_hat)
    elif nesterov and bias_correction:
        rule = NAdam(b1, b2, eps, eps_root, momentum_decay, eps_hat)
    else:
        raise ValueError(
            f"momentum_decay={momentum_decay!r} needs nesterov=True and bias_correction=True."
        )
    storage = named.with_dtype(storage, "mu", mu_dtype)
    return descend(nadam, rule, learning_rate, weight_decay, mask, storage)


@optimizer(Adam, paper=(NAdam.paper, DECOUPLED), nesterov=True)
def nadamw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    weight_decay: Any = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = True,
    bias_correction: bool = True,
    eps_hat: bool = False,
    storage: Any = None,
) -> Transformation:
    """NAdamW: NAdam with decoupled weight decay."""
    ...


@optimizer(RAdam)
def radam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    threshold: Any = 5.0,
    *,
    nesterov: bool = False,
    eps_hat: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """RAdam: Adam that starts as momentum, until its second moment has seen enough steps.

    ρ(t) counts the steps that the average of squares is worth, and r(t) → 1 makes up for its variance.
    """
    ...


@preconditioner(Adam)
def scale_by_adam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    bias_correction: bool = True,
    eps_hat: bool = False,
    storage: Any = None,
) -> Transformation:
    """Adam's direction for a chain, μ̂/(√(ν̂ + ε_root) + ε). See `adam`."""
    ...


@preconditioner(RAdam)
def scale_by_radam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    threshold: Any = 5.0,
    *,
    nesterov: bool = False,
    eps_hat: bool = False,
    storage: Any = None,
) -> Transformation:
    """RAdam's direction for a chain. See `radam`."""
    ...
