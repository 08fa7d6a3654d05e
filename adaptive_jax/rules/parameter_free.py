"""Adam without a learning rate: it is made of an estimate of the distance to the solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core.hyper import Decay, Limit, NonNegative, Positive, none_if_zero
from .._core.mask import Mask
from .._core.rule import Rule, Slot
from .._core.transform import build
from .._core.transformation import Transformation
from ..maths import (
    bias_correction,
    bounded,
    decayed_sum,
    denominator,
    ema,
    inner,
    least_denominator,
    quotient,
    ratio,
    scaled,
    second_moment,
)
from ._factory import Paper, composed


@dataclass(frozen=True)
class Prodigy(Rule):
    """Adam that finds its step size: an estimate d of the distance to the solution, in the largest element.

        γ = dη,   r ← β₃r + (d/d₀)γ⟨g, θ₀-θ⟩,   s ← β₃s + (d/d₀)γg
        μ ← β₁μ + (1-β₁)dg,   ν ← β₂ν + (1-β₂)d²g²
        d_max ← max(d_max, d_coef·r/‖s‖₁),   d ← min(d_max, growth_rate·d)
        θ ← θ - γ(μ/(√ν + dε) + λθ)

    r and ‖s‖₁ are of all arrays; γ has the d from before.

    learning_rate: η >= 0, a factor of what is found: leave it at 1, or give a schedule that ends at 0.
    b1: β₁ in [0, 1), the decay rate of the first moment.
    b2: β₂ in [0, 1), the decay rate of the second moment.
    beta3: β₃ in [0, 1), the decay rate of r and s; None for √β₂.
    eps: ε >= 0, against division by zero.
    d0: d₀ > 0, the first d, less than the distance.
    d_coef: >= 0, a factor of the estimate. To tune the method, tune this: 0.5 and 2 work as well.
    weight_decay: the decoupled weight decay λ >= 0; None or 0 for none.
    mask: which arrays decay: a tree of bools, a prefix of one, or a function of the parameters.
    safeguard_warmup: True for s ← β₃s + (d/d₀)dg: so that a warm-up does not let d grow too far.
    bias_correction: True for γ = dη·√(1-β₂ᵗ)/(1-β₁ᵗ).
    growth_rate: the most by which d grows in a step, after the first growth; None for no limit.
    """

    paper = Paper("Mishchenko & Defazio 2024", "https://arxiv.org/abs/2306.06101", "algorithm 4")
    takes_any_rate = True

    learning_rate: NonNegative = 1.0
    b1: Decay = 0.9
    b2: Decay = 0.999
    beta3: Decay = None
    eps: NonNegative = 1e-8
    d0: Positive = 1e-6
    d_coef: NonNegative = 1.0
    weight_decay: NonNegative = None
    mask: Mask = None
    safeguard_warmup: bool = False
    bias_correction: bool = False
    growth_rate: Limit = None
    slots = {
        "mu": Slot(),
        "nu": Slot(nonnegative=True),
        "s": Slot(),
        "start": Slot("param", constant=True),
    }
    scalars = {"d": "d0", "d_max": "d0", "r": 0.0}
    per_array = ("eps", "weight_decay")
    needs_params = True
    takes_complex = False
    owns_rate = True

    @property
    def decay(self):
        """β₃."""
        return jnp.sqrt(self.b2.value) if self.beta3 is None else self.beta3.value

    def rate(self, d, ctx):
        """γ."""
        return corrected(self, d * self.learning_rate, ctx)

    def sum_of_gradients(self, grad, s, d, ctx):
        """s."""
        rate = d if self.safeguard_warmup else self.rate(d, ctx)
        return decayed_sum(scaled(grad, d / self.d0 * rate), s, self.decay)

    def measure(self, grad, slots, param, ctx):
        s = self.sum_of_gradients(grad, slots["s"], ctx.scalars["d"], ctx)
        return {"r": inner(grad, slots["start"] - param), "s": size(s)}

    def advance(self, scalars, measured, ctx):
        old = scalars["d"]
        rate = self.rate(old, ctx)
        r = self.decay * scalars["r"] + old / self.d0 * rate * measured["r"].sum()
        found = self.d_coef * ratio(r, measured["s"].sum())
        d = d_max = jnp.maximum(scalars["d_max"], found)
        if self.growth_rate is not None:
            before = jnp.where(old == self.d0, jnp.maximum(old, found), old)
            d = jnp.minimum(d_max, before * self.growth_rate)
        return {"d": d, "d_max": d_max, "r": r, "rate": rate, "old": old}

    def update(self, grad, slots, param, ctx):
        d, old, rate = ctx.scalars["d"], ctx.scalars["old"], ctx.scalars["rate"]
        grown = scaled(
            grad, old
        )  # Bounded below: used twice, that would become an array of its own.
        mu = ctx.store("mu", ema(bounded(grown), slots["mu"], self.b1))
        nu = ctx.store("nu", second_moment(grown, slots["nu"], self.b2))
        s = ctx.store("s", self.sum_of_gradients(grad, slots["s"], old, ctx))
        direction = decays(self, quotient(mu, denominator(nu, d * self.eps)), param, ctx)
        return scaled(direction, -rate), {"mu": mu, "nu": nu, "s": s}


@dataclass(frozen=True)
class DAdaptAdamW(Rule):
    """Adam that finds its step size by D-Adaptation: an estimate d of the distance to the solution.

        γ = dη,   r ← √β₂·r + (1-√β₂)γ⟨g, s/(√ν + ε)⟩
        μ ← β₁μ + (1-β₁)γg,   ν ← β₂ν + (1-β₂)g²,   s ← √β₂·s + (1-√β₂)γg
        d ← max(d, min(r/((1-√β₂)‖s‖₁), growth_rate·d))
        θ ← θ - μ/(√ν + ε) - γλθ

    r is of s and ν from before, ‖s‖₁ of the new s, both of all arrays; γ has the d from before.

    learning_rate: η >= 0, a factor of what is found: leave it at 1, or give a schedule that ends at 0.
    b1: β₁ in [0, 1), the decay rate of the first moment.
    b2: β₂ in [0, 1), the decay rate of the second moment.
    eps: ε >= 0, against division by zero.
    d0: d₀ > 0, the first d, less than the distance.
    weight_decay: the decoupled weight decay λ >= 0; None or 0 for none.
    mask: which arrays decay: a tree of bools, a prefix of one, or a function of the parameters.
    bias_correction: True for γ = dη·√(1-β₂ᵗ)/(1-β₁ᵗ).
    growth_rate: the most by which d grows in a step; None for no limit.
    """

    paper = Paper("Defazio & Mishchenko 2023", "https://arxiv.org/abs/2301.07733", "algorithm 5")
    takes_any_rate = True

    learning_rate: NonNegative = 1.0
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    d0: Positive = 1e-6
    weight_decay: NonNegative = None
    mask: Mask = None
    bias_correction: bool = False
    growth_rate: Limit = None
    slots = {"mu": Slot(), "nu": Slot(nonnegative=True), "s": Slot()}
    scalars = {"d": "d0", "r": 0.0}
    per_array = ("eps", "weight_decay")
    takes_complex = False
    owns_rate = True

    @property
    def needs_params(self):
        return self.weight_decay is not None

    @property
    def decay(self):
        """√β₂, and 1 - √β₂ = (1-β₂)/(1+√β₂)."""
        root = jnp.sqrt(self.b2.value)
        return self.b2._replace(value=root, complement=self.b2.complement / (1 + root))

    def rate(self, d, ctx):
        """γ."""
        return corrected(self, d * self.learning_rate, ctx)

    def measure(self, grad, slots, param, ctx):
        # A little more than `update` adds: of a number that both add everywhere, XLA:CPU makes an array.
        limits = jnp.finfo(grad.dtype)
        eps, least = self.eps * (1 + 4 * limits.eps), 2 * least_denominator(limits.dtype) ** 2
        steps = quotient(slots["s"], denominator(slots["nu"], eps, least))
        s = ema(scaled(grad, self.rate(ctx.scalars["d"], ctx)), slots["s"], self.decay)
        return {"r": inner(grad, steps), "s": size(s)}

    def advance(self, scalars, measured, ctx):
        old, rate = scalars["d"], self.rate(scalars["d"], ctx)
        r = ema(rate * measured["r"].sum(), scalars["r"], self.decay)
        found = ratio(r, self.decay.complement * measured["s"].sum())
        if self.growth_rate is not None:
            found = jnp.minimum(found, old * self.growth_rate)
        return {"d": jnp.maximum(old, found), "r": r, "rate": rate}

    def update(self, grad, slots, param, ctx):
        rate = ctx.scalars["rate"]
        step = scaled(
            grad, rate
        )  # Bounded below: used twice, that would become an array of its own.
        mu = ctx.store("mu", ema(bounded(step), slots["mu"], self.b1))
        nu = ctx.store("nu", second_moment(grad, slots["nu"], self.b2))
        s = ctx.store("s", ema(step, slots["s"], self.decay))
        direction = quotient(mu, denominator(nu, self.eps))
        return -decays(self, direction, param, ctx, rate), {"mu": mu, "nu": nu, "s": s}


def size(x):
    """‖x‖₁; 0, of which nothing is made, where it is not finite."""
    total = jnp.sum(jnp.abs(x))
    return jnp.where(jnp.isfinite(total), total, 0)


def corrected(rule, rate, ctx):
    """A rate with Adam's two bias corrections, where the rule has them."""
    if not rule.bias_correction:
        return rate
    return rate * jnp.sqrt(bias_correction(rule.b2, ctx.step)) / bias_correction(rule.b1, ctx.step)


