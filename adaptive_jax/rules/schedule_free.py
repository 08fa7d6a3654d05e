"""Schedule-free optimizers: an average takes the place of a falling learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core import hyper
from .._core.hyper import Decay, NonNegative, Share, none_if_zero
from .._core.mask import Mask
from .._core.rule import Rule, Slot
from .._core.transform import build
from .._core.transformation import Transformation
from ..maths import bias_correction, bounded, denominator, quotient, ratio, scaled, second_moment
from ._descent import decays_by
from ._factory import Paper, composed, storage_of


@dataclass(frozen=True)
class ScheduleFree(Rule):
    """Any direction d without a schedule: y is trained, x is what to evaluate with.

        γ = η·min(1, t/T),   w = tʳ·max(γ)^p over all steps so far,   c = w/Σw
        z ← z - γd,   x ← (1-c)x + cz,   y ← (1-β)z + βx

    d is the direction at y. x is not kept, it is y + (1/β - 1)(y - z): see `aj.eval_params`. Statistics of
    a network's batch normalisation have to be made again for x.

    learning_rate: η >= 0. A schedule may rise; a falling one is not needed.
    warmup_steps: T >= 0, steps of a linear rise to η, the first one with η/T; None for none.
    b1: β in (0, 1], the share of the average in y; a number, for x is told from y and z by it.
    weight_lr_power: p >= 0: the steps of a warm-up count for less.
    r: r >= 0: later steps count for more.
    """

    paper = Paper("Defazio et al. 2024", "https://arxiv.org/abs/2405.15682")
    takes_any_rate = True

    learning_rate: NonNegative
    warmup_steps: NonNegative = None
    b1: Share = 0.9
    weight_lr_power: NonNegative = 2.0
    r: NonNegative = 0.0
    slots = {"z": Slot("param")}
    scalars = {"weight_sum": 0.0, "largest_rate": 0.0}
    needs_params = True
    owns_rate = True
    per_array = ("b1",)

    def __post_init__(self):
        super().__post_init__()
        if hyper.has_schedules(self.b1):
            raise TypeError(
                f"b1 is a schedule in {type(self).__name__}: the average x follows from y and z by it, "
                "and so it must be a number, or an array of shape ()."
            )

    def advance(self, scalars, measured, ctx):
        step, rate = ctx.step.astype(scalars["weight_sum"].dtype), self.learning_rate
        if self.warmup_steps is not None:
            rate = rate * jnp.minimum(step / jnp.maximum(self.warmup_steps, 1), 1)
        largest = jnp.maximum(scalars["largest_rate"], rate)
        weight = step**self.r * largest**self.weight_lr_power
        total = scalars["weight_sum"] + weight
        c = ratio(weight, total)
        return {"weight_sum": total, "largest_rate": largest, "rate": rate, "c": c}

    def update(self, grad: Any, slots: Any, param: Any, ctx: Any) -> Any:
        c, old = ctx.scalars["c"], slots["z"]
        z = ctx.store("z", old + self.step(grad, ctx.scalars["rate"]))
        # x in terms of y and z, and of what z has moved as it is stored: no division by β.
        return c * (old - param) + (1 - self.b1 * (1 - c)) * (z - old), {"z": z}

    def step(self, grad, rate):
        """What z goes by."""
        return scaled(grad, -rate)

    def evaluate(self, param, slots, ctx):
        return param + (1 / self.b1 - 1) * (param - slots["z"])


@dataclass(frozen=True)
class ScheduleFreeSteps(ScheduleFree):
    """The same for what gives steps: a whole optimizer, whose own learning rate is in them.

        w = tʳ·max(η)^p over all steps so far,   c = w/Σw
        z ← z + s,   x ← (1-c)x + cz,   y ← (1-β)z + βx

    learning_rate: η >= 0, the one that is in the steps s, for the weights.
    """

    paper = ScheduleFree.paper
    learning_rate_field = None

    def step(self, grad, rate):
        return grad


@dataclass(frozen=True)
class ScheduleFreeAdamW(ScheduleFree):
    """Adam's second moment, without a schedule and without a first moment.

        γ = η·min(1, t/T),   w = tʳ·max(γ)^p over all steps so far,   c = w/Σw
        ν ← β₂ν + (1-β₂)g²,   d = g/(√(ν/(1-β₂ᵗ)) + ε) + λy
        z ← z - γd,   x ← (1-c)x + cz,   y ← (1-β₁)z + β₁x

    The paper has the correction of ν in γ, and so in w; the authors' class has it here since 1.3.

    learning_rate: η >= 0, one to ten times Adam's.
    b1: β₁ in (0, 1], the share of the average in y; a number, for x is told from y and z by it.
    b2: β₂ in [0, 1), the decay rate of the second moment.
    eps: ε >= 0, against division by zero.
    weight_decay: the decoupled weight decay λ >= 0, of y.
    mask: which arrays decay: a tree of bools, a prefix of one, or a function of the parameters.
    """

    paper = Paper("Defazio et al. 2024", "https://arxiv.org/abs/2405.15682", "algorithm 1")

    learning_rate: NonNegative = 0.0025
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = None
    mask: Mask = None
    slots = {"nu": Slot(nonnegative=True), **ScheduleFree.slots}
    per_array = (*ScheduleFree.per_array, "b2", "eps", "weight_decay")

    def update(self, grad, slots, param, ctx):
        nu = ctx.store("nu", second_moment(grad, slots["nu"], self.b2))
        root = denominator(quotient(nu, bias_correction(self.b2, ctx.step)), self.eps)
        direction = quotient(bounded(grad), root)
        if self.weight_decay is not None and ctx.selected:
            direction = direction + self.weight_decay * param
        update, new = super().update(direction, slots, param, ctx)
        return update, {"nu": nu, **new}


@dataclass(frozen=True)
class EvenScheduleFreeAdamW(Rule):
    """The same as Keras has it: all steps count alike, and y alone decays.

        γ = η·min(1, t/T),   c = 1/t,   ν ← β₂ν + (1-β₂)g²,   y ← (1-ηλ)y
        x = (y - (1-β₁)z)/β₁,   z ← z - γg/(√(ν/(1-β₂ᵗ)) + ε)
        x ← (1-c)x + cz,   y ← (1-β₁)z + β₁x

    learning_rate: η >= 0.
    warmup_steps: T >= 0, steps of a linear rise to η; None for none.
    b1: β₁ in (0, 1], the share of the average in y.
    b2: β₂ in [0, 1), the decay rate of the second moment.
    eps: ε >= 0, against division by zero.
    weight_decay: λ >= 0; None for none.
    mask: which arrays decay: a tree of bools, a prefix of one, or a function of the parameters.
    """

    paper = ScheduleFreeAdamW.paper

    learning_rate: NonNegative = 0.0025
    warmup_steps: NonNegative = None
    b1: Share = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = None
    mask: Mask = None
    slots = {"nu": Slot(nonnegative=True), "z": Slot("param")}
    needs_params = True
    owns_rate = True

    def update(self, grad: Any, slots: Any, param: Any, ctx: Any) -> Any:
        step = ctx.step.astype(self.learning_rate.dtype)
        rate, c, old = self.learning_rate, 1 / step, slots["z"]
        decay = jnp.zeros_like(param)
        if self.weight_decay is not None and ctx.selected:
            decay = scaled(param, rate * self.weight_decay)
        if self.warmup_steps is not None:
            rate = rate * jnp.minimum(step / jnp.maximum(self.warmup_steps, 1), 1)
        nu = ctx.store("nu", second_moment(grad, slots["nu"], self.b2))
        root = denominator(quotient(nu, bias_correction(self.b2, ctx.step)), self.eps)
        z = ctx.store("z", old - scaled(quotient(bounded(grad), root), rate))
        # As in `ScheduleFree`, from a y that has decayed.
        moved = c * (old - (param - decay)) + (1 - self.b1 * (1 - c)) * (z - old)
        return moved - decay, {"nu": nu, "z": z}

    def evaluate(self, param, slots, ctx):
        return param + (1 / self.b1 - 1) * (param - slots["z"])


@composed(ScheduleFree, learning_rate=1.0)
def schedule_free_sgd(
    learning_rate: Any = 1.0,
    warmup_steps: Any = None,
    b1: Any = 0.9,
    weight_decay: Any = None,
    weight_lr_power: Any = 2.0,
    state_dtype: Any = None,
    *,
    r: Any = 0.0,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Gradient descent without a schedule: evaluate with `aj.eval_params`.

        γ = η·min(1, t/T),   w = tʳ·max(γ)^p over all steps so far,   c = w/Σw
        z ← z - γ(g + λy),   x ← (1-c)x + cz,   y ← (1-β)z + βx

    The average x takes the place of momentum and of a falling learning rate. Other than
    `optax.contrib.schedule_free_sgd`: the first step of a warm-up is not 0, weights belong to their own
    step, and all sums are in float32 at least.

    learning_rate: η >= 0.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> tx, params = aj.schedule_free_sgd(0.5), jnp.array([1.0, 2.0])
      >>> state = tx.init(params)
      >>> for _ in range(100):
      ...     updates, state = tx.update(params, state, params)
      ...     params = params + updates
      >>> bool(jnp.abs(aj.eval_params(tx, params, state)).max() < 0.1)
      True
    """
    values = {"storage": storage, "state_dtype": state_dtype}
    rule = ScheduleFree(learning_rate, warmup_steps, b1, weight_lr_power, r)
    decay = decays_by(schedule_free_sgd, weight_decay, mask)
    return build(schedule_free_sgd, *decay, rule, storage=storage_of(values))


