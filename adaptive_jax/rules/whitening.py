"""White directions: preconditioners that are fitted until the elements of a gradient are uncorrelated."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._core.arguments import one_of, whole
from .._core.hyper import Decay, Fraction
from .._core.rule import Rule, Slot
from .._core.transformation import Transformation
from ..maths import (
    bias_correction,
    bounded,
    ema,
    least_denominator,
    product,
    quotient,
    random_normal,
)
from ._descent import optimizer
from ._factors import one_by_one
from ._factory import Paper, preconditioner

DAMPING = 2.0**-11.5
"""The share of noise in a gradient to which a preconditioner is fitted: √ε of float32."""


@dataclass(frozen=True)
class PsgdKron(Rule):
    """Momentum, whitened by a triangular matrix on either side; these are fitted to it on the way.

        μ ← β₁μ + (1-β₁)g,   G = μ̂ + √ε·mean|μ̂|·V,   V ~ N(0, I)
        A = LGRᵀ,   B = L⁻ᵀVR⁻¹
        L ← L - ρ·triu(AAᵀ - BBᵀ)L/‖AAᵀ + BBᵀ‖,   R ← R - ρ·triu(AᵀA - BᵀB)R/‖AᵀA + BᵀB‖
        P = LᵀLμ̂RᵀR,   d = P/max(1, RMS(P)/1.1)

    At rest P is as white as the probe V. L and R begin as identities; ε is 2⁻²³, and ‖·‖ a lower bound of
    the spectral norm. The code of the authors, psgd_jax, in its version of December 2024, with two
    differences: each fit, and not one out of 100, ends with a number on L and its inverse on R that make
    their largest elements equal, which leaves all else as it is; and there is no fit to zeros, for which L
    and R would grow for ever. An array with more than two axes is many matrices, each with its own L, R and
    RMS, unless `axes` says otherwise. Of vectors and single numbers, R is diagonal and there is no L.

    b1: the decay rate β₁ of the momentum, in [0, 1).
    preconditioner_update_probability: p, the share of the steps with a fit, from 0 to 1: one comes when 1/p
      steps have passed since the last. None for 1 in 500 steps, then exp(-(t - 500)/1000) till it is 0.03.
    preconditioner_lr: ρ from 0 to 1, how far a fit goes.
    max_size: L, or R, is diagonal for more rows, or columns, than that; 1 or more.
    memory_save_mode: "one_diag" for a diagonal on the longer side; "all_diag" on both.
    momentum_into_precond_update: False for G of g in place of μ̂.
    axes: which axes of an array are rows and columns: `aj.MatrixAxes(…)`, None for the last two, or a dict
      from regular expressions for paths to some.
    """

    paper = Paper("Li 2019", "https://arxiv.org/abs/1809.10232", "as of PSGD Kron")

    b1: Decay = 0.9
    preconditioner_update_probability: Fraction = None
    preconditioner_lr: Fraction = 0.1
    max_size: int = 8192
    memory_save_mode: str | None = None
    momentum_into_precond_update: bool = True
    axes: Any = None
    scalars = {"update_counter": 0.0}
    per_array = ("b1", "preconditioner_lr")
    counts_steps = True
    matrix = takes_vectors = True
    takes_complex = False

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "max_size", whole("max_size", self.max_size, 1))
        if self.memory_save_mode is not None:
            one_of("memory_save_mode", self.memory_save_mode, ("one_diag", "all_diag"))

    @property
    def slots(self):
        factors = {
            name: Slot(
                functools.partial(self.first_factor, axis),
                shape=functools.partial(self.factor_shape, axis),
            )
            for name, axis in (("left", -2), ("right", -1))
        }
        return {"mu": Slot(), **factors}

    def factor_shape(self, axis, shape):
        """(…, m, m) of the factor for an axis of matrices (…, m, n), or (…, m) where it is diagonal."""
        if len(shape) < 2:
            return (math.prod(shape),) if axis == -1 else None
        size, other = shape[axis], shape[-3 - axis]
        is_longer = size > other or (size == other and axis == -1)
        saves = ("all_diag", "one_diag") if is_longer else ("all_diag",)
        is_diagonal = self.memory_save_mode in saves or size > self.max_size or size == 1
        return (*shape[:-2], size) if is_diagonal else (*shape[:-2], size, size)

    def first_factor(self, axis, param):
        shape: Any = self.factor_shape(axis, param.shape)
        is_diagonal = len(shape) < max(2, param.ndim)
        return 1.0 if is_diagonal else jnp.eye(shape[-1])

    def advance(self, scalars, measured, ctx):
        probability, counter = self.preconditioner_update_probability, scalars["update_counter"] + 1
        if probability is None:
            step = ctx.step.astype(counter.dtype)
            probability = jnp.clip(jnp.exp((500 - step) / 1000), 0.03, 1.0)
        due = counter >= 1 / probability
        return {"update_counter": jnp.where(due, 0, counter), "due": due}

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(bounded(grad), slots["mu"], self.b1))
        momentum = as_matrix(quotient(mu, bias_correction(self.b1, ctx.step)))
        seen = momentum if self.momentum_into_precond_update else as_matrix(bounded(grad))
        factors = [
            x if x is None or x.ndim == seen.ndim else x[..., None]  # A diagonal, as a column.
            for x in (slots["left"], slots["right"])
        ]
        factors = ctx.refresh(ctx.scalars["due"], self.fitted, factors, seen, ctx.key)
        new = {"mu": mu}
        for name, factor in zip(("left", "right"), factors, strict=True):
            stored: Any = None if factor is None else factor.reshape(slots[name].shape)
            new[name] = ctx.store(name, stored)
        return whitened(factors, momentum).reshape(grad.shape), new

    def fitted(self, factors, gradient, key):
        """L and R, one step closer to those that make a gradient as white as a probe."""
        gradient, size = in_units(gradient)
        probe = random_normal(gradient.shape, key, gradient.dtype)
        mean = jnp.mean(jnp.abs(gradient), (-2, -1), keepdims=True)
        a, size_a = in_units(on_both_sides(times, factors, gradient + DAMPING * mean * probe))
        b, size_b = in_units(on_both_sides(solved, factors, probe))
        # Only the proportion of A to B counts: this way nothing overflows.
        proportion = size * size_a / size_b
        a, b = a * jnp.minimum(proportion, 1), b * jnp.minimum(1 / proportion, 1)
        # Not to zeros, for which nothing would hold L and R back.
        rate = jnp.where(mean > 0, self.preconditioner_lr, 0)
        left, right = stepped(factors[0], a, b, rate), stepped(factors[1], a.mT, b.mT, rate)
        if left is None:
            return [left, right]
        # The same largest element for both, and the same product.
        ratio = jnp.sqrt(in_units(right)[1] / in_units(left)[1])
        return [left * ratio, right / ratio]


def whitened(factors: Any, momentum: jax.Array) -> jax.Array:
    """P/max(1, RMS(P)/1.1) of P = LᵀLμ̂RᵀR."""
    momentum, size = in_units(momentum)
    a, size_a = in_units(on_both_sides(times, factors, momentum))
    p, size_p = in_units(on_both_sides(times_transposed, factors, a))
    mean = jnp.mean(p * p, (-2, -1), keepdims=True)
    least = jnp.finfo(p.dtype).eps ** 2  # It is that of zeros alone.
    return p * jnp.minimum(size * size_a * size_p, 1.1 / jnp.sqrt(jnp.maximum(mean, least)))


def stepped(factor: Any, a: jax.Array, b: jax.Array, rate: jax.Array) -> Any:
    """Q - ρ·triu(AAᵀ - BBᵀ)Q/‖AAᵀ + BBᵀ‖, of Q or of its diagonal as a column."""
    if factor is None:
        return None
    if is_diagonal(factor):
        a, b = squares(a.mT).mT, squares(b.mT).mT
        return factor - rate * (a - b) / jnp.max(a + b, -2, keepdims=True) * factor
    a, b = product(a, a.mT), product(b, b.mT)
    return factor - rate * product(jnp.triu(a - b), factor) / norm_bound(a + b)


def norm_bound(x: jax.Array) -> jax.Array:
    """A lower bound of the spectral norm of symmetric matrices, by the longest column of each."""
    x, size = in_units(x)
    longest = jnp.argmax(squares(x), -1)[..., None]
    y = product(x, jnp.take_along_axis(x, longest, -1))
    return size * jnp.sqrt(squares(product(x, y)) / squares(y))


def squares(x: jax.Array) -> jax.Array:
    """The sum of squares of each column."""
    return jnp.sum(x * x, -2, keepdims=True)


def on_both_sides(function: Callable[..., jax.Array], factors: Any, x: jax.Array) -> jax.Array:
    """QₗXQᵣᵀ, for a function of Q and X that is QX."""
    for factor in factors:
        x = (x if factor is None else function(factor, x)).mT
    return x


def times(factor: jax.Array, x: jax.Array) -> jax.Array:
    """QX."""
    return factor * x if is_diagonal(factor) else product(factor, x)


def times_transposed(factor: jax.Array, x: jax.Array) -> jax.Array:
    """QᵀX."""
    return factor * x if is_diagonal(factor) else product(factor.mT, x)


def solved(factor: jax.Array, x: jax.Array) -> jax.Array:
    """Q⁻ᵀX."""
    if is_diagonal(factor):
        return x / factor
    return one_by_one(_solved, factor, x)


def _solved(factor: jax.Array, x: jax.Array) -> jax.Array:
    return lax.linalg.triangular_solve(factor, x, left_side=True, lower=False, transpose_a=True)


def is_diagonal(factor: jax.Array) -> bool:
    """Whether a factor is the column of its diagonal."""
    return factor.shape[-1] == 1


def as_matrix(x: jax.Array) -> jax.Array:
    """A vector, or a number, as a matrix of one row."""
    return x if x.ndim > 1 else x.reshape(1, -1)


def in_units(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Matrices with a largest element of 1, and what it was in each; of next to nothing, as they are."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), (-2, -1), keepdims=True))
    size = jnp.where(largest > least_denominator(x.dtype) ** 2, largest, 1)
    return x / size, size


@optimizer(PsgdKron)
def psgd_kron(
    learning_rate: Any,
    b1: Any = 0.9,
    weight_decay: Any = 0.0,
    mask: Any = None,
    preconditioner_update_probability: Any = None,
    max_size: int = 8192,
    memory_save_mode: str | None = None,
    momentum_into_precond_update: bool = True,
    preconditioner_lr: Any = 0.1,
    mu_dtype: Any = None,
    *,
    axes: Any = None,
    storage: Any = None,
) -> Transformation:
    """PSGD with Kronecker factors: with a third of Adam's learning rate, 1e-3, and more weight decay."""
    ...


@preconditioner(PsgdKron)
def scale_by_psgd_kron(
    b1: Any = 0.9,
    preconditioner_update_probability: Any = None,
    max_size: int = 8192,
    memory_save_mode: str | None = None,
    momentum_into_precond_update: bool = True,
    preconditioner_lr: Any = 0.1,
    mu_dtype: Any = None,
    *,
    axes: Any = None,
    storage: Any = None,
) -> Transformation:
    """PSGD-Kron's direction for a chain. See `psgd_kron`."""
    ...
