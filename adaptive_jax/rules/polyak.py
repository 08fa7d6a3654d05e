"""Steps from the value of the loss: as far as a model of it needs to come down to its lower bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core.arguments import one_of
from .._core.hyper import Decay, Hyper, Limit, NonNegative, Positive, none_if_zero
from .._core.mask import Mask
from .._core.rule import Rule, Slot
from .._core.transform import build
from .._core.transformation import Transformation
from ..maths import (
    bias_correction,
    bounded,
    denominator,
    ema,
    inner,
    norm,
    norm_in_one_pass,
    quotient,
    ratio,
    root_of_squares,
    scaled,
    second_moment,
)
from ._factory import Paper, composed, preconditioner
from .scaling import LearningRate

LOIZOU = Paper("Loizou et al. 2021", "https://arxiv.org/abs/2002.10542")
SCHAIPP = Paper("Schaipp et al. 2024", "https://arxiv.org/abs/2305.07583")


@dataclass(frozen=True)
class Polyak(Rule):
    """The gradient times Polyak's step size.

        d = min((f - f*)/(‖g‖² + ε), γ)·g

    f is the loss, `update(…, value=loss)`, which `aj.train_step` hands on; ‖g‖ is of all arrays.

    f_min: f*, a lower bound of the loss: 0 for models that can fit all of the data.
    max_learning_rate: γ >= 0, the largest step size.
    eps: ε >= 0, against division by zero.
    variant: "sps+" for max(f - f*, 0) in place of f - f*.
    """

    paper = LOIZOU
    learning_rate_field = None  # γ is a bound.

    f_min: Hyper = 0.0
    max_learning_rate: NonNegative = 1.0
    eps: NonNegative = 0.0
    variant: str = "sps"
    extra_args = {"value": "number"}

    def __post_init__(self):
        super().__post_init__()
        one_of("variant", self.variant, ("sps", "sps+"))

    def gap(self, ctx):
        """f - f*."""
        gap = ctx.extra["value"] - self.f_min
        return jnp.maximum(gap, 0) if self.variant == "sps+" else gap

    def size(self, measured):
        """√(‖g‖² + ε), by which the gap is divided twice: no square overflows."""
        root = jnp.sqrt(jnp.where(self.eps > 0, self.eps, 1))  # √0 has no derivative.
        return root_of_squares(norm(measured["norm"]), jnp.where(self.eps > 0, root, 0))

    def measure(self, grad, slots, param, ctx):
        return {"norm": norm_in_one_pass(grad)}

    def advance(self, scalars, measured, ctx):
        size = self.size(measured)
        rate = ratio(ratio(self.gap(ctx), size), size)
        return {"rate": jnp.minimum(rate, self.max_learning_rate)}

    def update(self, grad, slots, param, ctx):
        return scaled(grad, ctx.scalars["rate"]), {}


@dataclass(frozen=True)
class StochasticPolyak(Polyak):
    """The same with a share of the step, and a largest one that may grow slowly: SPS with SPSₘₐₓ.

        γₜ = min(max(f - f*, 0)/(c(‖g‖² + ε)), γ, growth_rate·γₜ₋₁),   d = γₜ·g

    f is the loss, `update(…, value=loss)`, which `aj.train_step` hands on; ‖g‖ is of all arrays.

    c: c > 0: 1/2 for convex losses; 0.2 in the authors' experiments on networks.
    growth_rate: the most by which the step size grows in a step; None for no limit. The authors have 2
      to the power of the batch's share of the data. Then γ is the first step's bound as well.
    """

    paper = LOIZOU

    variant: str = "sps+"
    c: Positive = 0.5
    growth_rate: Limit = None
    scalars = {"rate": "max_learning_rate"}

    def advance(self, scalars, measured, ctx):
        size = self.size(measured)
        rate = ratio(ratio(self.gap(ctx), size), self.c * size)
        largest = self.max_learning_rate
        if self.growth_rate is not None:
            largest = jnp.minimum(largest, scalars["rate"] * self.growth_rate)
        return {"rate": jnp.minimum(rate, largest)}


@dataclass(frozen=True)
class MoMo(Rule):
    """Momentum with a step size from a model of the loss: the average of all tangents so far.

        μ ← βμ + (1-β)g,   f̄ ← βf̄ + (1-β)f,   c ← βc + (1-β)⟨g, θ⟩
        τ = min(η, max((1+ηλ)(f̄ - f* - c) + ⟨μ, θ⟩, 0)/‖μ‖²)
        θ ← (θ - τμ)/(1 + ηλ)

    f is the loss, `update(…, value=loss)`, which `aj.train_step` hands on; sums are of all arrays. All
    averages start from the first values.

    learning_rate: η >= 0, the largest step size: rather too large than too small.
    beta: β in [0, 1), the decay rate of all averages.
    lower_bound: f*, a lower bound of the loss: 0 for most.
    weight_decay: λ >= 0, decoupled, by division; None or 0 for none.
    mask: which arrays decay: a tree of bools, a prefix of one, or a function of the parameters.
    adapt_lower_bound: True for a lower bound that is estimated, and never below f*.
    bias_correction: True for averages that start from 0, with f*ρ and η/ρ in place of f* and η, ρ = 1-βᵗ.
    """

    paper = SCHAIPP
    takes_any_rate = True

    learning_rate: NonNegative = 1.0
    beta: Decay = 0.9
    lower_bound: Hyper = 0.0
    weight_decay: NonNegative = None
    mask: Mask = None
    adapt_lower_bound: bool = False
    bias_correction: bool = False
    slots = {"mu": Slot()}
    scalars = {"value": 0.0, "slope": 0.0, "bound": "lower_bound"}
    extra_args = {"value": "number"}
    needs_params = True
    takes_complex = False
    owns_rate = True

    def average(self, value, old, ctx):
        """A moving average, from the first value or from 0."""
        moved = ema(value, old, self.beta)
        return moved if self.bias_correction else jnp.where(ctx.step == 1, value, moved)

    def moments(self, grad, slots, ctx):
        """μ, the direction made of it, and the other slots."""
        mu = ctx.store("mu", self.average(bounded(grad), slots["mu"], ctx))
        return mu, mu, {"mu": mu}

    def correction(self, ctx):
        """ρ."""
        return bias_correction(self.beta, ctx.step) if self.bias_correction else 1.0

    def measure(self, grad, slots, param, ctx):
        mu, direction, _ = self.moments(grad, slots, ctx)
        square = inner(mu, direction)
        return {"square": square, "at": inner(mu, param), "slope": inner(grad, param)}

    def advance(self, scalars, measured, ctx):
        rate, rho, bound = self.learning_rate, self.correction(ctx), scalars["bound"]
        shrunk = 1.0 if self.weight_decay is None else 1 + rate * self.weight_decay
        value = self.average(ctx.extra["value"], scalars["value"], ctx)
        slope = self.average(measured["slope"].sum(), scalars["slope"], ctx)
        at, square = measured["at"].sum(), measured["square"].sum()
        reached = shrunk * (value - slope) + at
        if self.adapt_lower_bound:
            lower = jnp.maximum(reached / (2 * shrunk * rho), self.lower_bound)
            bound = jnp.where(reached < shrunk * rho * bound, lower, bound)
        gap = jnp.maximum(reached - shrunk * rho * bound, 0)
        tau = jnp.minimum(rate / rho, ratio(gap, square))
        if self.adapt_lower_bound:
            found = (value - slope + at - 0.5 * tau * square) / rho
            # One that has overflowed would stay for ever.
            bound = jnp.where(jnp.isfinite(found), jnp.maximum(found, self.lower_bound), bound)
        return {"value": value, "slope": slope, "bound": bound, "tau": tau}

    def update(self, grad, slots, param, ctx):
        _, direction, new = self.moments(grad, slots, ctx)
        step = scaled(direction, -ctx.scalars["tau"])
        if self.weight_decay is None or not ctx.selected:
            return step, new
        decay = self.learning_rate * self.weight_decay
        return (step - decay * param) / (1 + decay), new


@dataclass(frozen=True)
class MoMoAdam(MoMo):
    """Adam with a step size from a model of the loss: the average of all tangents so far.

        μ ← β₁μ + (1-β₁)g,   ν ← β₂ν + (1-β₂)g²,   D = √(ν/(1-β₂ᵗ)) + ε
        f̄ ← β₁f̄ + (1-β₁)f,   c ← β₁c + (1-β₁)⟨g, θ⟩,   ρ = 1-β₁ᵗ
        τ = min(η/ρ, max((1+ηλ)(f̄ - ρf* - c) + ⟨μ, θ⟩, 0)/⟨μ, μ/D⟩)
        θ ← (θ - τμ/D)/(1 + ηλ)

    learning_rate: η >= 0, the largest step size: rather too large than too small.
    beta: β₁ in [0, 1), the decay rate of the first moment, and of f̄ and c.
    b2: β₂ in [0, 1), the decay rate of the second moment.
    eps: ε >= 0, against division by zero.
    """

    paper = SCHAIPP

    learning_rate: NonNegative = 1e-2
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    bias_correction: bool = True
    slots = {"mu": Slot(), "nu": Slot(nonnegative=True)}

    def moments(self, grad, slots, ctx):
        mu = ctx.store("mu", ema(bounded(grad), slots["mu"], self.beta))
        nu = ctx.store("nu", second_moment(grad, slots["nu"], self.b2))
        root = denominator(quotient(nu, bias_correction(self.b2, ctx.step)), self.eps)
        return mu, quotient(mu, root), {"mu": mu, "nu": nu}


@composed(Polyak, renamed={"scaling": "learning_rate"})
def polyak_sgd(
    max_learning_rate: Any = 1.0,
    scaling: Any = 1.0,
    f_min: Any = 0.0,
    eps: Any = 0.0,
    variant: str = "sps",
) -> Transformation:
    """Gradient descent with Polyak's step size: `update` needs value=loss.

        θ ← θ - s·min((f - f*)/(‖g‖² + ε), γ)·g

    scaling: s >= 0, a number or a schedule. optax takes ‖sg‖ in place of ‖g‖, so that the step grows where
      s falls.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx, params = aj.polyak_sgd(), jnp.array([1.0, 2.0, 3.0])
      >>> updates, _ = tx.update(2 * params, tx.init(params), params, value=jnp.sum(params**2))
      >>> [round(float(x), 3) for x in updates]  # Halfway to the minimum.
      [-0.5, -1.0, -1.5]
    """
    rule = Polyak(f_min, max_learning_rate, eps, variant)
    return build(polyak_sgd, rule, LearningRate(scaling))


@preconditioner(Polyak)
def scale_by_polyak(
    f_min: Any = 0.0, max_learning_rate: Any = 1.0, eps: Any = 0.0, variant: str = "sps"
) -> Transformation:
    """Polyak's step size for a chain. See `polyak_sgd`."""
    ...


