"""Rules that see matrices, as users would write them, for tests alone; and the same in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

import adaptive_jax as aj
from adaptive_jax.maths import denominator, ema, second_moment

A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalized(x, steps):
    """UVᵀ of X = UΣVᵀ, roughly: some steps of Newton and Schulz."""
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / jnp.sqrt(jnp.sum(x * x, axis=(-2, -1), keepdims=True))
    for _ in range(steps):
        square = x @ x.mT
        x = A * x + (B * square + C * (square @ square)) @ x
    return x.mT if is_tall else x


@dataclass(frozen=True)
class Muon(aj.Rule):
    """Momentum, orthogonalized, whose length goes with the numbers of inputs and outputs."""

    b1: aj.Decay = 0.9
    steps: int = 5
    axes: Any = None
    slots = {"mu": aj.Slot()}
    matrix = True

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(grad, slots["mu"], self.b1))
        direction = ema(grad, mu, self.b1)
        inputs, outputs = grad.shape[-2:]
        return max(1, outputs / inputs) ** 0.5 * orthogonalized(direction, self.steps), {"mu": mu}


class MuonOfNumpy:
    """The same in float64, of one matrix or many, by their singular values."""

    def __init__(self, shape, b1=0.9, steps=5):
        self.mu, self.b1, self.steps = np.zeros(shape), b1, steps

    def update(self, grad):
        self.mu = self.b1 * self.mu + (1 - self.b1) * grad
        u, s, vt = np.linalg.svd(self.b1 * self.mu + (1 - self.b1) * grad, full_matrices=False)
        s = s / np.linalg.norm(s, axis=-1, keepdims=True)
        for _ in range(self.steps):
            s = A * s + B * s**3 + C * s**5
        inputs, outputs = grad.shape[-2:]
        return np.sqrt(max(1, outputs / inputs)) * (u * s[..., None, :]) @ vt


@dataclass(frozen=True)
class Adaptive(aj.Rule):
    """Adam without bias corrections: what is done to each element is the same in any layout."""

    b1: aj.Decay = 0.9
    b2: aj.Decay = 0.99
    axes: Any = None
    matrix: Any = True
    slots = {"mu": aj.Slot(), "nu": aj.Slot(nonnegative=True)}

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(grad, slots["mu"], self.b1))
        nu = ctx.store("nu", second_moment(grad, slots["nu"], self.b2))
        return mu / denominator(nu, 1e-8), {"mu": mu, "nu": nu}


@dataclass(frozen=True)
class Told(aj.Rule):
    """The sum of all that a rule is told of an array, and the largest row sum in the direction's units."""

    axes: Any = None
    matrix = True
    needs_gradient = needs_params = True
    extra_args = {"curvature": "array"}

    def measure(self, grad, slots, param, ctx):
        return {"most": jnp.max(jnp.sum(grad, -1)) + jnp.max(jnp.sum(ctx.gradient * param, -1))}

    def advance(self, scalars, measured, ctx):
        return {"most": measured["most"].max()}

    def update(self, grad, slots, param, ctx):
        outer = jnp.sum(param, -1, keepdims=True) * jnp.sum(
            ctx.extra["curvature"], -2, keepdims=True
        )
        return outer + ctx.gradient + ctx.scalars["most"], {}


LARGEST = 8


def left_side(shape):
    return (*shape[:-2], shape[-2], shape[-2]) if shape[-2] <= LARGEST else None


@dataclass(frozen=True)
class Factored(aj.Rule):
    """Adafactor's second moment, of means of rows and of columns, after a mean of GGᵀ where it is small."""

    b2: aj.Decay = 0.9
    axes: Any = None
    slots = {
        "rows": aj.Slot(nonnegative=True, shape=lambda shape: shape[:-1]),
        "columns": aj.Slot(nonnegative=True, shape=lambda shape: (*shape[:-2], shape[-1])),
        "left": aj.Slot(lambda param: jnp.eye(param.shape[-2]), shape=left_side),
    }
    matrix = True

    def update(self, grad, slots, param, ctx):
        square = grad * grad
        rows = ctx.store("rows", ema(jnp.mean(square, -1), slots["rows"], self.b2))
        columns = ctx.store("columns", ema(jnp.mean(square, -2), slots["columns"], self.b2))
        left = slots["left"]
        if left is not None:
            left = ctx.store("left", ema(grad @ grad.mT, left, self.b2))
            grad = left @ grad
        mean = jnp.mean(rows, -1)[..., None, None]
        nu = rows[..., :, None] * columns[..., None, :] / mean
        return grad / jnp.sqrt(nu), {"rows": rows, "columns": columns, "left": left}


class FactoredOfNumpy:
    """The same in float64, of one matrix or many."""

    def __init__(self, shape, b2=0.9):
        self.b2, (*batch, m, n) = b2, shape
        self.rows, self.columns = np.zeros((*batch, m)), np.zeros((*batch, n))
        self.left = np.broadcast_to(np.eye(m), (*batch, m, m))

    def update(self, grad):
        def mean(old, new):
            return self.b2 * old + (1 - self.b2) * new

        self.rows = mean(self.rows, (grad**2).mean(-1))
        self.columns = mean(self.columns, (grad**2).mean(-2))
        nu = np.einsum("...i,...j->...ij", self.rows, self.columns)
        nu /= self.rows.mean(-1)[..., None, None]
        if grad.shape[-2] > LARGEST:
            return grad / np.sqrt(nu)
        self.left = mean(self.left, np.einsum("...ik,...jk->...ij", grad, grad))
        return self.left @ grad / np.sqrt(nu)


@dataclass(frozen=True)
class Centered(aj.Rule):
    """A step that leaves parameters as they are, evaluated without the mean of each row of a slot."""

    axes: Any = None
    slots = {"z": aj.Slot("param")}
    matrix = needs_params = True

    def update(self, grad, slots, param, ctx):
        return 0 * grad, {"z": ctx.store("z", slots["z"])}

    def evaluate(self, param, slots, ctx):
        return param - jnp.mean(slots["z"], -1, keepdims=True)
