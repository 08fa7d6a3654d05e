"""Second moments of matrices that are kept as their rows and columns: Adafactor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._core.arguments import one_of
from .._core.hyper import Decay, NonNegative, mapped, none_if_zero
from .._core.mask import Mask
from .._core.rule import Rule, Slot
from .._core.storage import named
from .._core.transform import build
from .._core.transformation import Transformation
from ..maths import (
    DecayRate,
    abs_squared,
    bounded,
    clamped,
    ema,
    least_denominator,
    quotient,
    root_mean_square,
    scaled,
    square_root,
)
from ..schedules import relative_step_schedule
from ._descent import VELOCITIES, decays_by
from ._factory import Paper, composed
from .clipping import ClipByBlockRms
from .layerwise import ScaleByBlockRms
from .momentum import Ema
from .scaling import Identity, LearningRate

ADAFACTOR = Paper("Shazeer & Stern 2018", "https://arxiv.org/abs/1804.04235", "algorithm 6")


@dataclass(frozen=True)
class FactoredRms(Rule):
    """The gradient over the root of recent squares, of which rows and columns are kept.

        β̂ₜ = 1 - t^(-c)
        R ← β̂ₜR + (1-β̂ₜ)·mean over columns of g² + ε₁
        C ← β̂ₜC + (1-β̂ₜ)·mean over rows of g² + ε₁
        d = g/√V,   V = R·C/mean(R)

    The state of a matrix is a number for each row and each column. A vector, and an array that is not
    factored, keeps V itself, V ← β̂ₜV + (1-β̂ₜ)(g² + ε₁). Of more axes than two, those that are no rows
    and no columns count matrices. What an array has not is one 0, as in optax.

    factored: False to keep V itself for all arrays.
    decay_rate: the exponent c >= 0 of β̂ₜ: 0.8 in the paper. The first β̂ is 0, so that nothing needs a bias
      correction.
    decay_offset: the step after which t counts from 1, for fine-tuning; t is 1 up to there.
    min_dim_size_to_factor: how long rows and columns must be for an array to be factored: 128, or 0 for
      all with two axes or more.
    eps: ε₁ >= 0, added to each g².
    factored_axes: "largest" for the two longest axes: the columns are the longest, and of equals
      the last are taken. "last" for the last two: rows and columns, as in PyTorch and Keras.
    decay_cap: the largest β̂ₜ, in [0, 1): 0.999 in big_vision; None for none.
    decay_rate_fn: a function of (t - 1, c) to take for β̂ₜ, known when the rule is made; None for the
      paper's.
    """

    paper = ADAFACTOR

    factored: bool = True
    decay_rate: NonNegative = 0.8
    decay_offset: NonNegative = 0
    min_dim_size_to_factor: int = 128
    eps: NonNegative = 1e-30
    factored_axes: str = "largest"
    decay_cap: Decay = None
    decay_rate_fn: Callable[[Any, Any], Any] | None = None
    state_type_name = "FactoredState"

    def __post_init__(self):
        super().__post_init__()
        one_of("factored_axes", self.factored_axes, ("largest", "last"))

    def axes(self, shape):
        """The axes of rows and of columns; None for an array that is not factored."""
        if not self.factored or len(shape) < 2:
            return None
        in_order = (
            np.argsort(shape, kind="stable")
            if self.factored_axes == "largest"
            else range(len(shape))
        )
        rows, columns = map(int, in_order[-2:])
        return (
            None
            if min(shape[rows], shape[columns]) < self.min_dim_size_to_factor
            else (rows, columns)
        )

    @property
    def slots(self):
        def without(place):
            return lambda shape: (
                (1,)
                if (axes := self.axes(shape)) is None
                else tuple(np.delete(shape, axes[place]).tolist())
            )

        return {
            "v_row": Slot(nonnegative=True, shape=without(1)),
            "v_col": Slot(nonnegative=True, shape=without(0)),
            "v": Slot(nonnegative=True, shape=lambda shape: (1,) if self.axes(shape) else shape),
        }

    @property
    def exponent(self):
        """That of t in 1 - β̂ₜ, which is what PyTorch and Keras call the decay of β₂."""
        return -self.decay_rate

    def squared(self, grad):
        """g² + ε₁."""
        least = least_denominator(jnp.finfo(grad.dtype).dtype) ** 2
        return abs_squared(clamped(grad)) + jnp.maximum(self.eps, least)

    def held(self, x, least):
        """What is divided by, and no smaller than it may be: √V, and the mean of R."""
        return x

    def root(self, x):
        """√x, of averages of those squares."""
        return jnp.sqrt(x)

    def decay(self, step, dtype):
        """β̂ₜ, with 1 - β̂ₜ = t^(-c)."""
        step = jnp.maximum(step.astype(dtype) - self.decay_offset, 1)
        weight = step**-self.decay_rate
        if self.decay_rate_fn is not None:
            weight = 1 - self.decay_rate_fn(step - 1, self.decay_rate)
        if self.decay_cap is not None:
            weight = jnp.maximum(weight, 1 - self.decay_cap)
        return DecayRate(1 - weight, weight)

    def update(self, grad, slots, param, ctx):
        real, axes = jnp.finfo(grad.dtype).dtype, self.axes(grad.shape)
        beta, least = self.decay(ctx.step, real), least_denominator(real)
        square = self.squared(grad)
        if axes is None:
            v = ctx.store("v", ema(square, slots["v"], beta))
            root = self.held(self.root(v), least)
            return quotient(bounded(grad), root), {**slots, "v": v}

        def mean(x, axis):  # Divided before it is added up: the sum could overflow.
            return jnp.sum(x / x.shape[axis], axis)

        rows, columns = axes
        v_row = ctx.store("v_row", ema(mean(square, columns), slots["v_row"], beta))
        v_col = ctx.store("v_col", ema(mean(square, rows), slots["v_col"], beta))
        of_rows = jnp.expand_dims(v_row, columns)
        # The roots one by one: of zero gradients, the square of a mean is too small for a derivative.
        mean_row = self.held(jnp.expand_dims(mean(of_rows, rows), rows), least**2)
        share = self.root(of_rows) / self.root(mean_row)
        root = self.held(share * self.root(jnp.expand_dims(v_col, rows)), least)
        return quotient(bounded(grad), root), {"v_row": v_row, "v_col": v_col, "v": slots["v"]}


@dataclass(frozen=True)
class HeldFactoredRms(FactoredRms):
    """The same as PyTorch has it: what is divided by is held at ε₁, which is not added to each g².

        R ← β̂ₜR + (1-β̂ₜ)·mean over columns of g²,   C ← β̂ₜC + (1-β̂ₜ)·mean over rows of g²
        d = g/max(√V, ε₁),   V = R·C/max(mean(R), ε₁)

    eps: ε₁ >= 0; None for that of the dtype of the maths, 1.2e-7 in float32.
    """

    paper = ADAFACTOR

    eps: NonNegative = None

    def squared(self, grad):
        return abs_squared(clamped(grad))

    def root(self, x):
        return square_root(x)

    def held(self, x, least):
        eps = jnp.finfo(x.dtype).eps if self.eps is None else self.eps
        return jnp.maximum(x, jnp.maximum(eps, least).astype(x.dtype))


@dataclass(frozen=True)
class RelativeStep(Rule):
    """Adafactor's step in PyTorch and Keras: in the units of the array, at most 1/√t of it.

        θ ← θ - ηλθ - ρₜ·max(ε₂, RMS(θ))·d,   ρₜ = min(η, 1/√t)

    learning_rate: η >= 0.
    min_scale: ε₂ >= 0, the least size that parameters count as.
    weight_decay: λ >= 0; None for none.
    mask: which arrays decay: a tree of bools, a prefix of one, or a function of the parameters.
    decays_first: True for RMS((1-ηλ)θ), as in Keras.
    """

    paper = ADAFACTOR

    learning_rate: NonNegative
    min_scale: NonNegative = 1e-3
    weight_decay: NonNegative = None
    mask: Mask = None
    decays_first: bool = False
    counts_steps = True
    needs_params = True

    def learning_rate_at(self, step):
        def at_most(rate):
            return jnp.minimum(rate, jnp.asarray(step, jnp.result_type(rate)) ** -0.5)

        return mapped(at_most, super().learning_rate_at(step))

    def update(self, grad, slots, param: Any, ctx):
        size, rate = root_mean_square(param), self.learning_rate_at(ctx.step)
        if self.weight_decay is None or not ctx.selected:
            return scaled(grad, -rate * jnp.maximum(self.min_scale, size)), {}
        decay = self.learning_rate * self.weight_decay
        if self.decays_first:
            size = jnp.abs(1 - decay) * size
        step = scaled(grad, rate * jnp.maximum(self.min_scale, size))
        return -step - scaled(param, decay), {}


@composed(FactoredRms)
def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: Any = 0.8,
    step_offset: Any = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: Any = 1e-30,
    decay_rate_fn: Callable[[Any, Any], Any] | None = None,
    *,
    factored_axes: str = "largest",
    decay_cap: Any = None,
    storage: Any = None,
) -> Transformation:
    """Adafactor's direction for a chain, without its step size and its clipping. See `adafactor`.

    step_offset: the step after which t counts from 1, for fine-tuning; t is 1 up to there.
    epsilon: ε₁ >= 0, added to each g².

    Example:
      >>> import adaptive_jax as aj
      >>> aj.chain(aj.scale_by_factored_rms(decay_rate=0.7), aj.scale_by_learning_rate(0.1))
      ... # doctest: +ELLIPSIS
      chain(scale_by_factored_rms(decay_rate=0.7, ...), scale_by_learning_rate(learning_rate=0.1))
    """
    rule = FactoredRms(
        factored, decay_rate, step_offset, min_dim_size_to_factor, epsilon, factored_axes, decay_cap,
        decay_rate_fn,
    )  # fmt: skip
    return build(scale_by_factored_rms, rule, storage=storage)


scale_by_factored_rms.fields = {"step_offset": "decay_offset", "epsilon": "eps"}  # type: ignore[attr-defined]


@composed(FactoredRms)
def adafactor(
    learning_rate: Any = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Any = 0.8,
    decay_offset: Any = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Any = 1.0,
    momentum: Any = None,
    dtype_momentum: Any = None,
    weight_decay: Any = None,
    eps: Any = 1e-30,
    factored: bool = True,
    mask: Any = None,
    *,
    min_scale: Any = 1e-3,
    velocity: str = "steps",
    factored_axes: str = "largest",
    decay_cap: Any = None,
    storage: Any = None,
) -> Transformation:
    """Adafactor: Adam's step for the memory of a row and a column, in the units of the parameters.

        V ≈ β̂ₜV + (1-β̂ₜ)(g² + ε₁),   β̂ₜ = 1 - t^(-c),   by its rows and columns
        U = g/√V,   Û = U/max(1, RMS(U)/d)
        θ ← θ - ρₜ·max(ε₂, RMS(θ))·Û,   ρₜ = min(10⁻², 1/√t) or η

    Of an m × n matrix it keeps m + n numbers, of a vector V itself; see `aj.rules.FactoredRms`. With
    momentum the last line's step, or all of it but ρₜ, is averaged: m ← γm + (1-γ)·step. Weight decay
    takes ρₜλθ, or ηλθ, and stays out of that.

    What people run: T5, the schedule of the learning rate 1/√max(t, 10⁴) or 0.001 for fine-tuning,
    `decay_offset` the step where that begins. big_vision's ViTs: `multiply_by_parameter_scale=False`,
    `clipping_threshold=None`, `momentum=0.9`, `velocity="gradients"`, `dtype_momentum="bfloat16"`,
    `decay_cap=0.999`, `min_dim_size_to_factor=32`. PyTorch and Keras factor the last two axes of every
    array with two or more: `factored_axes="last"`, `min_dim_size_to_factor=0`.

    In optax, `learning_rate=None` is no relative step: ρ is 1, and a step moves by all of RMS(θ). Its
    weight decay is not multiplied by the learning rate.

    learning_rate: η >= 0 in the place of ρₜ; None for the relative step, the schedule
      `aj.schedules.relative_step_schedule()`.
    multiply_by_parameter_scale: False for α = ρₜ, without the size of the parameters.
    clipping_threshold: the largest root mean square d that U may have; None for no limit.
    momentum: the decay γ of a moving average, in [0, 1); None for none.
    dtype_momentum: the dtype of that average, float32 at least if None.
    min_scale: ε₂ >= 0, the least size that parameters count as.
    velocity: "steps" or "gradients": whether the learning rate enters the average or comes after it.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> tx = aj.adafactor()
      >>> tx  # doctest: +ELLIPSIS
      adafactor(learning_rate=relative_step_schedule(), ..., decay_rate=0.8, ...)
      >>> state = jax.eval_shape(tx.init, jnp.zeros((1024, 512)))
      >>> sum(x.size for x in jax.tree.leaves(state))  # 1024 + 512, two counts, a 0 where V would be
      1539
    """
    one_of("velocity", velocity, VELOCITIES)
    rate = relative_step_schedule() if learning_rate is None else learning_rate
    rules: list[Rule] = [
        FactoredRms(
            factored,
            decay_rate,
            decay_offset,
            min_dim_size_to_factor,
            eps,
            factored_axes,
            decay_cap,
        )
    ]
    if clipping_threshold is not None:
        rules.append(ClipByBlockRms(clipping_threshold))
    scale = [ScaleByBlockRms(min_scale)] if multiply_by_parameter_scale else []
    average = [] if momentum is None else [Ema(momentum, debias=False)]
    if velocity == "steps":
        rules += [LearningRate(rate), *scale, *average]
    else:
        rules += [*scale, *average, LearningRate(rate)]
    decay = none_if_zero(weight_decay)
    last = () if decay is None else decays_by(adafactor, decay, mask, learning_rate=rate)
    options: dict[str, Any] = {} if velocity == "steps" else {"velocity": velocity}
    if not multiply_by_parameter_scale:
        options["multiply_by_parameter_scale"] = False
    if clipping_threshold is None:
        options["clipping_threshold"] = None
    storage = named.with_dtype(storage, "ema", dtype_momentum) if average else storage
    return build(adafactor, *rules, *last, Identity(), storage=storage, **options)


adafactor.fields = {"clipping_threshold": "threshold", "momentum": "Ema.decay"}  # type: ignore[attr-defined]
