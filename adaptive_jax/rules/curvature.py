"""Steps by the diagonal of the Hessian, which an estimator gives to `train_step(gradient=…)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core.hyper import Decay, Limit, NonNegative
from .._core.rule import Rule, Slot
from .._core.transformation import Transformation
from ..maths import bias_correction, bounded, ema, least_denominator, second_moment, square_root
from ._descent import optimizer
from ._factory import Paper, preconditioner

ESTIMATED = {"hessian_diagonal": "array", "has_hessian_diagonal": "number"}
"""What an estimator gives: an estimate ĥ, and whether there is one in this step."""


def has_estimate(ctx):
    """Whether there is an estimate in this step: what is in its place is not to be looked at."""
    return ctx.extra["has_hessian_diagonal"].astype(bool)


@dataclass(frozen=True)
class Sophia(Rule):
    """A momentum divided by the curvature, in steps of one size at most in every coordinate.

        μ ← β₁μ + (1-β₁)g,   ν ← β₂ν + (1-β₂)ĥ at the steps with an estimate ĥ
        d = min(max(μ/max(γν, ε), -c), c)

    b1: β₁ in [0, 1), the decay rate of the momentum, which has no bias correction. The paper's Sophia-H
      has 0.96.
    b2: β₂ in [0, 1), the decay rate of the curvature, per estimate.
    eps: ε >= 0, the least curvature; where the estimate is negative, too, the step has its largest size.
    gamma: γ >= 0. The paper has 0.01 for Hutchinson's estimates, 0.05 for those of Gauss, Newton and
      Bartlett. It is right where a tenth to a half of all elements are not clipped.
    clip_threshold: c >= 0, the largest step before the learning rate; infinite for none.
    eps_in_max: False for d = min(max(μ/(γν + ε), -c), c): as the authors' SophiaG, with ε = 1e-15 and γ its
      ρ; of estimates that are never negative.
    """

    paper = Paper("Liu et al. 2024", "https://arxiv.org/abs/2305.14342", "algorithm 3")

    b1: Decay = 0.965
    b2: Decay = 0.99
    eps: NonNegative = 1e-12
    gamma: NonNegative = 0.01
    clip_threshold: Limit = 1.0
    eps_in_max: bool = True
    slots = {"mu": Slot(), "nu": Slot()}
    extra_args = ESTIMATED
    takes_complex = False

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(grad, slots["mu"], self.b1))
        new = ema(ctx.extra["hessian_diagonal"], slots["nu"], self.b2)
        nu = ctx.store("nu", jnp.where(has_estimate(ctx), new, slots["nu"]))
        curvature, eps = self.gamma * nu, jnp.maximum(self.eps, least_denominator(nu.dtype))
        ratio = mu / (jnp.maximum(curvature, eps) if self.eps_in_max else curvature + eps)
        direction = jnp.clip(ratio, -self.clip_threshold, self.clip_threshold)
        return direction + 0 * mu, {"mu": mu, "nu": nu}  # What is not finite stays visible.


@dataclass(frozen=True)
class AdaHessian(Rule):
    """Adam with the diagonal of the Hessian in place of the gradient in the second moment.

        μ ← β₁μ + (1-β₁)g,   ν ← β₂ν + (1-β₂)D² at the steps with an estimate ĥ
        d = μ̂/(√ν̂^k + ε),   μ̂ = μ/(1-β₁ᵗ),   ν̂ = ν/(1-β₂ⁿ)

    D is ĥ, averaged over some axes; n is the number of estimates so far.

    b1: the decay rate β₁ of the first moment, in [0, 1).
    b2: the decay rate β₂ of the second moment, in [0, 1), per estimate. It is one number for all arrays.
    eps: ε >= 0, against division by zero.
    hessian_power: k >= 0, how much of the curvature there is in a step: 1 for all of it.
    average_axes: over which axes D is averaged, by the number of axes that an array has: the windows of
      convolutions in Flax's layout are {3: (0,), 4: (0, 1)}, in PyTorch's {3: (2,), 4: (2, 3)}; each row of
      a matrix, as in the authors' code, {2: (1,)}. None for none.
    average_sizes: True for D = |ĥ|, averaged: as the authors' code; the paper averages ĥ with its sign.
    """

    paper = Paper("Yao et al. 2021", "https://arxiv.org/abs/2006.00719", "algorithm 1")

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-4
    hessian_power: NonNegative = 1.0
    average_axes: Any = None
    average_sizes: bool = False
    slots = {"mu": Slot(), "nu": Slot(nonnegative=True)}
    scalars = {"correction": 0.0}
    extra_args = ESTIMATED
    takes_complex = False

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "average_axes", _axes_by_ndim(self.average_axes))

    def advance(self, scalars, measured, ctx):
        old = scalars["correction"]
        new = ema(jnp.ones_like(old), old, self.b2)
        return {"correction": jnp.where(has_estimate(ctx), new, old)}

    def update(self, grad, slots, param, ctx):
        diagonal = ctx.extra["hessian_diagonal"]
        if axes := dict(self.average_axes or ()).get(grad.ndim):
            diagonal = jnp.abs(diagonal) if self.average_sizes else diagonal
            diagonal = jnp.broadcast_to(diagonal.mean(axes, keepdims=True), grad.shape)
        mu = ctx.store("mu", ema(bounded(grad), slots["mu"], self.b1))
        new = second_moment(diagonal, slots["nu"], self.b2)
        nu = ctx.store("nu", jnp.where(has_estimate(ctx), new, slots["nu"]))
        correction = ctx.scalars["correction"]
        root = square_root(nu / jnp.where(correction > 0, correction, 1))
        # The root of 0 is a little more, and with a small power much more.
        size = jnp.where(nu > 0, root**self.hessian_power, 0)
        mean = mu / bias_correction(self.b1, ctx.step)
        direction = mean / (size + jnp.maximum(self.eps, least_denominator(nu.dtype)))
        return direction, {"mu": mu, "nu": nu}


def _axes_by_ndim(given: Any) -> Any:
    """Axes by numbers of axes, as pairs, which hash. A ValueError for axes that there are not."""
    if given is None:
        return None
    pairs = given.items() if isinstance(given, Mapping) else given
    found: tuple[Any, ...] = ()
    try:
        found = tuple(sorted((ndim, tuple(axes)) for ndim, axes in pairs))
        missing = [n for n, axes in found if not axes or not all(-n <= axis < n for axis in axes)]
    except (TypeError, ValueError):
        missing = [None]
    if missing:
        raise ValueError(
            f"average_axes={given!r} in AdaHessian must be a dict from the number of axes that arrays have "
            "to some of these axes, a tuple of whole numbers: {4: (0, 1)}."
        )
    return found


@optimizer(Sophia)
def sophia(
    learning_rate: Any,
    b1: Any = 0.965,
    b2: Any = 0.99,
    eps: Any = 1e-12,
    weight_decay: Any = 0.1,
    mask: Any = None,
    gamma: Any = 0.01,
    clip_threshold: Any = 1.0,
    *,
    mu_dtype: Any = None,
    eps_in_max: bool = True,
    storage: Any = None,
) -> Transformation:
    """Sophia: the sign of a momentum where the loss is flat, and Newton's step where it is curved.

    The estimator makes it Sophia-H, `train_step(…, gradient=aj.hutchinson(every=10))`, or Sophia-G, with
    `aj.gauss_newton_bartlett`; it says how often there is a new estimate. A bare `update` gets
    `hessian_diagonal`, a tree like the parameters, and `has_hessian_diagonal`, whether it is to be used.

    Differs from `optax.contrib.sophia`: an estimate counts in the step that made it, so that the first step
    knows the curvature; the momentum has no bias correction; ε is the paper's, λ that of the authors'
    code (the paper's experiments have 0.2).

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> tx = aj.sophia(0.1, gamma=1.0, weight_decay=0.0)
      >>> step = aj.train_step(lambda w, batch: jnp.sum(batch * w**2), gradient=aj.hutchinson(every=10))
      >>> state = aj.TrainState.create(jnp.ones(2), tx, rng=jax.random.key(0))
      >>> print(step(state, jnp.array([0.0, 5.0]))[0].params)
      [1.  0.9]
    """
    ...


@preconditioner(Sophia)
def scale_by_sophia(
    b1: Any = 0.965,
    b2: Any = 0.99,
    eps: Any = 1e-12,
    gamma: Any = 0.01,
    clip_threshold: Any = 1.0,
    *,
    mu_dtype: Any = None,
    eps_in_max: bool = True,
    storage: Any = None,
) -> Transformation:
    """Sophia's direction for a chain. See `sophia`."""
    ...


@optimizer(AdaHessian)
def adahessian(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-4,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    hessian_power: Any = 1.0,
    average_axes: Any = None,
    average_sizes: bool = False,
    mu_dtype: Any = None,
    storage: Any = None,
) -> Transformation:
    """AdaHessian, with `train_step(…, gradient=aj.hutchinson())`; its authors' learning rate is 0.15.

    An estimator that is due every k steps alone is fine as well. A bare `update` gets `hessian_diagonal`,
    a tree like the parameters, and `has_hessian_diagonal`, whether it is to be used.

    Differs from the authors' code: nothing is averaged if `average_axes` does not say so.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> step = aj.train_step(lambda w, batch: jnp.sum(batch * w**2), gradient=aj.hutchinson())
      >>> state = aj.TrainState.create(jnp.ones(2), aj.adahessian(0.5, eps=0.0), rng=jax.random.key(0))
      >>> print(step(state, jnp.array([1.0, 50.0]))[0].params.round(5))
      [0.5 0.5]
    """
    ...


@preconditioner(AdaHessian)
def scale_by_adahessian(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-4,
    *,
    hessian_power: Any = 1.0,
    average_axes: Any = None,
    average_sizes: bool = False,
    mu_dtype: Any = None,
    storage: Any = None,
) -> Transformation:
    """AdaHessian's direction for a chain. See `adahessian`."""
    ...
