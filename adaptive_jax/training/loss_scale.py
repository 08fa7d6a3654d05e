"""The factor on the loss that keeps the gradients of a float16 network from underflowing."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .._core import export
from .._core.arguments import is_number, whole


@export.node
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["scale", "good_steps"],
    meta_fields=["growth_interval", "factor"],
)
@dataclass(frozen=True)
class LossScale:
    """A factor on the loss that keeps the gradients of a float16 network from underflowing.

        s ← s/2 after a step whose gradients are not finite, which is skipped, but not below 1;
        s ← 2s after 2000 good steps in a row

    Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740.

    Args:
      scale: s at first, a power of two. One below 1, for gradients that overflow, never shrinks.
      growth_interval: after so many good steps in a row s grows; None for a constant s.
      factor: by how much it grows and shrinks, above 1.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> state = aj.TrainState.create(jnp.ones(2), aj.adam(1e-3), loss_scale=aj.LossScale(1024.0))
      >>> print(state.loss_scale.scale)
      1024.0
    """

    scale: Any = 2.0**15
    growth_interval: int | None = 2000
    factor: float = 2.0
    good_steps: Any = 0

    def after(self, finite: jax.Array) -> LossScale:
        """The scale for the next step."""
        if self.growth_interval is None:
            return self
        good_steps = jnp.where(finite, self.good_steps + 1, 0)
        grows = good_steps >= self.growth_interval
        largest = jnp.finfo(jnp.float32).max / self.factor
        grown = jnp.where(grows, jnp.minimum(self.scale, largest) * self.factor, self.scale)
        shrunk = jnp.maximum(self.scale / self.factor, jnp.minimum(self.scale, 1.0))
        return dataclasses.replace(
            self,
            scale=jnp.where(finite, grown, shrunk),
            good_steps=jnp.where(grows, 0, good_steps),
        )


def started(loss_scale: Any) -> LossScale:
    """A user's loss scale as the state of a run has it, with its numbers on the device.

    Raises:
      TypeError, ValueError: for what is none, and one that never grows, or shrinks to grow.
    """
    if not isinstance(loss_scale, LossScale):
        raise TypeError(
            f"loss_scale={loss_scale!r:.80} must be an aj.LossScale, such as aj.LossScale(128.0). "
            "A constant number is an argument of train_step."
        )
    check_scale("scale", loss_scale.scale)
    interval = loss_scale.growth_interval
    if loss_scale.factor <= 1:
        raise ValueError(f"factor={loss_scale.factor!r} in {loss_scale} must be above 1.")
    return dataclasses.replace(
        loss_scale,
        growth_interval=None if interval is None else whole("growth_interval", interval, 1),
        scale=jnp.array(loss_scale.scale, jnp.float32),
        good_steps=jnp.array(loss_scale.good_steps, jnp.int32),
    )


def check_scale(name: str, value: Any) -> None:
    """Raises for a factor, an argument with this name, that is no finite number above 0."""
    if is_number(value) and not 0 < value < float("inf"):
        raise ValueError(f"{name}={value!r} must be a finite number above 0.")
    if isinstance(value, LossScale):
        raise TypeError(
            f"{name}={value!r} adapts, and is in the state: TrainState.create(…, loss_scale=…)."
        )
    if isinstance(value, (str, bool)):
        raise TypeError(f"{name}={value!r} must be a number above 0.")
