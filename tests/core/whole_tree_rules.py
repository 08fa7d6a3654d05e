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


def inner(x, y):
    """⟨x, y⟩ of two real arrays."""
    return jnp.sum(x * y)


def root(decay):
    """√b, with 1 - √b = (1-b)/(1 + √b)."""
    value = jnp.sqrt(decay.value)
    return aj.maths.DecayRate(value, decay.complement / (1 + value))


@dataclass(frozen=True)
class Prodigy(aj.Rule):
    """Adam that finds its step size: Mishchenko & Defazio 2024, https://arxiv.org/abs/2306.06101."""

    learning_rate: aj.NonNegative = 1.0
    b1: aj.Decay = 0.9
    b2: aj.Decay = 0.999
    eps: aj.NonNegative = 1e-8
    d0: aj.NonNegative = 1e-6
    slots = {
        "mu": aj.Slot(),
        "nu": aj.Slot(nonnegative=True),
        "s": aj.Slot(),
        "start": aj.Slot("param", constant=True),
    }
    scalars = {"d": "d0", "r": 0.0}
    needs_params = True
    takes_complex = False
    owns_rate = True

    def measure(self, grad, slots, param, ctx):
        return {"r": inner(grad, slots["start"] - param), "s": jnp.sum(jnp.abs(slots["s"]))}

    def advance(self, scalars, measured, ctx):
        d = jnp.maximum(scalars["d"], ratio(scalars["r"], measured["s"].sum()))
        r = self.learning_rate * d**2 * measured["r"].sum()
        return {"d": d, "r": ema(r, scalars["r"], root(self.b2))}

    def update(self, grad, slots, param, ctx):
        d, rate = ctx.scalars["d"], self.learning_rate
        mu = ctx.store("mu", ema(d * bounded(grad), slots["mu"], self.b1))
        nu = ctx.store("nu", second_moment(d * grad, slots["nu"], self.b2))
        s = ctx.store("s", ema(rate * d**2 * grad, slots["s"], root(self.b2)))
        return -rate * d * mu / denominator(nu, d * self.eps), {"mu": mu, "nu": nu, "s": s}


@dataclass(frozen=True)
class DistanceOverGradients(aj.Rule):
    """DoG, and L-DoG where it is layerwise: Ivgi et al. 2023, https://arxiv.org/abs/2302.12022."""

    r_eps: aj.NonNegative = 1e-6
    eps: aj.NonNegative = 1e-8
    layerwise: Any = False
    slots = {"start": aj.Slot("param", constant=True)}
    scalars = {"distance": 0.0, "norm": 0.0}
    needs_params = True

    def measure(self, grad, slots, param, ctx):
        start = slots["start"]
        return {"grad": norm(grad), "start": norm(start), "moved": norm(param - start)}

    def advance(self, scalars, measured, ctx):
        norms = {name: norm(each) for name, each in measured.items()}
        least = self.r_eps * (1 + norms["start"])
        distance = jnp.maximum(scalars["distance"], jnp.maximum(least, norms["moved"]))
        total = norm(jnp.stack([scalars["norm"], norms["grad"]]))
        rate = distance / norm(jnp.stack([total, jnp.sqrt(self.eps)]))
        return {"distance": distance, "norm": total, "rate": rate}

    def update(self, grad, slots, param, ctx):
        return scaled(grad, -ctx.scalars["rate"]), {}


