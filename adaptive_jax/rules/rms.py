"""Steps relative to the root mean square of recent gradients: RMSprop and AdaDelta."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from .._core.hyper import Decay, NonNegative
from .._core.rule import Rule, Slot
from ..maths import (
    abs_squared,
    bias_correction,
    bounded,
    clamped,
    denominator,
    ema,
    quotient,
    second_moment,
    square_root,
)


@dataclass(frozen=True)
class Rms(Rule):
    """ν ← ρν + (1-ρ)g²; d = g/√(ν + ε), or g/(√ν + ε).

    Tieleman & Hinton 2012, https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf.
    With bias correction, ν̂ = ν/(1-ρᵗ) takes the place of ν.
    """

    decay: Decay = 0.9
    eps: NonNegative = 1e-8
    initial_scale: NonNegative = 0.0
    eps_in_sqrt: bool = True
    bias_correction: bool = False
    slots = {"nu": Slot(initial="initial_scale", nonnegative=True)}

    @property
    def rho(self):
        return self.decay

    @property
    def counts_steps(self):
        return self.bias_correction

    @property
    def state_type_name(self):
        return "ScaleByRmsWithCountState" if self.bias_correction else "ScaleByRmsState"

    def update(self, grad, slots, param, ctx):
        nu = ctx.store("nu", second_moment(grad, slots["nu"], self.decay))
        nu_hat = nu / bias_correction(self.decay, ctx.step) if self.bias_correction else nu
        return quotient(bounded(grad), self.root(nu_hat)), {"nu": nu}

    def root(self, nu):
        return square_root(nu, self.eps) if self.eps_in_sqrt else denominator(nu, self.eps)


@dataclass(frozen=True)
class StdDev(Rms):
    """μ ← ρμ + (1-ρ)g; ν ← ρν + (1-ρ)g²; d = g/√(ν - μ² + ε), or g/(√(ν - μ²) + ε).

    Centered RMSprop: Graves 2013, https://arxiv.org/abs/1308.0850. Where gradients hardly change,
    ν - μ² is the rounding error of a difference, and may be negative: it counts as that error at
    least, ν times the machine epsilon.
    """

    slots = {"mu": Slot(), **Rms.slots}

    @property
    def state_type_name(self):
        return "ScaleByRStdDevWithCountState" if self.bias_correction else "ScaleByRStdDevState"

    def update(self, grad, slots, param, ctx):
        # Bounded once, below: used twice, it would become an array of its own.
        mu = ctx.store("mu", ema(clamped(grad), slots["mu"], self.decay))
        nu = ctx.store("nu", second_moment(grad, slots["nu"], self.decay))
        correction = bias_correction(self.decay, ctx.step) if self.bias_correction else 1
        mean_square = nu / correction
        variance = mean_square - abs_squared(mu / correction)
        variance = jnp.maximum(variance, mean_square * jnp.finfo(nu.dtype).eps)
        return quotient(bounded(grad), self.root(variance)), {"mu": mu, "nu": nu}


@dataclass(frozen=True)
class AdaDelta(Rule):
    """E[g²] ← ρE[g²] + (1-ρ)g²; d = g·√(E[d²] + ε)/√(E[g²] + ε); E[d²] ← ρE[d²] + (1-ρ)d².

    Zeiler 2012, https://arxiv.org/abs/1212.5701.
    """

    rho: Decay = 0.9
    eps: NonNegative = 1e-6
    slots = {"e_g": Slot(nonnegative=True), "e_x": Slot(nonnegative=True)}
    counts_steps = False
    state_type_name = "ScaleByAdaDeltaState"

    def update(self, grad, slots, param, ctx):
        e_g = ctx.store("e_g", second_moment(grad, slots["e_g"], self.rho))
        direction = bounded(grad) * (
            square_root(slots["e_x"], self.eps) / square_root(e_g, self.eps)
        )
        e_x = ctx.store("e_x", second_moment(direction, slots["e_x"], self.rho))
        return direction, {"e_g": e_g, "e_x": e_x}
