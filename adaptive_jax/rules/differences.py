"""What the difference between a gradient and the one before it tells: Adan, MARS and optimism."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .. import maths
from .._core.arguments import one_of
from .._core.hyper import Decay, Hyper, NonNegative, none_if_zero
from .._core.rule import Rule, Slot
from .._core.storage import named
from .._core.transform import build
from .._core.transformation import Transformation
from ..maths import (
    bias_correction,
    bounded,
    clamped,
    complement,
    ema,
    mean_of_squares,
    quotient,
    scaled,
)
from ._descent import decays_by, descend
from ._factory import Paper, composed, preconditioner
from .adam import Adam
from .clipping import clipped
from .scaling import LearningRate, WeightDecay
from .sign import Signum


@dataclass(frozen=True)
class Adan(Rule):
    """Adam with Nesterov's momentum, made of gradients and of their differences.

        δ = g - g₋₁ (0 at first),   m ← β₁m + (1-β₁)g,   v ← β₂v + (1-β₂)δ
        n ← β₃n + (1-β₃)(g + β₂δ)²,   d = (m̂ + β₂v̂)/(√(n̂ + ε_root) + ε)

    Each hat is the division by 1-βᵗ. The paper calls 1 - β what its code, and this one, calls β.

    b1: the decay rate β₁ of the average of gradients, in [0, 1).
    b2: the decay rate β₂ of the average of differences, and their weight, in [0, 1).
    b3: the decay rate β₃ of the second moment, in [0, 1).
    eps: ε >= 0, against division by zero.
    eps_root: ε_root >= 0, added inside the root; > 0 to differentiate through the update.
    """

    paper = Paper("Xie et al. 2022", "https://arxiv.org/abs/2208.06677", "algorithm 1")

    b1: Decay = 0.98
    b2: Decay = 0.92
    b3: Decay = 0.99
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 0.0
    slots = {"m": Slot(), "v": Slot(), "n": Slot(nonnegative=True), "g": Slot()}

    def update(self, grad, slots, param, ctx):
        grad = bounded(grad)
        difference = jnp.where(ctx.step == 1, jnp.zeros_like(grad), grad - slots["g"])
        m = ctx.store("m", ema(grad, slots["m"], self.b1))
        v = ctx.store("v", ema(difference, slots["v"], self.b2))
        ahead = grad + scaled(difference, self.b2.value)
        n = ctx.store("n", mean_of_squares(ahead, slots["n"], self.b3))
        v_hat = quotient(v, bias_correction(self.b2, ctx.step))
        mean = quotient(m, bias_correction(self.b1, ctx.step)) + scaled(v_hat, self.b2.value)
        n_hat = quotient(n, bias_correction(self.b3, ctx.step))
        direction = quotient(mean, maths.denominator(n_hat, self.eps, self.eps_root))
        return direction, {"m": m, "v": v, "n": n, "g": grad}


@dataclass(frozen=True)
class Mars(Rule):
    """The gradient with less variance, by how much it differs from the last one, and no longer than 1.

        c = g + γ·β₁/(1-β₁)·(g - g₋₁),   d = c/max(1, ‖c‖),   ‖c‖ of the one array

    It stands before what averages gradients at the rate β₁. The gradient of the last batch takes the place
    of that of this batch at the last parameters: the approximate form, which needs no second gradient.

    b1: the decay rate β₁ of the average behind it, in [0, 1).
    gamma: γ >= 0, how much of the difference is made up for; with 0 it only clips.
    from_zero: True for g₋₁ = 0 at first: as in the authors' code. Otherwise c = g there.
    """

    paper = Paper("Yuan et al. 2024", "https://arxiv.org/abs/2411.10438")

    b1: Decay = 0.95
    gamma: NonNegative = 0.025
    from_zero: bool = False
    slots = {"last": Slot()}

    def update(self, grad, slots, param, ctx):
        last = slots["last"]
        if not self.from_zero:
            last = jnp.where(ctx.step == 1, bounded(grad), last)
        weight = self.gamma * self.b1 / complement(self.b1)
        corrected = bounded(grad) + scaled(bounded(grad) - last, weight)
        one = jnp.ones_like(self.gamma)
        return clipped(corrected, maths.norm(corrected), one), {"last": bounded(grad)}


@dataclass(frozen=True)
class OptimisticGradient(Rule):
    """The gradient as it will be next, if it goes on to change as it just did.

        d = (α + β)g - βg₋₁,   g₋₁ = g at first

    For games, where each player's descent alone goes round in circles.

    alpha: α, the weight of the gradient.
    beta: β, the weight of its change.
    """

    paper = Paper("Mokhtari et al. 2019", "https://arxiv.org/abs/1901.08511")
    learning_rate_field = "alpha"

    alpha: Hyper = 1.0
    beta: Hyper = 1.0
    slots = {"previous_gradient": Slot()}
    scalars = {"is_initial_step": 1.0}
    counts_steps = False
    per_array = ("alpha", "beta")
    state_type_name = "ScaleByOptimisticGradientState"

    def advance(self, scalars, measured, ctx):
        return {"is_initial_step": jnp.float32(0), "is_first": scalars["is_initial_step"] > 0}

    def update(self, grad, slots, param, ctx):
        # What is kept is the gradient as it came: bounded, it would be one array more in memory.
        last = jnp.where(ctx.scalars["is_first"], grad, slots["previous_gradient"])
        change = scaled(bounded(grad) - clamped(last), self.beta)
        return scaled(bounded(grad), self.alpha) + change, {"previous_gradient": grad}


@composed(Adan)
def adan(
    learning_rate: Any,
    b1: Any = 0.98,
    b2: Any = 0.92,
    b3: Any = 0.99,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    proximal: bool = True,
    storage: Any = None,
) -> Transformation:
    """Adan: Adam with Nesterov's momentum, of gradients and of their differences.

    optax's has 1 - β₂ where β₂ is meant, decay that is not proximal, and an eps_root of 1e-8.

    proximal: whether weight decay is the paper's, θ ← (θ - ηd)/(1 + ηλ); False for θ ← θ - η(d + λθ).
    """
    direction = Adan(b1, b2, b3, eps, eps_root)
    if not proximal or (none_if_zero(weight_decay) is None and mask is None):
        options: dict[str, Any] = {} if proximal else {"proximal": False}
        return descend(adan, direction, learning_rate, weight_decay, mask, storage, **options)
    rate = LearningRate(learning_rate)
    decay = WeightDecay(weight_decay, mask, learning_rate, kind="proximal")
    return build(adan, direction, rate, decay, storage=storage)


@preconditioner(Adan)
def scale_by_adan(
    b1: Any = 0.98,
    b2: Any = 0.92,
    b3: Any = 0.99,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    storage: Any = None,
) -> Transformation:
    """Adan's direction for a chain. See `adan`."""
    ...


