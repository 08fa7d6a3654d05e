"""The steps that every optimizer ends with: the learning rate and weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._rule import Hyper, NonNegative, Rule
from ..maths import scaled


@dataclass(frozen=True)
class LearningRate(Rule):
    """θ ← θ - η·(d + λθ): one step of size η against the direction d, with decoupled weight decay.

    Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101. Without a weight decay it is the step
    of gradient descent, and needs no parameters.

    mask: which arrays decay: a tree of bools, a prefix of one, or a function of the parameters.
    flip_sign: False to multiply by +η, for a chain that flips the sign elsewhere.
    """

    learning_rate: NonNegative
    weight_decay: NonNegative = None
    mask: Any = None
    flip_sign: bool = True
    state_type_name = "ScaleByScheduleState"

    @property
    def needs_params(self):
        return self.weight_decay is not None

    def update(self, grad, slots, param, ctx):
        if self.weight_decay is not None and ctx.selected:
            grad = grad + self.weight_decay * param
        return scaled(grad, -self.learning_rate if self.flip_sign else self.learning_rate), {}


@dataclass(frozen=True)
class WeightDecay(Rule):
    """d + λθ: weight decay, as a step of its own.

    Before a preconditioner it is an L2 penalty; after it, and before the learning rate, it is
    decoupled. After the learning rate, give that here too: d - ηλθ, for momentum that sums steps.
    """

    weight_decay: Hyper
    mask: Any = None
    learning_rate: NonNegative = None

    @property
    def needs_params(self):
        return self.weight_decay is not None

    def update(self, grad, slots, param, ctx):
        if self.weight_decay is None or not ctx.selected:
            return grad, {}
        if self.learning_rate is None:
            return grad + self.weight_decay * param, {}
        return grad - self.learning_rate * self.weight_decay * param, {}
