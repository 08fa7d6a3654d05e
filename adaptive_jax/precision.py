"""Parameters in bfloat16 and float16 that learn: how updates are added to them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import Partial

from . import _check, maths
from ._transform import Transformation, member

_ROUNDINGS = ("nearest", "stochastic")


def apply_updates(params: Any, updates: Any, *, rounding: str = "nearest", step: Any = None) -> Any:
    """θ + u, computed in float32 at least and rounded to the parameters' dtype once.

    Rounded to nearest, a bfloat16 parameter loses every update below a 256th of it: it stays where
    it is. Rounded stochastically, up or down with the probabilities that make the mean exact, it
    follows a float32 run on average, at no cost in memory. The random bits are a hash of the step, the
    array and the element: no key, and the same step gives the same parameters again. `compensate`
    is the third way.

    Args:
      params: the parameters, a tree.
      updates: what the optimizer returned. None leaves a parameter as it is.
      rounding: "nearest" or "stochastic", for parameters of less than 32 bits.
      step: the number of the step, an integer or an array of shape (); for "stochastic" only.

    Returns:
      The new parameters, with the structure and the dtypes of params.

    Raises:
      TypeError, ValueError: for structures or shapes that do not match, by the path of the leaf, an
        unknown rounding, or a step that is missing.

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
    _check.one_of("rounding", rounding, _ROUNDINGS)
    if (rounding == "stochastic") != (step is not None):
        raise ValueError(
            f"rounding={rounding!r} and step={step!r}: the step is for stochastic rounding, which "
            "needs it."
        )
    gradients = _check.Gradients(updates)
    if params is None:
        raise ValueError("params is None: there is nothing to add the updates to.")
    leaves = gradients.params(params, ())
    new = []
    for index, (param, update) in enumerate(zip(leaves, gradients.leaves, strict=True)):
        if update is None or param is None:
            new.append(param)
            continue
        dtype = jnp.result_type(param)
        total = _sum(param, update)
        if rounding == "stochastic" and _is_low(dtype):
            total = _round_stochastically(total, dtype, jnp.asarray(step), index)
        new.append(maths.saturating_cast(total, dtype))
    return gradients.treedef.unflatten(new)


class CompensateState(NamedTuple):
    """What rounding has left out of each low-precision parameter, and the inner state."""

    correction: Any
    inner_state: Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=["inner"], meta_fields=[])
@dataclass(frozen=True, repr=False)
class Compensate:
    """The argument of `compensate`."""

    inner: Any

    def __repr__(self) -> str:
        return f"compensate({self.inner!r})"


def compensate(inner: optax.GradientTransformation) -> Transformation:
    """Parameters in bfloat16 or float16 that follow a float32 run: what rounding cuts off is kept.

        θ' = round(θ + c + u),   c ← θ + c + u - θ'

    c has the dtype of the parameter and makes it twice as precise (Kahan 1965,
    https://doi.org/10.1145/363707.363723). The updates for such parameters are θ' - θ in float32,
    exactly, whatever the dtype of the gradients: `apply_updates`, or optax's, then gives θ'.
    Parameters of 32 bits and more are left alone.

    Args:
      inner: the optimizer, complete: nothing may change its updates afterwards.

    Returns:
      The transformation. `update` needs the parameters. Its state is a `CompensateState`; the sum
      of a parameter and its correction, in float32, is what the parameter stands for.

    Raises:
      TypeError: for something that is not a transformation.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx = aj.compensate(aj.sgd(1e-3))
      >>> params = jnp.ones((), jnp.bfloat16)
      >>> state = tx.init(params)
      >>> for _ in range(500):
      ...     updates, state = tx.update(jnp.ones((), jnp.bfloat16), state, params)
      ...     params = aj.apply_updates(params, updates)
      >>> print(params)
      0.5
    """
    wrapper = Compensate(member(inner, "compensate"))
    return Transformation(Partial(_compensate_init, wrapper), Partial(_compensate_update, wrapper))


def _compensate_init(wrapper: Compensate, params: Any) -> CompensateState:
    correction = jax.tree.map(
        lambda x: jnp.zeros_like(x) if _is_low(jnp.result_type(x)) else optax.MaskedNode(), params
    )
    return CompensateState(correction, wrapper.inner.init(params))


def _compensate_update(
    wrapper: Compensate, updates: Any, state: Any, params: Any = None, **extra_args: Any
) -> tuple[Any, CompensateState]:
    _check.wrapper_state(state, CompensateState)
    if params is None and jax.tree.leaves(updates):  # None is also the tree of no parameters.
        raise ValueError("compensate needs the parameters: call update(gradients, state, params).")
    updates, inner_state = wrapper.inner.update(updates, state.inner_state, params, **extra_args)
    gradients = _check.Gradients(updates)
    leaves = gradients.params(params, ())
    corrections = gradients.treedef.flatten_up_to(state.correction)
    for index, (param, update) in enumerate(zip(leaves, gradients.leaves, strict=True)):
        if update is None or param is None or not _is_low(jnp.result_type(param)):
            continue
        dtype = jnp.result_type(param)
        total = _sum(param, update) + corrections[index].astype(jnp.float32)
        # Not a cast there and back, which XLA may leave out.
        largest = total.dtype.type(jnp.finfo(dtype).max)
        rounded = lax.reduce_precision(
            lax.add(lax.clamp(-largest, total, largest), 0 * total),
            jnp.finfo(dtype).nexp,
            jnp.finfo(dtype).nmant,
        )
        corrections[index] = (total - rounded).astype(dtype)
        gradients.leaves[index] = rounded - param.astype(jnp.float32)
    unflatten = gradients.treedef.unflatten
    return unflatten(gradients.leaves), CompensateState(unflatten(corrections), inner_state)


def _is_low(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def _sum(param: jax.Array, update: jax.Array) -> jax.Array:
    """θ + u in float32 at least."""
    dtype = maths.compute_dtype(jnp.result_type(param), jnp.result_type(update))
    return lax.convert_element_type(param, dtype) + lax.convert_element_type(update, dtype)


def _round_stochastically(x: jax.Array, dtype: Any, step: jax.Array, index: int) -> jax.Array:
    """x on the grid of dtype, above or below it, so that the mean over all steps is x."""
    limits = jnp.finfo(dtype)
    # The distance of the grid's numbers: that of the power of two below |x|, and for subnormal
    # numbers the smallest one. (A grid finer than 2^-126 would be subnormal in float32 itself.)
    exponent = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) & jnp.uint32(0x7F800000)
    power = lax.bitcast_convert_type(exponent, jnp.float32) * 2.0**-limits.nmant
    spacing = jnp.maximum(power, max(float(limits.smallest_subnormal), 2.0**-126))
    spacing = spacing.astype(x.dtype)
    rounded = jnp.floor(x / spacing + _uniform(x.shape, step, index).astype(x.dtype)) * spacing
    return jnp.where(jnp.isfinite(x), rounded, x)


def _uniform(shape: tuple[int, ...], step: jax.Array, index: int) -> jax.Array:
    """Numbers in [0, 1), 16 bits each: a hash of the step, the array's index and the element's."""
    element = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        element = element + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    key = step.astype(jnp.uint32) * jnp.uint32(0x85EBCA6B)
    key = key + jnp.uint32(index * 0xC2B2AE35 % 2**32)
    bits = _mixed(element + _mixed(key))
    return (bits >> 16).astype(jnp.float32) * 2.0**-16


def _mixed(bits: jax.Array) -> jax.Array:
    """Every bit of the result depends on every bit: the last steps of MurmurHash3."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