@composed(ScheduleFreeAdamW, weight_decay=0.0)
def schedule_free_adamw(
    learning_rate: Any = 0.0025,
    warmup_steps: Any = None,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    weight_lr_power: Any = 2.0,
    state_dtype: Any = None,
    *,
    r: Any = 0.0,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """AdamW without a schedule: evaluate with `aj.eval_params`.

    It needs a warm-up of some percent of all steps. Other than `optax.contrib.schedule_free_adamw`: the
    first step of a warm-up is not 0, weights belong to their own step, and all sums are in float32 at
    least.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx, params = aj.schedule_free_adamw(0.2, warmup_steps=5), jnp.array([1.0, 2.0])
      >>> state = tx.init(params)
      >>> for _ in range(100):
      ...     updates, state = tx.update(params, state, params)
      ...     params = params + updates
      >>> bool(jnp.abs(aj.eval_params(tx, params, state)).max() < 0.5)
      True
    """
    values = {"storage": storage, "state_dtype": state_dtype}
    rule = ScheduleFreeAdamW(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        b1=b1,
        weight_lr_power=weight_lr_power,
        r=r,
        b2=b2,
        eps=eps,
        weight_decay=none_if_zero(weight_decay),
        mask=mask,
    )
    return build(schedule_free_adamw, rule, storage=storage_of(values))
