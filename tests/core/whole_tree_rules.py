"""Rules that see the whole tree, as their papers write them: what the contract of a rule must carry.

They are for tests alone, which import them from here: none has been tuned, and their options are few.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

import adaptive_jax as aj
from adaptive_jax.maths import (
    bias_correction,
    bounded,
    denominator,
    ema,
    norm,
    ratio,
    scaled,
    second_moment,
)


@dataclass(frozen=True)
class StochasticPolyak(aj.Rule):
    """min((f - f*)/(c‖g‖²), γ)·g: Loizou et al. 2021, https://arxiv.org/abs/2002.10542."""

    scaling: aj.NonNegative = 0.5
    maximum: aj.NonNegative = 1.0
    lower_bound: aj.Hyper = 0.0
    extra_args = {"value": "number"}

    def measure(self, grad, slots, param, ctx):
        return {"norm": norm(grad)}

    def advance(self, scalars, measured, ctx):
        gap = jnp.maximum(ctx.extra["value"] - self.lower_bound, 0)
        rate = ratio(gap, self.scaling * norm(measured["norm"]) ** 2)
        return {"rate": jnp.minimum(rate, self.maximum)}

    def update(self, grad, slots, param, ctx):
        return scaled(grad, -ctx.scalars["rate"]), {}


@dataclass(frozen=True)
class AdaGradNorm(aj.Rule):
    """g/√(b² + Σ‖g‖²), of all arrays or of each: Ward et al. 2019, https://arxiv.org/abs/1806.01811."""

    b: aj.NonNegative = 0.1
    layerwise: Any = False
    scalars = {"total": "first"}

    @property
    def first(self):
        return self.b**2

    def measure(self, grad, slots, param, ctx):
        return {"square": norm(grad) ** 2}

    def advance(self, scalars, measured, ctx):
        total = scalars["total"] + measured["square"].sum()
        return {"total": total, "rate": 1 / jnp.sqrt(total)}

    def update(self, grad, slots, param, ctx):
        return scaled(grad, ctx.scalars["rate"]), {}


@dataclass(frozen=True)
class Cautious(aj.Rule):
    """The steps that go against the gradient are left out: Liang et al. 2024, arXiv 2411.16085."""

    needs_gradient = True

    def measure(self, grad, slots, param, ctx):
        agrees = (grad * ctx.gradient > 0).astype(grad.dtype)
        return {"agree": agrees.sum(), "size": float(grad.size)}

    def advance(self, scalars, measured, ctx):
        return {"factor": measured["size"].sum() / jnp.maximum(measured["agree"].sum(), 1)}

    def update(self, grad, slots, param, ctx):
        agrees = (grad * ctx.gradient > 0).astype(grad.dtype)
        return scaled(grad * agrees, ctx.scalars["factor"]), {}


@dataclass(frozen=True)
class AdaHessian(aj.Rule):
    """Adam with the diagonal of the Hessian for its second moment: Yao et al. 2021, arXiv 2006.00719."""

    b1: aj.Decay = 0.9
    b2: aj.Decay = 0.999
    eps: aj.NonNegative = 1e-8
    slots = {"mu": aj.Slot(), "nu": aj.Slot(nonnegative=True)}
    extra_args = {"hessian_diagonal": "array"}

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(bounded(grad), slots["mu"], self.b1))
        nu = ctx.store("nu", second_moment(ctx.extra["hessian_diagonal"], slots["nu"], self.b2))
        mean = mu / bias_correction(self.b1, ctx.step)
        root = denominator(nu / bias_correction(self.b2, ctx.step), self.eps)
        return mean / root, {"mu": mu, "nu": nu}


@dataclass(frozen=True)
class Sums(aj.Rule):
    """Mechanic's kind of state, a small vector: sums of the gradient's norm with many memories."""

    betas: tuple[float, ...] = (0.5, 0.9, 0.99)
    start: aj.NonNegative = 0.25
    scalars = {"sums": "firsts"}

    @property
    def firsts(self):
        return (self.start,) * len(self.betas)

    def measure(self, grad, slots, param, ctx):
        return {"norm": norm(grad)}

    def advance(self, scalars, measured, ctx):
        betas = jnp.array(self.betas, measured["norm"].dtype)
        return {"sums": betas * scalars["sums"] + norm(measured["norm"])}

    def update(self, grad, slots, param, ctx):
        return scaled(grad, 1 / ctx.scalars["sums"].sum()), {}
