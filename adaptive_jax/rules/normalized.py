"""Directions whose length is that of nothing but the array: NovoGrad and Fromage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core.hyper import Decay, NonNegative, none_if_zero
from .._core.mask import Mask
from .._core.rule import Rule, Slot
from .._core.storage import named
from .._core.transform import build
from .._core.transformation import Transformation
from ..maths import decayed_sum, denominator, ema, largest_squared, norm, quotient, scaled
from ._descent import decays_by, descend
from ._factory import Paper, composed
from .clipping import clipped


@dataclass(frozen=True)
class NovoGrad(Rule):
    """Momentum of gradients that are divided by an average of the norm of their array.

        ν ← β₂ν + (1-β₂)‖g‖² (‖g‖² at first),   μ ← β₁μ + g/(√(ν + ε_root) + ε) + λθ,   d = μ

    ‖g‖ is that of the one array, and ν one number. The first version of the paper has β₂ = 0.25, which is
    optax's, the last one β₁ = 0.95, β₂ = 0.98.

    b1: the decay β₁ of the momentum, in [0, 1).
    b2: the decay rate β₂ of the squared norm, in [0, 1).
    eps: ε >= 0, against division by zero.
    eps_root: ε_root >= 0, added inside the root; > 0 to differentiate through the update.
    weight_decay: the weight decay λ, >= 0, which enters the momentum; None or 0 for none. With one,
      `update` needs the parameters.
    grad_averaging: True for μ ← β₁μ + (1-β₁)(…): an average, as in the authors' package.
    """

    paper = Paper("Ginsburg et al. 2019", "https://arxiv.org/abs/1905.11286", "algorithm 1")

    b1: Decay = 0.9
    b2: Decay = 0.25
    eps: NonNegative = 1e-6
    eps_root: NonNegative = 0.0
    weight_decay: NonNegative = None
    mask: Mask = None
    grad_averaging: bool = False
    slots = {"mu": Slot(), "nu": Slot(nonnegative=True, shape=lambda shape: ())}
    state_type_name = "ScaleByNovogradState"

    @property
    def needs_params(self):
        return self.weight_decay is not None

    def update(self, grad, slots, param, ctx):
        size, largest = norm(grad), jnp.full_like(self.eps, largest_squared(self.eps.dtype))
        square = jnp.minimum(size, largest) ** 2
        moved = ema(square, slots["nu"], self.b2)
        nu = ctx.store("nu", jnp.where(ctx.step == 1, square, moved))
        direction = quotient(clipped(grad, size, largest), denominator(nu, self.eps, self.eps_root))
        if self.weight_decay is not None and ctx.selected:
            direction = direction + self.weight_decay * param
        if self.grad_averaging:
            mu = ema(direction, slots["mu"], self.b1)
        else:
            mu = decayed_sum(direction, slots["mu"], self.b1.value)
        mu = ctx.store("mu", mu)
        return mu, {"mu": mu, "nu": nu}


@dataclass(frozen=True)
class Fromage(Rule):
    """Each array turns by the same angle, and keeps its norm where gradients have no part along it.

        θ ← (θ - η·max(‖θ‖, m)/max(‖g‖, m)·g)/√(1 + η²),   norms of the one array

    learning_rate: η, >= 0: the tangent of the angle; 0.01 in the paper.
    min_norm: the smallest norm m >= 0 that an array, or a gradient, counts as.
    """

    paper = Paper("Bernstein et al. 2020", "https://arxiv.org/abs/2002.03432", "algorithm 1")
    needs_params = True
    owns_rate = True
    takes_any_rate = True

    learning_rate: NonNegative
    min_norm: NonNegative = 1e-6

    def update(self, grad, slots, param: Any, ctx):
        largest = jnp.finfo(self.min_norm.dtype).max
        of_grad, of_param = (jnp.clip(norm(x), self.min_norm, largest) for x in (grad, param))
        of_grad = jnp.maximum(of_grad, jnp.finfo(of_grad.dtype).tiny)  # With m = 0, 0/0 is 0.
        root = jnp.sqrt(1 + self.learning_rate**2)
        shrinkage = self.learning_rate**2 / (root * (1 + root))  # 1 - 1/√(1 + η²)
        step = scaled(quotient(grad, of_grad), of_param * self.learning_rate / root)
        return -step - scaled(param, shrinkage), {}


@composed(NovoGrad, weight_decay=0.0)
def novograd(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.25,
    eps: Any = 1e-6,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    *,
    mask: Any = None,
    grad_averaging: bool = False,
    storage: Any = None,
) -> Transformation:
    """NovoGrad: momentum of gradients over an average of their norm, one number for each array."""
    decay = none_if_zero(weight_decay)
    rule = NovoGrad(b1, b2, eps, eps_root, decay, mask, grad_averaging)
    return descend(novograd, rule, learning_rate, None, None, storage)


@composed(NovoGrad, eps=1e-8, weight_decay=0.0)
def scale_by_novograd(
    b1: Any = 0.9,
    b2: Any = 0.25,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    mu_dtype: Any = None,
    *,
    mask: Any = None,
    grad_averaging: bool = False,
    storage: Any = None,
) -> Transformation:
    """NovoGrad's direction for a chain. See `novograd`."""
    decay = none_if_zero(weight_decay)
    rule = NovoGrad(b1, b2, eps, eps_root, decay, mask, grad_averaging)
    storage = named.with_dtype(storage, "mu", mu_dtype)
    return build(scale_by_novograd, rule, storage=storage)


@composed(Fromage)
def fromage(
    learning_rate: Any,
    min_norm: Any = 1e-6,
    *,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Fromage: descent by angles, for deep networks. `update` needs the parameters.

    Without gradients it shrinks the parameters all the same, by 1/√(1 + η²).
    """
    decay = decays_by(fromage, weight_decay, mask, learning_rate=learning_rate)
    return build(fromage, Fromage(learning_rate, min_norm), *decay, storage=storage)