@composed(StochasticPolyak)
def sps(
    max_learning_rate: Any = 1.0,
    c: Any = 0.5,
    f_min: Any = 0.0,
    eps: Any = 0.0,
    variant: str = "sps+",
    *,
    growth_rate: Any = None,
) -> Transformation:
    """Gradient descent with the stochastic Polyak step size: `update` needs value=loss.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.sps(10.0, c=0.2)
      sps(max_learning_rate=10.0, c=0.2, f_min=0.0, eps=0.0)
    """
    rule = StochasticPolyak(f_min, max_learning_rate, eps, variant, c, growth_rate)
    return build(sps, rule, LearningRate(1.0))


@composed(MoMo, weight_decay=0.0)
def momo(
    learning_rate: Any = 1.0,
    beta: Any = 0.9,
    lower_bound: Any = 0.0,
    weight_decay: Any = 0.0,
    adapt_lower_bound: bool = False,
    *,
    bias_correction: bool = False,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Momentum that finds its step size below η from the loss: `update` needs value=loss.

    Other than `optax.contrib.momo`, and as in the paper: the step is divided by 1 + ηλ too, and all numbers
    of all arrays are in float32 at least.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.momo()
      momo(learning_rate=1.0, beta=0.9, lower_bound=0.0)
    """
    rule = MoMo(
        learning_rate=learning_rate,
        beta=beta,
        lower_bound=lower_bound,
        weight_decay=none_if_zero(weight_decay),
        mask=mask,
        adapt_lower_bound=adapt_lower_bound,
        bias_correction=bias_correction,
    )
    return build(momo, rule, storage=storage)


@composed(MoMoAdam, weight_decay=0.0)
def momo_adam(
    learning_rate: Any = 1e-2,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    lower_bound: Any = 0.0,
    weight_decay: Any = 0.0,
    adapt_lower_bound: bool = False,
    *,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Adam that finds its step size below η from the loss: `update` needs value=loss.

    Other than `optax.contrib.momo_adam`, and as in the paper: the step is divided by 1 + ηλ too, and all
    numbers of all arrays are in float32 at least.

    b1: β₁ in [0, 1), the decay rate of the first moment, and of f̄ and c.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.momo_adam()
      momo_adam(learning_rate=0.01, b1=0.9, b2=0.999, eps=1e-08, lower_bound=0.0)
    """
    rule = MoMoAdam(
        learning_rate=learning_rate,
        beta=b1,
        lower_bound=lower_bound,
        weight_decay=none_if_zero(weight_decay),
        mask=mask,
        adapt_lower_bound=adapt_lower_bound,
        b2=b2,
        eps=eps,
    )
    return build(momo_adam, rule, storage=storage)


momo_adam.fields = {"b1": "beta"}  # type: ignore[attr-defined]
