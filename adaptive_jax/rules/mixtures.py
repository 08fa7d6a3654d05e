"""Mixtures of averages with a short and a long memory, over Adam's denominator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .. import maths
from .._core.hyper import Decay, Hyper, NonNegative
from .._core.rule import Rule, Slot
from .._core.storage import named
from .._core.transform import build
from .._core.transformation import Transformation
from ..maths import (
    DecayRate,
    bias_correction,
    bounded,
    decayed,
    denominator,
    ema,
    quotient,
    scaled,
    second_moment,
)
from ._descent import descend, optimizer
from ._factory import Paper, composed, preconditioner


@dataclass(frozen=True)
class AdEMAMix(Rule):
    """Adam with a second, slow average of gradients beside the first.

        μ ← β₁μ + (1-β₁)g,   s ← β₃(t)s + (1-β₃(t))g,   ν ← β₂ν + (1-β₂)g²
        d = (μ̂ + α(t)s)/(√(ν̂ + ε_root) + ε)

    s has no bias correction. With warm-ups of T steps, the weight of s rises along a line, and β₃ from β₁
    so that the half-life of s does. Without them, s weighs all at once when it has filled:

        α(t) = α·min(t/T, 1),   1/log β₃(t) = (1-r)/log β₁ + r/log β₃,   r = min(t/T, 1)

    b1: the decay rate β₁ of the fast average, in [0, 1).
    b2: the decay rate β₂ of the second moment, in [0, 1).
    b3: the decay rate β₃ of the slow average, in [0, 1).
    alpha: the weight α of the slow average; 4 to 10 in the paper, 2 in the authors' code.
    eps: ε >= 0, against division by zero.
    eps_root: ε_root >= 0, added inside the root; > 0 to differentiate through the update.
    b3_warmup: the number of steps T in which β₃ rises from β₁; None for none.
    alpha_warmup: the number of steps T in which α rises from 0; None for none. In the paper, both are that
      of all steps.
    """

    paper = Paper("Pagliardini, Ablin & Grangier 2024", "https://arxiv.org/abs/2409.03137")

    b1: Decay = 0.9
    b2: Decay = 0.999
    b3: Decay = 0.9999
    alpha: Hyper = 5.0
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 0.0
    b3_warmup: NonNegative = None
    alpha_warmup: NonNegative = None
    slots = {"mu": Slot(), "mu_slow": Slot(), "nu": Slot(nonnegative=True)}

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(bounded(grad), slots["mu"], self.b1))
        slow_decay, weight = self.b3, self.alpha
        if self.b3_warmup is not None:
            slow_decay = between_half_lives(self.b1, self.b3, share(ctx.step, self.b3_warmup))
        if self.alpha_warmup is not None:
            weight = weight * share(ctx.step, self.alpha_warmup)
        mu_slow = ctx.store("mu_slow", ema(bounded(grad), slots["mu_slow"], slow_decay))
        nu = ctx.store("nu", second_moment(grad, slots["nu"], self.b2))
        mean = quotient(mu, bias_correction(self.b1, ctx.step)) + scaled(mu_slow, weight)
        nu_hat = quotient(nu, bias_correction(self.b2, ctx.step))
        direction = quotient(mean, denominator(nu_hat, self.eps, self.eps_root))
        return direction, {"mu": mu, "mu_slow": mu_slow, "nu": nu}


def share(step, steps):
    """min(t/T, 1)."""
    return jnp.minimum(step.astype(steps.dtype) / jnp.maximum(steps, 1), 1)


def between_half_lives(first, last, share):
    """The decay rate whose half-life is the share of the way from that of the first to that of the last."""
    complement = -jnp.expm1(1 / ((1 - share) / maths.log(first) + share / maths.log(last)))
    return DecayRate(1 - complement, complement)


@dataclass(frozen=True)
class SimplifiedAdEMAMix(Rule):
    """Adam of a sum of gradients that decays, with this gradient once more.

        μ ← β₁μ + g,   ν ← β₂ν + (1-β₂)g²,   d = (μ + αg)/(√(ν̂ + ε_root) + ε)

    μ is up to 1/(1-β₁) times as large as Adam's: so much smaller is the learning rate.

    b1: the decay β₁ of the sum, in [0, 1).
    b2: the decay rate β₂ of the second moment, in [0, 1).
    alpha: the weight α of this gradient.
    eps: ε >= 0, against division by zero.
    eps_root: ε_root >= 0, added inside the root; > 0 to differentiate through the update.
    """

    paper = Paper("Morwani et al. 2025", "https://arxiv.org/abs/2502.02431")

    b1: Decay = 0.99
    b2: Decay = 0.95
    alpha: Hyper = 0.0
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 0.0
    slots = {"mu": Slot(), "nu": Slot(nonnegative=True)}

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", decayed(slots["mu"], self.b1) + bounded(grad))
        nu = ctx.store("nu", second_moment(grad, slots["nu"], self.b2))
        nu_hat = quotient(nu, bias_correction(self.b2, ctx.step))
        mean = mu + scaled(bounded(grad), self.alpha)
        return quotient(mean, denominator(nu_hat, self.eps, self.eps_root)), {"mu": mu, "nu": nu}


def _storage(storage: Any, mu_dtype: Any) -> Any:
    """The storage, with both averages in a dtype."""
    fast = named.with_dtype(storage, "mu", mu_dtype)
    return fast if mu_dtype is None else {**fast, "mu_slow": fast["mu"]}


@composed(AdEMAMix)
def ademamix(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = 0.9999,
    alpha: Any = 5.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    b3_warmup: Any = None,
    alpha_warmup: Any = None,
    storage: Any = None,
) -> Transformation:
    """AdEMAMix: Adam that remembers gradients of many thousand steps ago as well.

    Schedules in the place of b3 and alpha see 0 at the first step, as in optax; the warm-ups count it as 1,
    as the paper does, and keep 1 - β₃ exact. `aj.schedules.half_life_schedule` is theirs of β₃.

    mu_dtype: the dtype of both averages of gradients, float32 at least if None.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.ademamix(1e-3, b3_warmup=100_000, alpha_warmup=100_000)  # doctest: +ELLIPSIS
      ademamix(learning_rate=0.001, b1=0.9, b2=0.999, b3=0.9999, alpha=5.0, ..., alpha_warmup=100000.0)
    """
    rule = AdEMAMix(b1, b2, b3, alpha, eps, eps_root, b3_warmup, alpha_warmup)
    storage = _storage(storage, mu_dtype)
    return descend(ademamix, rule, learning_rate, weight_decay, mask, storage, decays=True)


@composed(AdEMAMix)
def scale_by_ademamix(
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = 0.9999,
    alpha: Any = 5.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    *,
    b3_warmup: Any = None,
    alpha_warmup: Any = None,
    storage: Any = None,
) -> Transformation:
    """AdEMAMix's direction for a chain. See `ademamix`. optax's has alpha=6.0 here, and 5.0 there.

    mu_dtype: the dtype of both averages of gradients, float32 at least if None.
    """
    rule = AdEMAMix(b1, b2, b3, alpha, eps, eps_root, b3_warmup, alpha_warmup)
    return build(scale_by_ademamix, rule, storage=_storage(storage, mu_dtype))


@optimizer(SimplifiedAdEMAMix)
def simplified_ademamix(
    learning_rate: Any,
    b1: Any = 0.99,
    b2: Any = 0.95,
    alpha: Any = 0.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    storage: Any = None,
) -> Transformation:
    """Simplified AdEMAMix: one sum of gradients with a long memory, and this gradient once more."""
    ...


@preconditioner(SimplifiedAdEMAMix)
def scale_by_simplified_ademamix(
    b1: Any = 0.99,
    b2: Any = 0.95,
    alpha: Any = 0.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    storage: Any = None,
) -> Transformation:
    """Simplified AdEMAMix's direction for a chain. See `simplified_ademamix`."""
    ...
