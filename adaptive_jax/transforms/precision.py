"""Parameters below 32 bits that learn: how updates are added to them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import maths
from .._core import arguments, pytrees
from .._core.plan import Adding
from .._core.transformation import data_of

_ROUNDINGS = ("nearest", "stochastic")


def apply_updates(params: Any, updates: Any, *, rounding: str = "nearest", step: Any = None) -> Any:
    """θ + u, computed in float32 at least and rounded to the parameters' dtype once.

    Rounded to nearest, a bfloat16 parameter loses every update below a 512th of it, and some below a
    256th: it stays where it is. Rounded stochastically, up or down with the probabilities that make
    the mean exact, it follows a float32 run on average, at no cost in memory. The random bits are a
    hash of the step, the array and the element: no key, and the same step gives the same parameters
    again. `compensate` is the third way.

    Args:
      params: the parameters, a tree.
      updates: what the optimizer returned. None leaves a parameter as it is. For parameters of 8 bits
        or less they must not be of 8 bits themselves, or small ones are lost: give the optimizer its
        gradients in float32.
      rounding: "nearest" or "stochastic", for parameters of less than 32 bits.
      step: the number of the step, an integer or an array of shape (); for "stochastic" only.

    Returns:
      The new parameters, with the structure and the dtypes of params. What is too large for a dtype
      becomes its largest number; what is not finite stays so, but in float4, which has no NaN.

    Raises:
      TypeError, ValueError: for integer parameters, structures or shapes that do not match, by the path
        of the leaf, an unknown rounding, or a step that is missing.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> params = jnp.ones(10_000, jnp.bfloat16)
      >>> tiny = jnp.full(10_000, -1e-3)
      >>> print(aj.apply_updates(params, tiny).mean())
      1
      >>> new = aj.apply_updates(params, tiny, rounding="stochastic", step=0)
      >>> print(f"{new.astype(jnp.float32).mean():.3f}")
      0.999
    """
    arguments.one_of("rounding", rounding, _ROUNDINGS)
    if (rounding == "stochastic") != (step is not None):
        raise ValueError(
            f"rounding={rounding!r} and step={step!r}: the step is for stochastic rounding, which "
            "needs it."
        )
    return Rounding(rounding, step).apply(params, updates)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["step"], meta_fields=["rounding"])
@dataclass(frozen=True)
class Rounding:
    """How updates are added to parameters: what `apply_updates` does to one array, and to a tree.

    Its arguments are those of `apply_updates`.
    """

    rounding: str
    step: Any

    def seen_in(self, params: Any) -> Any:
        """All parameters as optimizers see them: as they are."""
        return params

    def of_array(self, place: int) -> Rounding:
        """How it is done to one array: as to all."""
        del place
        return self

    def seen(self, param: jax.Array) -> jax.Array:
        """A parameter as rules see it: as it is."""
        return param

    def key(self, param: jax.Array, index: Any) -> jax.Array | None:
        """A key for `maths.random_bits`; None for a parameter that is rounded to nearest.

        index: the place of the array in the tree.
        """
        if self.rounding == "nearest" or not is_low(jnp.result_type(param)):
            return None
        return maths.random_key(jnp.asarray(self.step), index, salt=0)

    def added(self, param: jax.Array, update: jax.Array, key: jax.Array | None) -> jax.Array:
        """The parameter after the update, in its own dtype."""
        total, dtype = added(param, update), jnp.result_type(param)
        if key is not None:
            total = _round_stochastically(total, dtype, maths.random_bits(total.shape, key))
        return maths.saturating_cast(total, dtype)

    def apply(self, params: Any, updates: Any) -> Any:
        """All parameters after their updates."""
        return applied(self, params, updates)


def applied(adding: Adding, params: Any, updates: Any) -> Any:
    """What all parameters are after their updates."""
    gradients = pytrees.Arrays("gradients", updates)
    if params is None:
        raise ValueError("params is None: there is nothing to add the updates to.")
    leaves = gradients.params(params, ())
    new = []
    for index, (param, update) in enumerate(zip(leaves, gradients.leaves, strict=True)):
        if update is None or param is None:
            new.append(param)
            continue
        of_array = adding.of_array(index)
        key = of_array.key(param, index)
        if key is not None:
            _check_fine(gradients, index, jnp.result_type(param), update)
        new.append(of_array.added(param, update, key))
    return gradients.treedef.unflatten(new)


def update_and_add(
    transformation: Any,
    updates: Any,
    state: Any,
    params: Any,
    adding: Adding,
    backend: Any,
    **extra_args: Any,
) -> tuple[Any, Any]:
    """The parameters after an update, and the new state: both in one, where a transformation can.

    adding: how updates are added.
    backend: of tiles; None for whole arrays.
    """
    data = data_of(transformation)
    if hasattr(data, "update_and_add"):
        return data.update_and_add(updates, state, params, adding, backend, **extra_args)
    updates, state = transformation.update(updates, state, adding.seen_in(params), **extra_args)
    return applied(adding, params, updates), state


def _check_fine(gradients: pytrees.Arrays, index: int, dtype: Any, update: Any) -> None:
    """Raises unless an update has more bits than 8, and its parameter a zero and a sign."""
    if dtype == jnp.float8_e8m0fnu:
        raise TypeError(
            f"the parameter at {gradients.paths()[index]} is {dtype}, which has neither 0 nor negative "
            "numbers: it can scale others, and cannot be trained. Take float8_e4m3fn."
        )
    if is_coarse(jnp.result_type(update)):
        raise TypeError(
            f"the update at {gradients.paths()[index]} is {pytrees.describe(update)}: rounded to nearest "
            "before it is rounded stochastically, so that small ones are lost. Give the optimizer "
            "gradients in float32, jax.tree.map(lambda g: g.astype(jnp.float32), gradients), as "
            "train_step does."
        )


def is_coarse(dtype: Any) -> bool:
    """Whether it is a floating-point dtype of 8 bits or less."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits <= 8


