"""Steps of one size in every coordinate: the sign of a gradient, or of a momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax

from .._core.arguments import one_of
from .._core.hyper import Decay, NonNegative
from .._core.rule import Rule, Slot
from .._core.storage import named
from .._core.transformation import Transformation
from ..maths import ema
from ._descent import descend, optimizer
from ._factory import Paper, composed, preconditioner
from .scaling import Identity

SIGN_SGD = Paper("Bernstein et al. 2018", "https://arxiv.org/abs/1802.04434", "algorithm 1")


def sign(x):
    """-1, 0 or 1. What is not finite stays visible, as NaN."""
    return lax.add(lax.sign(x), lax.mul(x, x.dtype.type(0)))


@dataclass(frozen=True)
class Sign(Rule):
    """The sign of each element.

        d = sign(g)

    Of workers that vote, hand on the sum of their signs: its sign is that of the majority.
    """

    paper = SIGN_SGD
    takes_complex = False

    def update(self, grad, slots, param, ctx):
        return sign(grad), {}


@dataclass(frozen=True)
class Signum(Rule):
    """The sign of a moving average of gradients.

        μ ← βμ + (1-β)g,   d = sign(μ)

    beta: the decay rate β of the average, in [0, 1).
    """

    paper = Paper("Bernstein et al. 2018", "https://arxiv.org/abs/1802.04434", "algorithm 2")

    beta: Decay = 0.9
    slots = {"ema": Slot()}
    takes_complex = False
    state_type_name = "EmaState"

    def update(self, grad, slots, param, ctx):
        mean = ctx.store("ema", ema(grad, slots["ema"], self.beta))
        return sign(mean), {"ema": mean}


@dataclass(frozen=True)
class Lion(Rule):
    """The sign of a momentum that looks at the gradient twice, at two rates.

        c = β₁μ + (1-β₁)g,   d = sign(c),   μ ← β₂μ + (1-β₂)g

    b1: β₁ in [0, 1), the share of the momentum in the sign.
    b2: β₂ in [0, 1), the decay rate of the momentum.
    mode: "smooth" for d = tanh(κc): optax's, as is "refined", for c itself between -1 and 1.
    smooth_beta: κ >= 0, how steep "smooth" is.
    """

    paper = Paper("Chen et al. 2023", "https://arxiv.org/abs/2302.06675", "algorithm 2")
    b1: Decay = 0.9
    b2: Decay = 0.99
    mode: str = "hard"
    smooth_beta: NonNegative = 1.0
    slots = {"mu": Slot()}
    takes_complex = False
    state_type_name = "ScaleByLionState"

    def __post_init__(self):
        super().__post_init__()
        one_of("mode", self.mode, ("hard", "smooth", "refined"))

    def update(self, grad, slots, param, ctx):
        direction = ema(grad, slots["mu"], self.b1)
        if self.mode == "smooth":
            direction = jnp.tanh(self.smooth_beta * direction) + 0 * direction
        elif self.mode == "refined":
            direction = jnp.clip(direction, -1, 1) + 0 * direction
        else:
            direction = sign(direction)
        return direction, {"mu": ctx.store("mu", ema(grad, slots["mu"], self.b2))}


@optimizer(Sign)
def sign_sgd(
    learning_rate: Any, *, weight_decay: Any = None, mask: Any = None, storage: Any = None
) -> Transformation:
    """signSGD: every element moves by the learning rate, against the sign of its gradient."""
    ...


@preconditioner(Sign)
def scale_by_sign() -> Transformation:
    """The sign of each element, for a chain. Behind `aj.trace` it is that of a momentum."""
    ...


@composed(Signum)
def signum(
    learning_rate: Any,
    beta: Any = 0.9,
    accumulator_dtype: Any = None,
    *,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Signum: sign descent with momentum, θ ← θ - η(sign(μ) + λθ). Weight decay as in the paper.

    accumulator_dtype: the dtype of the average, float32 at least if None.
    """
    storage = named.with_dtype(storage, "ema", accumulator_dtype)
    direction = (Signum(beta), Identity())  # Two places in the state, as optax has them.
    return descend(signum, direction, learning_rate, weight_decay, mask, storage)


@optimizer(Lion)
def lion(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.99,
    mu_dtype: Any = None,
    weight_decay: Any = 1e-3,
    mask: Any = None,
    *,
    storage: Any = None,
) -> Transformation:
    """Lion: with a third to a tenth of Adam's learning rate, and as much more weight decay."""
    ...


@preconditioner(Lion)
def scale_by_lion(
    b1: Any = 0.9,
    b2: Any = 0.99,
    mu_dtype: Any = None,
    *,
    mode: str = "hard",
    smooth_beta: Any = 1.0,
    storage: Any = None,
) -> Transformation:
    """Lion's direction for a chain. See `lion`."""
    ...