def decays(rule, direction, param, ctx, rate=1.0):
    """direction + rate·λθ, where the rule has a weight decay."""
    if rule.weight_decay is None or not ctx.selected:
        return direction
    return direction + rate * rule.weight_decay * param


@composed(Prodigy, weight_decay=0.0)
def prodigy(
    learning_rate: Any = 1.0,
    betas: Any = (0.9, 0.999),
    beta3: Any = None,
    eps: Any = 1e-8,
    estim_lr0: Any = 1e-6,
    estim_lr_coef: Any = 1.0,
    weight_decay: Any = 0.0,
    safeguard_warmup: bool = False,
    *,
    bias_correction: bool = False,
    growth_rate: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """AdamW without a learning rate: the one that people fine-tune with.

    Other than `optax.contrib.prodigy`, and as the authors' own: no bias is corrected by default, and d can
    be kept from growing too fast; d and r are in float32 at least, so that bfloat16 parameters learn.

    betas: (β₁, β₂), the decay rates of the two moments, in [0, 1).
    estim_lr0: d₀ > 0, the first d, less than the distance to the solution.
    estim_lr_coef: d_coef >= 0, a factor of the estimate. To tune the method, tune this.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.prodigy()
      prodigy(learning_rate=1.0, betas=(0.9, 0.999), eps=1e-08, estim_lr0=1e-06, estim_lr_coef=1.0)
    """
    b1, b2 = betas
    rule = Prodigy(
        learning_rate=learning_rate,
        b1=b1,
        b2=b2,
        beta3=beta3,
        eps=eps,
        d0=estim_lr0,
        d_coef=estim_lr_coef,
        weight_decay=none_if_zero(weight_decay),
        mask=mask,
        safeguard_warmup=safeguard_warmup,
        bias_correction=bias_correction,
        growth_rate=growth_rate,
    )
    return build(prodigy, rule, storage=storage)


@composed(DAdaptAdamW, weight_decay=0.0)
def dadapt_adamw(
    learning_rate: Any = 1.0,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    estim_lr0: Any = 1e-6,
    weight_decay: Any = 0.0,
    *,
    bias_correction: bool = False,
    growth_rate: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """AdamW without a learning rate, by D-Adaptation. `aj.prodigy` is its successor.

    Other than `optax.contrib.dadapt_adamw`, and as the authors' own: no bias is corrected by default, and d
    can be kept from growing too fast; d and r are in float32 at least. The decay is decoupled, as the name
    says and as in optax; the authors' is an L2 penalty by default: `aj.add_decayed_weights` before it.

    betas: (β₁, β₂), the decay rates of the two moments, in [0, 1).
    estim_lr0: d₀ > 0, the first d, less than the distance to the solution.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.dadapt_adamw()
      dadapt_adamw(learning_rate=1.0, betas=(0.9, 0.999), eps=1e-08, estim_lr0=1e-06)
    """
    b1, b2 = betas
    rule = DAdaptAdamW(
        learning_rate=learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        d0=estim_lr0,
        weight_decay=none_if_zero(weight_decay),
        mask=mask,
        bias_correction=bias_correction,
        growth_rate=growth_rate,
    )
    return build(dadapt_adamw, rule, storage=storage)


_RENAMED = {"betas": ("b1", "b2"), "estim_lr0": "d0", "estim_lr_coef": "d_coef"}
prodigy.fields = dadapt_adamw.fields = _RENAMED  # type: ignore[attr-defined]