@composed(Mars, also=(Adam,), b2=0.99)
def mars(
    learning_rate: Any,
    b1: Any = 0.95,
    b2: Any = 0.99,
    eps: Any = 1e-8,
    gamma: Any = 0.025,
    mu_dtype: Any = None,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    form: str = "adam",
    from_zero: bool = False,
    storage: Any = None,
) -> Transformation:
    """MARS: Adam, or the sign of a momentum, of gradients with less variance; the approximate form.

        c = g + γ·β₁/(1-β₁)·(g - g₋₁),   h = c/max(1, ‖c‖),   μ ← β₁μ + (1-β₁)h
        ν ← β₂ν + (1-β₂)h²,   d = μ̂/(√ν̂ + ε)

    ‖c‖ is that of the one array. The authors give arrays with one axis or none to AdamW, with b1=0.9 and
    b2=0.95: see `aj.partition`.

    form: "lion" for d = sign(μ): neither b2 nor eps; "adam" for Adam.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> aj.mars(3e-3)
      mars(learning_rate=0.003, b1=0.95, b2=0.99, eps=1e-08, gamma=0.025)
      >>> def labels(params):  # As the authors have it.
      ...     return jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "rest", params)
      >>> rest = aj.adamw(3e-3, 0.9, 0.95, weight_decay=0.1)
      >>> tx = aj.partition({"matrix": aj.mars(3e-3), "rest": rest}, labels)
    """
    one_of("form", form, ("adam", "lion"))
    average = Adam(b1, b2, eps) if form == "adam" else Signum(b1)
    storage = named.with_dtype(storage, "mu" if form == "adam" else "ema", mu_dtype)
    direction = (Mars(b1, gamma, from_zero), average)
    return descend(mars, direction, learning_rate, weight_decay, mask, storage, form=form)


