"""Momentum."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from .._core.hyper import Decay, Fraction
from .._core.rule import Rule, Slot
from ..maths import complement, decayed_sum, scaled


@dataclass(frozen=True)
class Trace(Rule):
    """v ← γv + (1-τ)g; the direction is v, or with Nesterov's momentum γv + (1-τ)g once more.

    Polyak 1964, https://doi.org/10.1016/0041-5553(64)90137-5; Nesterov 1983; Sutskever et al. 2013,
    https://proceedings.mlr.press/v28/sutskever13.html.

    Before the learning rate, v is a velocity of gradients; after it, of steps. With the dampening
    τ = γ, v is a moving average of gradients.

    dampen_first: False for v = g after the first step, as PyTorch has it.
    """

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
