"""Steps relative to the root mean square of recent gradients: RMSprop and AdaDelta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core.arguments import one_of
from .._core.hyper import Decay, NonNegative
from .._core.rule import Rule, Slot
from .._core.transformation import Transformation
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
from ._descent import VELOCITIES, descend, descend_with_velocity
from ._factory import Paper, composed, preconditioner
from .momentum import Trace
from .scaling import Identity


@dataclass(frozen=True)
class Rms(Rule):
    """The gradient over the root mean square of recent ones.

        ν ← ρν + (1-ρ)g²,   d = g/√(ν + ε)

    decay: the decay rate ρ of the moving average, in [0, 1).
    eps: ε >= 0, against division by zero.
    initial_scale: the first value of ν, >= 0.
    eps_in_sqrt: False for d = g/(√ν + ε).
    bias_correction: True for ν/(1-ρᵗ) in place of ν.
    """

    paper = Paper(
        "Tieleman & Hinton 2012",
        "https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
    )

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
    """The gradient over the standard deviation of recent ones: centered RMSprop.

        μ ← ρμ + (1-ρ)g,   ν ← ρν + (1-ρ)g²,   d = g/√(ν - μ² + ε)

    Where gradients hardly change, ν - μ² is the rounding error of a difference, and may be negative:
    it counts as that error at least, ν times the machine epsilon.

    eps_in_sqrt: False for d = g/(√(ν - μ²) + ε).
    bias_correction: True for μ/(1-ρᵗ) and ν/(1-ρᵗ) in place of μ and ν.
    """

    paper = Paper("Graves 2013", "https://arxiv.org/abs/1308.0850")

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
    """The gradient in the units of the parameters, which recent steps have.

        E[g²] ← ρE[g²] + (1-ρ)g²,   d = g·√(E[d²] + ε)/√(E[g²] + ε)
        E[d²] ← ρE[d²] + (1-ρ)d²

    rho: the decay rate ρ of both moving averages, in [0, 1).
    eps: ε >= 0, added inside both roots: it is also the size of the first step.
    """

    paper = Paper("Zeiler 2012", "https://arxiv.org/abs/1212.5701")
    takes_any_rate = True

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


@composed(Rms, variants={"centered=True": StdDev})
def rmsprop(
    learning_rate: Any,
    decay: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: Any = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Any = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    velocity: str = "steps",
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """RMSprop: steps relative to the root mean square of recent gradients.

        ν ← ρν + (1-ρ)g²,   d = g/√(ν + ε)      or g/(√ν + ε) with eps_in_sqrt=False
        θ ← θ - ηd                              without momentum
        v ← γv + ηd,   θ ← θ - v                with momentum, velocity="steps"
        v ← γv + d,    θ ← θ - ηv               with momentum, velocity="gradients" (PyTorch)

    Momentum keeps one more.

    centered: whether to divide by the standard deviation, √(ν - μ²) with μ ← ρμ + (1-ρ)g, in place of
      the root mean square.
    momentum: the decay γ of the velocity, in [0, 1]; None for none.
    nesterov: whether to look one step ahead (Nesterov's momentum).
    velocity: "gradients" or "steps": whether the learning rate comes after the velocity or enters it.
      It matters under a schedule.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.rmsprop(0.01, momentum=0.9)
      rmsprop(learning_rate=0.01, decay=0.9, eps=1e-08, initial_scale=0.0, momentum=0.9)
    """
    one_of("velocity", velocity, VELOCITIES)
    rule = (StdDev if centered else Rms)(decay, eps, initial_scale, eps_in_sqrt, bias_correction)
    options: dict[str, Any] = {"centered": True} if centered else {}
    if momentum is None:
        return descend(
            rmsprop, rule, learning_rate, weight_decay, mask, storage, last=(Identity(),), **options
        )
    if velocity != "steps":
        options["velocity"] = velocity
    trace = Trace(momentum, nesterov)
    of_steps = velocity == "steps"
    return descend_with_velocity(
        rmsprop, rule, learning_rate, trace, of_steps, weight_decay, mask, storage, **options
    )


@composed(AdaDelta)
def adadelta(
    learning_rate: Any = None,
    rho: Any = 0.9,
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    weight_decay_mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """AdaDelta: steps in the units of the parameters, without a learning rate to tune.

    A learning rate of None is the paper's η = 1; optax then omits the sign as well, and ascends.

    weight_decay_mask: optax's name for `mask`.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.adadelta()
      adadelta(learning_rate=1.0, rho=0.9, eps=1e-06)
    """
    learning_rate = 1.0 if learning_rate is None else learning_rate
    if weight_decay_mask is not None and mask is not None:
        raise ValueError("mask and weight_decay_mask are two names of one argument: give one.")
    mask = weight_decay_mask if mask is None else mask
    # optax decays first, and has its entry there.
    return descend(
        adadelta, AdaDelta(rho, eps), learning_rate, weight_decay, mask, storage,
        decays=True, order=(1, 0, 2),
    )  # fmt: skip


@preconditioner(Rms)
def scale_by_rms(
    decay: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: Any = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    storage: Any = None,
) -> Transformation:
    """RMSprop's direction for a chain. See `rmsprop`."""
    ...


@preconditioner(StdDev)
def scale_by_stddev(
    decay: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: Any = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    storage: Any = None,
) -> Transformation:
    """Centered RMSprop's direction for a chain. See `rmsprop`."""
    ...


@preconditioner(AdaDelta)
def scale_by_adadelta(rho: Any = 0.9, eps: Any = 1e-6, *, storage: Any = None) -> Transformation:
    """AdaDelta's direction for a chain. See `adadelta`."""
    ...