@preconditioner(Mars)
def mars_correction(
    b1: Any = 0.95, gamma: Any = 0.025, *, from_zero: bool = False, storage: Any = None
) -> Transformation:
    """MARS's gradient with less variance, for a chain: before what averages gradients at the rate b1.

    The paper's matrix form, whose steps are orthogonal, is `muon` without Nesterov's momentum behind it.

    Example:
      >>> import adaptive_jax as aj
      >>> tx = aj.chain(aj.mars_correction(0.95), aj.lion(1e-4, b1=0.95))
      >>> of_matrices = aj.chain(aj.mars_correction(0.95), aj.muon(0.02, b1=0.95, nesterov=False))
    """
    ...


@composed(OptimisticGradient)
def optimistic_gradient_descent(
    learning_rate: Any,
    alpha: Any = 1.0,
    beta: Any = 1.0,
    *,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Gradient descent for games, one step ahead: θ ← θ - η((α + β)g - βg₋₁)."""
    direction = OptimisticGradient(alpha, beta)
    return descend(
        optimistic_gradient_descent, direction, learning_rate, weight_decay, mask, storage
    )


OPTIMISTIC_ADAM = Paper("Daskalakis et al. 2018", "https://arxiv.org/abs/1711.00141", "algorithm 1")


@composed(
    OptimisticGradient,
    also=(Adam,),
    renamed={"learning_rate": "OptimisticGradient.alpha", "optimism": "OptimisticGradient.beta"},
    paper=OPTIMISTIC_ADAM,
)
def optimistic_adam(
    learning_rate: Any,
    optimism: Any = None,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Optimistic Adam, for games: Adam's direction u, one step ahead. `optimistic_adam_v2` has two weights.

        θ ← θ - (η + o)u + o·u₋₁,   u = μ̂/(√ν̂ + ε),   u₋₁ = u at first

    optax's adds Nesterov's momentum by default, which the paper has not.

    optimism: the weight o of the change of u: η if None.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.optimistic_adam(1e-3)  # doctest: +ELLIPSIS
      optimistic_adam(learning_rate=0.001, optimism=0.001, b1=0.9, ..., eps_root=0.0)
    """
    adam = Adam(b1, b2, eps, eps_root, nesterov)
    ahead = OptimisticGradient(learning_rate, learning_rate if optimism is None else optimism)
    storage = named.with_dtype(storage, "mu", mu_dtype)
    decay = decays_by(optimistic_adam, weight_decay, mask, learning_rate=learning_rate)
    return build(optimistic_adam, adam, ahead, LearningRate(1.0), *decay, storage=storage)


@composed(OptimisticGradient, also=(Adam,), paper=OPTIMISTIC_ADAM)
def optimistic_adam_v2(
    learning_rate: Any,
    *,
    alpha: Any = 1.0,
    beta: Any = 1.0,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    nesterov: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Optimistic Adam with two weights.

        θ ← θ - η((α + β)u - βu₋₁),   u = μ̂/(√ν̂ + ε),   u₋₁ = u at first

    optax's adds Nesterov's momentum by default, which the paper has not.
    """
    direction = (Adam(b1, b2, eps, eps_root, nesterov), OptimisticGradient(alpha, beta))
    storage = named.with_dtype(storage, "mu", mu_dtype)
    return descend(optimistic_adam_v2, direction, learning_rate, weight_decay, mask, storage)


@preconditioner(OptimisticGradient)
def scale_by_optimistic_gradient(
    alpha: Any = 1.0, beta: Any = 1.0, *, storage: Any = None
) -> Transformation:
    """The gradient, or what a chain has made of it, one step ahead."""
    ...
