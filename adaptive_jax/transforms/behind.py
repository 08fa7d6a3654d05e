"""Rules behind a whole optimizer, which tune, average or interpolate its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optax

from .._core.extra import FIRST_GRADIENT
from .._core.lifted import Lifted
from .._core.storage import named
from .._core.transform import transform
from .._core.transformation import Transformation, data_of, member
from .._core.wrapper import Wrapper
from ..rules.averaging import Averaging, LatestAverage, Lookahead
from ..rules.betting import Mechanic
from ..rules.schedule_free import ScheduleFreeSteps
from .chain import Chained, chain


def schedule_free(
    base_optimizer: optax.GradientTransformation,
    learning_rate: Any,
    b1: Any = 0.9,
    weight_lr_power: Any = 2.0,
    state_dtype: Any = None,
    *,
    r: Any = 0.0,
    storage: Any = None,
) -> Transformation:
    """Any optimizer without a schedule: its steps move z, their average x is what to evaluate with.

        z ← z + s,   x ← (1-c)x + cz,   y ← (1-β)z + βx,   c = w/Σw,   w = tʳ·max(η)^p

    s is the optimizer's step at y, which is what is trained. Take one without momentum, for y has its own:
    `aj.schedule_free(aj.adam(rate, b1=0.0), rate)`, or muon, soap and lion with b1=0.0; and a learning rate
    that may rise and does not fall. Other than `optax.contrib.schedule_free`: weights belong to their own
    step, and all sums are in float32 at least. For a direction without a learning rate, such as
    `aj.scale_by_lion()`, put `aj.transform(aj.rules.ScheduleFree(rate, warmup_steps=100))` behind it in an
    `aj.chain`.

    Args:
      base_optimizer: a whole optimizer.
      learning_rate: the η of it, >= 0: a number or the same schedule. It is for the weights.
      b1: β in (0, 1], the share of the average in y; a number, for x is told from y and z by it.
      weight_lr_power: p >= 0: the steps of a warm-up count for less.
      state_dtype: the dtype of z, float32 at least if None.
      r: r >= 0: later steps count for more.
      storage: how z is kept, see `transform`.

    Returns:
      The transformation, an `aj.chain` of both.

    Raises:
      TypeError, ValueError: for an argument of the wrong type or out of range, by name.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx, params = aj.schedule_free(aj.sgd(0.5), 0.5), jnp.array([1.0, 2.0])
      >>> state = tx.init(params)
      >>> for _ in range(100):
      ...     updates, state = tx.update(params, state, params)
      ...     params = params + updates
      >>> bool(jnp.abs(aj.eval_params(tx, params, state)).max() < 0.1)
      True
    """
    rule = ScheduleFreeSteps(learning_rate, b1=b1, weight_lr_power=weight_lr_power, r=r)
    storage = named.with_dtype(storage, "z", state_dtype)
    return chain(base_optimizer, transform(rule, storage=storage))


def mechanize(
    base_optimizer: optax.GradientTransformation,
    weight_decay: Any = 1e-2,
    eps: Any = 1e-8,
    s_init: Any = 1e-8,
    num_betas: int = 6,
    *,
    storage: Any = None,
) -> Transformation:
    """Mechanic: finds the scale of another optimizer's steps while it trains.

        h = ⟨g + λs‖g‖/‖θ‖·θ, Δ⟩,   Δ ← Δ + u,   θ ← θ₀ + sΔ

    u is the optimizer's step, whose learning rate is then a schedule with the peak 1, and s is what is
    found, see `aj.rules.Mechanic`. Other than `optax.contrib.mechanize`, and as in the paper: Δ is kept,
    and not told from parameters that were rounded; h is not clipped; the first scale is 1e-8; and all
    numbers of all arrays are in float32 at least.

    Args:
      base_optimizer: a whole optimizer, such as `aj.adamw(1.0)`.
      weight_decay: λ >= 0, of the scale: not the optimizer's own.
      eps: ε > 0, against division by zero.
      s_init: > 0, about the first scale.
      num_betas: how many rates of memory, 0.9, 0.99, …, bet: a whole number, 1 or more.
      storage: how Δ is kept, see `transform`.

    Returns:
      The transformation, an `aj.chain` of both.

    Raises:
      TypeError, ValueError: for an argument of the wrong type or out of range, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.mechanize(aj.sgd(1.0)).init(1.0)[1].s.shape
      (6,)
    """
    rule = transform(Mechanic(weight_decay, eps, s_init, num_betas), storage=storage)
    return Transformation.of(Mechanized(data_of(chain(base_optimizer, rule)).members))


@dataclass(frozen=True)
class Mechanized(Chained):
    """A chain whose last member bets on the gradient as it came to the chain, and not to one around it."""

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        extra_args[FIRST_GRADIENT] = updates
        return super().step(updates, state, params, **extra_args)

    def update_and_add(self, updates: Any, *rest: Any, **extra_args: Any) -> tuple[Any, Any]:
        """As that of every chain."""
        extra_args[FIRST_GRADIENT] = updates
        return super().update_and_add(updates, *rest, **extra_args)


def lookahead(
    fast_optimizer: optax.GradientTransformation,
    sync_period: int = 5,
    slow_step_size: Any = 0.5,
    *,
    storage: Any = None,
) -> Transformation:
    """k steps of an optimizer forward, one step back: evaluate with the slow parameters φ.

        every k steps φ ← φ + α(θ - φ),   θ ← φ

    Other than `optax.lookahead`, it takes the parameters as they are, and no pair of them: φ is in the
    state, and `aj.eval_params` takes it out.

    Args:
      fast_optimizer: a whole optimizer.
      sync_period: k, a whole number, 1 or more.
      slow_step_size: α in [0, 1].
      storage: how φ is kept, see `transform`.

    Returns:
      The transformation, an `aj.chain` of both.

    Raises:
      TypeError, ValueError: for an argument of the wrong type or out of range, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.lookahead(aj.sgd(0.1))
      chain(sgd(learning_rate=0.1), transform(Lookahead(sync_period=5, slow_step_size=0.5)))
    """
    rule = Lookahead(sync_period, slow_step_size)
    return chain(fast_optimizer, transform(rule, storage=storage))


def with_average(tx: Any, average: Any) -> Any:
    """The optimizer with an average of the parameters as the last of what sees their steps.

    That is inside of what skips, gathers or corrects steps: there, each step that comes is one of the
    parameters, and exact.
    """
    data = data_of(tx)
    if type(data) is Chained:
        *before, last = data.members
        if _is_around(data_of(last)):
            return chain(*before, with_average(last, average))
        return chain(*data.members, average)
    if _is_around(data):
        (inner,) = data.wrapped()
        return Transformation.of(data.with_wrapped([with_average(inner, average)]))
    return chain(member(tx, "TrainState.create"), average)


def average_of(tx: Any) -> Any | None:
    """The average that an optimizer ends with, where `with_average` puts it; None without one."""
    data = data_of(tx)
    if type(data) is Chained:
        return average_of(data.members[-1])
    if _is_around(data):
        return average_of(data.wrapped()[0])
    rules = data.rules if isinstance(data, Lifted) else ()
    is_one = bool(rules) and all(isinstance(rule, (Averaging, LatestAverage)) for rule in rules)
    return member(tx, "average_of") if is_one else None


def _is_around(data: Any) -> bool:
    """Whether it is a wrapper around one transformation of all arrays."""
    sees_all = isinstance(data, Wrapper) and type(data).params_in is Wrapper.params_in
    return sees_all and not isinstance(data, Chained) and len(data.wrapped()) == 1