@dataclass(frozen=True)
class ScheduleFree(aj.Rule):
    """Any direction without a schedule: Defazio et al. 2024, https://arxiv.org/abs/2405.15682."""

    learning_rate: aj.NonNegative
    b1: aj.Hyper = 0.9
    warmup_steps: aj.NonNegative = 0.0
    slots = {"z": aj.Slot("param")}
    scalars = {"weight_sum": 0.0, "largest_rate": 0.0}
    needs_params = True
    owns_rate = True

    def advance(self, scalars, measured, ctx):
        step = ctx.step.astype(scalars["weight_sum"].dtype)
        rate = self.learning_rate * jnp.minimum(step / jnp.maximum(self.warmup_steps, 1), 1)
        largest = jnp.maximum(scalars["largest_rate"], rate)
        total = scalars["weight_sum"] + largest**2
        c = ratio(largest**2, total)
        return {"weight_sum": total, "largest_rate": largest, "rate": rate, "c": c}

    def evaluate(self, param, slots, ctx):
        return param + (1 / self.b1 - 1) * (param - slots["z"])

    def update(self, grad, slots, param, ctx):
        c, x = ctx.scalars["c"], self.evaluate(param, slots, ctx)
        z = ctx.store("z", slots["z"] - ctx.scalars["rate"] * grad)
        x = x + c * (z - x)
        return self.b1 * x + (1 - self.b1) * z - param, {"z": z}


@dataclass(frozen=True)
class Averaged(aj.Rule):
    """The moving average of the parameters, corrected for its start: Polyak & Juditsky 1992."""

    decay: aj.Decay = 0.5
    slots = {"average": aj.Slot("param")}
    needs_params = True

    def update(self, grad, slots, param, ctx):
        return grad, {"average": ema(param + grad, slots["average"], self.decay)}

    def evaluate(self, param, slots, ctx):
        return slots["average"]


@dataclass(frozen=True)
class RowsAndColumns(aj.Rule):
    """Adafactor's second moment of matrices, AdaGrad's of the rest: Shazeer & Stern 2018."""

    b2: aj.Decay = 0.9
    eps: aj.NonNegative = 1e-8
    slots = {
        "rows": aj.Slot(nonnegative=True, shape=lambda s: s[:-1] if len(s) == 2 else None),
        "columns": aj.Slot(nonnegative=True, shape=lambda s: s[1:] if len(s) == 2 else None),
        "nu": aj.Slot(nonnegative=True, shape=lambda s: None if len(s) == 2 else s),
    }
    takes_complex = False

    def update(self, grad, slots, param, ctx):
        if slots["rows"] is None:
            nu = ctx.store("nu", ema(grad**2, slots["nu"], self.b2))
            return grad / (jnp.sqrt(nu) + self.eps), {"rows": None, "columns": None, "nu": nu}
        rows = ctx.store("rows", ema(jnp.mean(grad**2, 1), slots["rows"], self.b2))
        columns = ctx.store("columns", ema(jnp.mean(grad**2, 0), slots["columns"], self.b2))
        nu = rows[:, None] * columns[None, :] / jnp.mean(rows)
        return grad / (jnp.sqrt(nu) + self.eps), {"rows": rows, "columns": columns, "nu": None}


def rows_of(shape):
    return (shape[-2], shape[-2]) if len(shape) > 1 else None


@dataclass(frozen=True)
class OneSidedShampoo(aj.Rule):
    """(GGᵀ summed)^(-1/4)·G, the root every k steps: Gupta et al. 2018, https://arxiv.org/abs/1802.09568."""

    every: int = 3
    eps: aj.NonNegative = 1e-4
    spread: bool = False
    slots = {
        "factor": aj.Slot(shape=rows_of),
        "root": aj.Slot(lambda param: jnp.eye(param.shape[-2], dtype=param.dtype), shape=rows_of),
    }
    takes_complex = False

    def inverse_root(self, old, factor):
        values, vectors = jnp.linalg.eigh(factor + self.eps * jnp.eye(len(factor)))
        return (vectors * (jnp.maximum(values, self.eps) ** -0.25)[None, :]) @ vectors.T

    def update(self, grad, slots, param, ctx):
        if slots["factor"] is None:
            return grad, {"factor": None, "root": None}
        factor = ctx.store("factor", slots["factor"] + grad @ grad.T)
        root = ctx.refresh(self.every, self.inverse_root, slots["root"], factor, spread=self.spread)
        root = ctx.store("root", root)
        return root @ grad, {"factor": factor, "root": root}
