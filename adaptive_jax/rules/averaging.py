"""Averages of the parameters, to evaluate with: each is the last rule of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax

from .._core.arguments import whole
from .._core.hyper import Decay, Fraction, NonNegative
from .._core.rule import Rule, Slot
from .._core.transformation import Transformation
from ..maths import bias_correction, complement, scaled
from ._factory import Paper, preconditioner


@dataclass(frozen=True)
class Averaging(Rule):
    """What all averages with a weight for the newest parameters share.

        θ̄ ← (1-w)θ̄ + wθ

    θ are the parameters after the step, which is handed on as it came.
    """

    slots = {"average": Slot("param")}
    needs_params = True
    owns_rate = True  # A learning rate behind it would make its θ another one.
    learning_rate_field = None
    counts_steps = True

    def weight(self, ctx):
        """w."""
        raise NotImplementedError

    def update(self, grad: Any, slots: Any, param: Any, ctx: Any) -> Any:
        new, weight = param + grad, self.weight(ctx)
        return grad, {"average": scaled(slots["average"], 1 - weight) + scaled(new, weight)}

    def evaluate(self, param, slots, ctx):
        return slots["average"]


@dataclass(frozen=True)
class Average(Averaging):
    """The exponential moving average of the parameters.

        θ̄ ← βθ̄ + (1-β)θ, divided by 1-βᵗ: without the parameters before the first step

    decay: β in [0, 1): the average is that of about the last 1/(1-β) steps.
    bias_correction: False for an average that starts from the parameters before the first step.
    warmup: True for β ← min(β, (1+t)/(10+t)): while it is short, the run is not older than its average.
    """

    paper = Paper("Polyak & Juditsky 1992", "https://doi.org/10.1137/0330046")

    decay: Decay = 0.999
    bias_correction: bool = True
    warmup: bool = False

    def weight(self, ctx):
        weight = complement(self.decay)
        if self.bias_correction:
            weight = weight / bias_correction(self.decay, ctx.step)
        if self.warmup:
            step = ctx.step.astype(weight.dtype)
            weight = jnp.maximum(weight, 9 / (10 + step))
        return weight


@dataclass(frozen=True)
class PolynomialAverage(Averaging):
    """An average in which later parameters count for more, as tᵞ: the one for DoG.

        θ̄ ← (1-w)θ̄ + wθ,   w = (1+γ)/(t+γ)

    gamma: γ >= 0: 0 for the mean of all, 8 for about the last tenth.
    """

    paper = Paper("Shamir & Zhang 2013", "https://proceedings.mlr.press/v28/shamir13.html")

    gamma: NonNegative = 8.0

    def weight(self, ctx):
        return (1 + self.gamma) / (ctx.step.astype(self.gamma.dtype) + self.gamma)


@dataclass(frozen=True)
class TailAverage(Averaging):
    """The mean of all parameters after the first steps.

        θ̄ ← (1-w)θ̄ + wθ,   w = 1/(t-T),   and 1 up to step T

    start: T >= 0, the steps that are left out; 0 for the mean of all.
    """

    paper = Paper("Jain et al. 2018", "https://jmlr.org/papers/v18/16-595.html")

    start: NonNegative = 0.0

    def weight(self, ctx):
        return 1 / jnp.maximum(ctx.step.astype(self.start.dtype) - self.start, 1)


@dataclass(frozen=True)
class AveragedDescent(Rule):
    """Gradient descent whose step size falls, and the mean of its parameters, as PyTorch's ASGD has them.

        θ ← θ - ηₜ(g + λθ),   ηₜ₊₁ = η/(1 + ληt)^α
        θ̄ ← θ̄ + wₜ(θ - θ̄),   wₜ₊₁ = 1/max(1, t - t₀),   w₁ = 1

    learning_rate: η = η₁ >= 0.
    lambd: λ >= 0.
    power: α >= 0.
    start: t₀ >= 0, the step after which parameters are averaged.
    """

    paper = Paper("Polyak & Juditsky 1992", "https://doi.org/10.1137/0330046")

    learning_rate: NonNegative
    lambd: NonNegative = 1e-4
    power: NonNegative = 0.75
    start: NonNegative = 1e6
    slots = {"ax": Slot("param")}
    scalars = {"eta": "learning_rate", "mu": 1.0}
    needs_params = True
    owns_rate = True
    counts_steps = True

    def learning_rate_at(self, step):
        taken = jnp.asarray(step - 1, jnp.result_type(self.learning_rate))
        return self.learning_rate / (1 + self.lambd * self.learning_rate * taken) ** self.power

    def advance(self, scalars, measured, ctx):
        averaged = jnp.maximum(ctx.step.astype(scalars["mu"].dtype) - self.start, 1)
        return {
            "eta": self.learning_rate_at(ctx.step + 1),
            "mu": 1 / averaged,
            "rate": scalars["eta"],
            "weight": scalars["mu"],
        }

    def update(self, grad: Any, slots: Any, param: Any, ctx: Any) -> Any:
        rate, weight = ctx.scalars["rate"], ctx.scalars["weight"]
        step = scaled(grad + self.lambd * param, -rate)
        new, old = param + step, slots["ax"]
        average = jnp.where(weight == 1, new, old + scaled(new - old, weight))
        return step, {"ax": ctx.store("ax", average)}

    def evaluate(self, param, slots, ctx):
        return slots["ax"]


@dataclass(frozen=True)
class LatestAverage(Rule):
    """LAWA: the mean of the parameters at some latest steps.

        θ̄ = (θ₁ + … + θₖ)/k of the last k of the steps 1, n+1, 2n+1, …

    count: k, a whole number, 1 or more: so many copies of the parameters are kept.
    every: n, a whole number, 1 or more.
    """

    paper = Paper("Kaddour 2022", "https://arxiv.org/abs/2209.14981")

    count: int = 5
    every: int = 100
    needs_params = True
    owns_rate = True
    learning_rate_field = None
    counts_steps = True

    def __post_init__(self):
        super().__post_init__()
        for name in ("count", "every"):
            number = whole(name, getattr(self, name), 1, f" in {type(self).__name__}")
            object.__setattr__(self, name, number)

    @property
    def slots(self):
        def stacked(param):
            return jnp.broadcast_to(param, (self.count, *param.shape))

        return {"latest": Slot(stacked, shape=lambda shape: (self.count, *shape))}

    def update(self, grad: Any, slots: Any, param: Any, ctx: Any) -> Any:
        place = (ctx.step - 1) // self.every % self.count

        def placed(latest, new, place):
            return lax.dynamic_update_index_in_dim(latest, new, place, 0)

        latest = ctx.refresh(self.every, placed, slots["latest"], param + grad, place)
        return grad, {"latest": latest}

    def evaluate(self, param, slots, ctx):
        held = jnp.minimum((ctx.step - 1) // self.every + 1, self.count)
        places = lax.broadcasted_iota(jnp.int32, slots["latest"].shape, 0)
        weights = (places < held).astype(param.dtype) / held.astype(param.dtype)
        return jnp.sum(weights * slots["latest"], 0)


@dataclass(frozen=True)
class Lookahead(Rule):
    """k steps forward, one step back: of the slow parameters φ.

        every k steps φ ← φ + α(θ - φ),   θ ← φ

    sync_period: k, a whole number, 1 or more.
    slow_step_size: α in [0, 1].
    """

    paper = Paper("Zhang et al. 2019", "https://arxiv.org/abs/1907.08610", "algorithm 1")

    sync_period: int = 5
    slow_step_size: Fraction = 0.5
    slots = {"slow": Slot("param")}
    needs_params = True
    owns_rate = True
    learning_rate_field = None

    def __post_init__(self):
        super().__post_init__()
        period = whole("sync_period", self.sync_period, 1, f" in {type(self).__name__}")
        object.__setattr__(self, "sync_period", period)

    def update(self, grad: Any, slots: Any, param: Any, ctx: Any) -> Any:
        is_due, slow = ctx.step % self.sync_period == 0, slots["slow"]
        moved = slow + self.slow_step_size * (param + grad - slow)
        slow = ctx.store("slow", jnp.where(is_due, moved, slow))
        return jnp.where(is_due, slow - param, grad), {"slow": slow}

    def evaluate(self, param, slots, ctx):
        return slots["slow"]


@preconditioner(Average)
def average(
    decay: Any = 0.999,
    *,
    bias_correction: bool = True,
    warmup: bool = False,
    storage: Any = None,
) -> Transformation:
    """The exponential moving average of the parameters, to evaluate with: the last of a chain.

    Give it to `TrainState.create(params, tx, average=aj.average(0.999))`, or put it behind an optimizer;
    `aj.eval_params` takes it out.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx, params = aj.chain(aj.sgd(0.5), aj.average(0.5)), jnp.ones(())
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update(params, state, params)
      ...     params = params + updates
      >>> print(f"{params} {aj.eval_params(tx, params, state):.4f}")  # of 0.5 and 0.25
      0.25 0.3333
    """
    ...


@preconditioner(PolynomialAverage)
def polynomial_average(gamma: Any = 8.0, *, storage: Any = None) -> Transformation:
    """An average in which later parameters count for more, to evaluate with: the last of a chain.

    It is what the authors of DoG evaluate with: see `dog`, and `average` for how to use it.
    """
    ...


@preconditioner(TailAverage)
def tail_average(start: Any = 0.0, *, storage: Any = None) -> Transformation:
    """The mean of all parameters after the first steps, to evaluate with: the last of a chain.

    See `average` for how to use it.
    """
    ...


@preconditioner(LatestAverage)
def latest_average(count: int = 5, every: int = 100, *, storage: Any = None) -> Transformation:
    """The mean of the parameters at some latest steps, to evaluate with: the last of a chain. LAWA.

    See `average` for how to use it.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.latest_average(3, every=10)
      latest_average(count=3, every=10)
    """
    ...
