"""Gradient descent, and momentum in each of its usual forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .. import maths
from .._core.arguments import one_of
from .._core.hyper import Decay, Fraction, none_if_zero
from .._core.rule import Rule, Slot
from .._core.storage import named
from .._core.transform import build
from .._core.transformation import Transformation
from ..maths import bias_correction, complement, decayed_sum, quotient, scaled
from ._descent import VELOCITIES, descend, descend_with_velocity
from ._factory import Paper, composed
from .scaling import Identity


@dataclass(frozen=True)
class Trace(Rule):
    """A velocity that every gradient pushes and that decays.

        v ← γv + (1-τ)g,   d = v

    Before the learning rate, v is a velocity of gradients; after it, of steps. With the dampening
    τ = γ, v is a moving average of gradients.

    decay: the decay γ of the velocity, in [0, 1].
    nesterov: True for d = γv + (1-τ)g: one step ahead, Nesterov's momentum of 1983.
    dampening: τ in [0, 1): a gradient enters the velocity with weight 1 - τ; None for 0.
    dampen_first: False for v = g after the first step: whatever the dampening, as PyTorch has it.
    """

    paper = (
        Paper("Polyak 1964", "https://doi.org/10.1016/0041-5553(64)90137-5"),
        Paper("Sutskever et al. 2013", "https://proceedings.mlr.press/v28/sutskever13.html"),
    )
    takes_any_rate = True

    decay: Fraction
    nesterov: bool = False
    dampening: Decay = None
    dampen_first: bool = True
    slots = {"trace": Slot()}

    @property
    def counts_steps(self):
        return self.dampening is not None and not self.dampen_first

    @property
    def momentum(self):
        return self.decay

    def update(self, grad, slots, param, ctx):
        if self.dampening is not None:
            weight = complement(self.dampening)
            if not self.dampen_first:
                weight = jnp.where(ctx.step == 1, jnp.ones_like(weight), weight)
            grad = scaled(grad, weight)
        trace = ctx.store("trace", decayed_sum(grad, slots["trace"], self.decay))
        return decayed_sum(grad, trace, self.decay) if self.nesterov else trace, {"trace": trace}


@dataclass(frozen=True)
class Ema(Rule):
    """The moving average of what comes.

        m ← γm + (1-γ)g,   d = m/(1-γᵗ)

    decay: the decay rate γ of the average, in [0, 1).
    debias: False for d = m, which starts small.
    """

    paper = None
    takes_any_rate = True

    decay: Decay
    debias: bool = True
    slots = {"ema": Slot()}
    state_type_name = "EmaState"

    def update(self, grad, slots, param, ctx):
        average = ctx.store("ema", maths.ema(grad, slots["ema"], self.decay))
        direction = (
            quotient(average, bias_correction(self.decay, ctx.step)) if self.debias else average
        )
        return direction, {"ema": average}


@composed(Identity, variants={"momentum=γ": Trace})
def sgd(
    learning_rate: Any,
    momentum: Any = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    *,
    dampening: Any = None,
    dampen_first: bool = True,
    velocity: str = "gradients",
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Gradient descent, with momentum in each of its usual forms.

        θ ← θ - ηg                                       without momentum
        v ← γv + g,        θ ← θ - ηv                    a velocity of gradients
        v ← γv + ηg,       θ ← θ - v                     a velocity of steps, velocity="steps"
        v ← γv + (1-τ)g,   θ ← θ - ηv                    dampened; with τ = γ a moving average
        v ← γv + g,        θ ← θ - η(γv + g)             Nesterov

    momentum: the decay γ of the velocity, in [0, 1]; None for none.
    velocity: "steps" for v ← γv + ηg, θ ← θ - v: the learning rate enters the velocity, and does not
      come after it as with "gradients". It matters under a schedule.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.sgd(0.1, momentum=0.9)
      sgd(learning_rate=0.1, momentum=0.9)
    """
    one_of("velocity", velocity, VELOCITIES)
    if momentum is None and none_if_zero(dampening) is not None:
        raise ValueError(f"dampening={dampening!r} needs a momentum, whose velocity it dampens.")
    if momentum is None:
        return descend(sgd, Identity(), learning_rate, weight_decay, mask, storage)
    storage = named.with_dtype(storage, "trace", accumulator_dtype)
    trace = Trace(momentum, nesterov, none_if_zero(dampening), dampen_first)
    options = {} if velocity == "gradients" else {"velocity": velocity}
    of_steps = velocity == "steps"
    return descend_with_velocity(
        sgd, None, learning_rate, trace, of_steps, weight_decay, mask, storage, **options
    )


@composed(Trace)
def trace(
    decay: Any,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    *,
    dampening: Any = None,
    dampen_first: bool = True,
    storage: Any = None,
) -> Transformation:
    """Momentum for a chain. See `sgd`.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.chain(aj.trace(0.9), aj.scale_by_learning_rate(0.1))
      chain(trace(decay=0.9), scale_by_learning_rate(learning_rate=0.1))
    """
    storage = named.with_dtype(storage, "trace", accumulator_dtype)
    rule = Trace(decay, nesterov, none_if_zero(dampening), dampen_first)
    return build(trace, rule, storage=storage)


@composed(Ema)
def ema(
    decay: Any, debias: bool = True, accumulator_dtype: Any = None, *, storage: Any = None
) -> Transformation:
    """The moving average of the updates, for a chain.

    accumulator_dtype: the dtype of the average, float32 at least if None.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.chain(aj.ema(0.9), aj.scale_by_learning_rate(0.1))
      chain(ema(decay=0.9), scale_by_learning_rate(learning_rate=0.1))
    """
    storage = named.with_dtype(storage, "ema", accumulator_dtype)
    return build(ema, Ema(decay, debias), storage=storage)
