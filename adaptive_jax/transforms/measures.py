"""What can be measured of gradients g, updates u and parameters θ, each with its name and its label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import maths
from .._core.storage.sharding import whole
from .precision import added

DECAY = 0.9
"""The decay rate of the moving averages that "signal_to_noise" takes."""


@dataclass(frozen=True)
class Group:
    """The arrays of a group, as lists that go together, and what else a measure may need.

    means: moving averages of the gradients.
    square: that of the squared norm of all of them; None where nothing asks for it.
    count: the number of steps so far.
    quantiles: those of "effective_learning_rate".
    """

    gradients: list[Any]
    updates: list[Any]
    params: list[Any]
    means: list[Any]
    square: Any
    count: jax.Array
    quantiles: tuple[float, ...]


class Measure(NamedTuple):
    """A measure: the function of a group that takes it, and what stands at the axis of its picture.

    limits: those of the axis, which is logarithmic if None.
    """

    function: Callable[[Group], jax.Array]
    label: str
    needs_params: bool = False
    limits: tuple[float, float] | None = None


def average(old: jax.Array, new: jax.Array) -> jax.Array:
    """A moving average, one step on."""
    return maths.ema(new, old, jnp.asarray(DECAY, jnp.finfo(old.dtype).dtype))


def norm(arrays: list[Any]) -> jax.Array:
    """The norm of all arrays together, in float32."""
    return maths.saturating_cast(maths.global_norm(arrays), jnp.dtype(jnp.float32))


def _cosine(group: Group) -> jax.Array:
    # Of vectors of length 1: their product cannot overflow.
    lengths = maths.global_norm(group.gradients), maths.global_norm(group.updates)
    products = [
        jnp.sum(jnp.real(_unit(g, lengths[0]) * jnp.conj(_unit(u, lengths[1]))))
        for g, u in zip(group.gradients, group.updates, strict=True)
    ]
    return -_sum(products)


def _moving(group: Group) -> jax.Array:
    changed = [
        jnp.sum(maths.saturating_cast(added(p, u), p.dtype) != p)
        for p, u in zip(group.params, group.updates, strict=True)
    ]
    return maths.ratio(_sum(changed), jnp.float32(sum(p.size for p in group.params)))


def _sparsity(group: Group) -> jax.Array:
    zeros = [
        jnp.sum(maths.saturating_cast(added(p, u), p.dtype) == 0)
        for p, u in zip(group.params, group.updates, strict=True)
    ]
    return maths.ratio(_sum(zeros), jnp.float32(sum(p.size for p in group.params)))


def _effective_learning_rate(group: Group) -> jax.Array:
    sizes = [
        (jnp.abs(maths.precise(whole(g))).ravel(), jnp.abs(maths.precise(whole(u))).ravel())
        for g, u in zip(group.gradients, group.updates, strict=True)
    ]
    ratios = [jnp.where(g > 0, u / jnp.where(g > 0, g, 1), jnp.nan) for g, u in sizes]
    if not sum(each.size for each in ratios):
        return jnp.zeros(len(group.quantiles), jnp.float32)
    together = jnp.concatenate([each.astype(jnp.float32) for each in ratios])
    found = jnp.nanquantile(together, jnp.asarray(group.quantiles, jnp.float32))
    return jnp.where(jnp.isnan(found), 0, found).astype(jnp.float32)


def _signal_to_noise(group: Group) -> jax.Array:
    # The averages have weights that add up to 1 - b^t, and a mean of n noisy gradients still has an
    # n-th of their variance; 1/n is the sum of the squared weights.
    past = jnp.float32(DECAY) ** group.count.astype(jnp.float32)
    weight = 1 - past
    share = (1 - DECAY) * (1 + past) / ((1 + DECAY) * weight)
    mean_squared = jnp.square(norm(group.means) / weight)
    noise = maths.ratio(jnp.maximum(group.square / weight - mean_squared, 0), 1 - share)
    return maths.ratio(jnp.maximum(mean_squared - share * noise, 0), noise)


def _unit(x: jax.Array, length: jax.Array) -> jax.Array:
    return maths.quotient(maths.precise(x), jnp.where(length > 0, length, 1))


def _sum(values: list[jax.Array]) -> jax.Array:
    return sum((value.astype(jnp.float32) for value in values), jnp.zeros((), jnp.float32))


MEASURES: dict[str, Measure] = {
    "gradient_norm": Measure(lambda group: norm(group.gradients), "gradient norm ‖g‖"),
    "update_norm": Measure(lambda group: norm(group.updates), "update norm ‖u‖"),
    "parameter_norm": Measure(lambda group: norm(group.params), "parameter norm ‖θ‖", True),
    "update_ratio": Measure(
        lambda group: maths.ratio(norm(group.updates), norm(group.params)),
        "update ratio ‖u‖/‖θ‖",
        True,
    ),
    "cosine": Measure(_cosine, "cosine of −u and g", limits=(-1.05, 1.05)),
    "moving": Measure(_moving, "share of elements that change", True, (-0.02, 1.02)),
    "effective_learning_rate": Measure(_effective_learning_rate, "effective learning rate |u|/|g|"),
    "sparsity": Measure(_sparsity, "share of parameters that are 0", True, (-0.02, 1.02)),
    "signal_to_noise": Measure(_signal_to_noise, "signal to noise ‖E g‖²/E‖g − E g‖²"),
}
"""All measures, by name."""
