"""The steps that every optimizer ends with: the learning rate and weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax

from .._core.arguments import one_of
from .._core.hyper import Hyper, NonNegative, mapped
from .._core.mask import Mask
from .._core.rule import Rule
from .._core.transformation import Transformation
from ..maths import scaled
from ._factory import Paper, preconditioner

DECOUPLED = Paper("Loshchilov & Hutter 2019", "https://arxiv.org/abs/1711.05101")
"""Who took weight decay out of the gradient."""


@dataclass(frozen=True)
class LearningRate(Rule):
    """One step of size η against the direction d, with decoupled weight decay.

        θ ← θ - η(d + λθ)

    Without a weight decay it is the step of gradient descent, and needs no parameters.

    learning_rate: the step size η, >= 0: a number, an array of shape (), a schedule, or, as of every
      hyperparameter, a tree of these that is a prefix of the parameters.
    weight_decay: the decoupled weight decay λ, >= 0; None for none.
    mask: which arrays decay: a tree of bools, a prefix of one, or a function of the parameters.
    flip_sign: False to multiply by +η, for a chain that flips the sign elsewhere.
    learning_rate_decay: δ for a step size that falls with the steps taken, η/(1 + δ(t-1)).
    keep_count: True to count the steps although nothing needs their number.
    """

    paper = DECOUPLED
    takes_any_rate = True

    learning_rate: NonNegative
    weight_decay: NonNegative = None
    mask: Mask = None
    flip_sign: bool = True
    learning_rate_decay: NonNegative = None
    keep_count: bool = False
    state_type_name = "ScaleByScheduleState"

    @property
    def counts_steps(self):
        return self.learning_rate_decay is not None or self.keep_count

    @property
    def needs_params(self):
        return self.weight_decay is not None

    def learning_rate_at(self, step):
        rate = super().learning_rate_at(step)
        if self.learning_rate_decay is None:
            return rate

        def decayed(rate, decay):
            return rate / (1 + decay * jnp.asarray(step - 1, jnp.result_type(rate)))

        return mapped(decayed, rate, self.learning_rate_decay)

    def update(self, grad, slots, param, ctx):
        rate = self.learning_rate_at(ctx.step)
        if self.weight_decay is not None and ctx.selected:
            grad = grad + self.weight_decay * param
        return scaled(grad, lax.neg(rate) if self.flip_sign else rate), {}


@dataclass(frozen=True)
class RatedStep(LearningRate):
    """One step of a size ρη, with decoupled weight decay of the size η.

        θ ← θ - η(ρd + λθ)

    ratio: ρ >= 0.
    """

    paper = DECOUPLED

    ratio: NonNegative = 1.0

    def update(self, grad, slots, param, ctx):
        return super().update(scaled(grad, self.ratio), slots, param, ctx)


@dataclass(frozen=True)
class WeightDecay(Rule):
    """Weight decay, as a step of its own.

        d + λθ

    Where it stands decides what it is: before a preconditioner an L2 penalty, inside the moments; behind
    one, and before a rule that divides by a norm, inside that norm, as in LAMB; right before the learning
    rate decoupled. Behind the learning rate, give that here too: u - ηλθ, for momentum that sums steps.

    Its state is that of `optax.add_decayed_weights`: with a mask, an `optax.MaskedState`.

    weight_decay: λ: a number, or as every hyperparameter a schedule, or a tree.
    learning_rate: η, where it stands behind the learning rate; None before that.
    kind: None for d + λθ. "cautious" for d + λθ∘1[d∘θ >= 0], only where the step goes towards zero too:
      Chen et al. 2025, https://arxiv.org/abs/2510.12402. Behind the learning rate, "independent" for
      u - λθ, whatever η is; and "proximal" for θ ← (θ + u)/(1 + ηλ), which crosses zero for no λ, with
      the η that is given here.
    """

    paper = DECOUPLED

    weight_decay: Hyper = None
    mask: Mask = None
    learning_rate: NonNegative = None
    kind: Any = None  # No string, which checkpoints would hold: those of before have none.
    state_type_name = "WeightDecaySchedule"
    state_is_masked = True
    learning_rate_field = None  # It is that of the decay: the direction has been multiplied before.

    def __post_init__(self):
        super().__post_init__()
        one_of("kind", self.kind, (None, "cautious", "independent", "proximal"))
        if self.kind == "proximal" and self.learning_rate is None:
            raise ValueError(
                'kind="proximal" needs the learning rate of the steps that it stands behind: '
                'add_decayed_weights(λ, learning_rate=η, kind="proximal").'
            )
        if self.kind == "independent" and self.learning_rate is not None:
            raise ValueError(
                'kind="independent" takes λθ from each step whatever the learning rate: leave '
                "learning_rate out, and let it stand behind the learning rate."
            )

    @property
    def needs_params(self):
        return self.weight_decay is not None

    def update(self, grad, slots, param, ctx):
        if self.weight_decay is None or not ctx.selected:
            return grad, {}
        decay = self.weight_decay * param
        if self.kind == "cautious":
            direction = grad if self.learning_rate is None else -grad
            sign: Any = jnp.sign(param)  # type: ignore[arg-type]  # With a decay there are parameters.
            decay = jnp.where(jnp.sign(direction) * sign >= 0, decay, 0)
        if self.kind == "independent":
            return grad - decay, {}
        if self.learning_rate is None:
            return grad + decay, {}
        stepped = grad - self.learning_rate * decay
        if self.kind == "proximal":
            stepped = stepped / (1 + self.learning_rate * self.weight_decay)
        return stepped, {}


@dataclass(frozen=True)
class Identity(Rule):
    """The direction as it is.

        d = g

    It is a place in the state, where optax has one.
    """

    paper = Paper("Robbins & Monro 1951", "https://doi.org/10.1214/aoms/1177729586")
    takes_any_rate = True

    def update(self, grad, slots, param, ctx):
        return grad, {}


@dataclass(frozen=True)
class Maximize(Rule):
    """-g: what follows climbs where it would have descended."""

    def update(self, grad, slots, param, ctx):
        return -grad, {}


@preconditioner(WeightDecay, weight_decay=0.0)
def add_decayed_weights(
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    learning_rate: Any = None,
    kind: Any = None,
) -> Transformation:
    """Adds λθ to the updates: weight decay for a chain. `update` needs the parameters.

        g + λθ

    Before a preconditioner it is an L2 penalty; after it, and before the learning rate, decoupled.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.add_decayed_weights(0.01)
      add_decayed_weights(weight_decay=0.01)
      >>> # Every kind of weight decay, by its place and its name:
      >>> adam, rate = aj.scale_by_adam(), aj.scale_by_learning_rate(1e-3)
      >>> tx = aj.chain(aj.add_decayed_weights(1e-4), adam, rate)  # In the moments, L2.
      >>> tx = aj.chain(adam, aj.add_decayed_weights(0.1), rate)  # Decoupled.
      >>> tx = aj.chain(adam, aj.add_decayed_weights(0.1, kind="cautious"), rate)
      >>> tx = aj.chain(adam, rate, aj.add_decayed_weights(1e-4, kind="independent"))
      >>> proximal = aj.add_decayed_weights(0.1, learning_rate=1e-3, kind="proximal")
      >>> tx = aj.chain(adam, rate, proximal)
    """
    ...


@preconditioner(LearningRate, paper=None)
def scale_by_learning_rate(learning_rate: Any, *, flip_sign: bool = True) -> Transformation:
    """Multiplies by the learning rate, with the sign turned round.

        -ηg

    It is the end of a chain that descends.
    """
    ...