def is_low(dtype: Any) -> bool:
    """Whether it is a floating-point dtype of less than 32 bits."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def added(param: jax.Array, update: jax.Array) -> jax.Array:
    """θ + u in float32 at least."""
    dtype = maths.compute_dtype(jnp.result_type(param), jnp.result_type(update))
    return lax.convert_element_type(param, dtype) + lax.convert_element_type(update, dtype)


def _round_stochastically(x: jax.Array, dtype: Any, bits: jax.Array) -> jax.Array:
    """x on the grid of dtype, above or below it, so that the mean over all bits is x."""
    x = maths.saturating_cast(x, jnp.dtype(jnp.float32))
    if dtype == jnp.bfloat16:
        return maths.rounded_to_bfloat16(x, bits)
    spacing = spacing_around(x, dtype)
    quotient = x / spacing
    below = jnp.floor(quotient)
    # Not the floor of a sum, which float32 would round: what is on the grid stays there.
    uniform = (bits >> 8).astype(jnp.float32) * 2.0**-24
    rounded = jnp.where(uniform >= 1 - (quotient - below), below + 1, below) * spacing
    return jnp.where(jnp.isfinite(x), rounded, x)


def spacing_around(x: jax.Array, dtype: Any) -> jax.Array:
    """How far the numbers of dtype are from each other around a float32.

    As far as in that of the power of two below |x|, and as the smallest ones at least. (A grid finer
    than 2^-126 would be subnormal in float32 itself.)
    """
    limits = jnp.finfo(dtype)
    exponent = lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0x7F800000)
    power = lax.bitcast_convert_type(exponent, jnp.float32) * 2.0**-limits.nmant
    return jnp.maximum(power, max(float(limits.smallest_subnormal), 2.0**-126))
