"""Operations that compilers of kernels do not know, by others that give the same bits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .equations import Operation, done

_ORDERED = {"max": lax.max, "min": lax.min, "clamp": lax.clamp}


def done_with_less(operation: Operation, *inputs: Any) -> Any:
    """What an operation gives: without arithmetic below 32 bits, and with one kind of reduction.

    Kernels for TPUs have no sign, which cannot be compiled without a device, no largest or smallest of
    unsigned numbers, and no lower precision. None have a reduction by a function, or of two arrays at
    once.
    """
    name, dtypes = operation.primitive.name, [each.dtype for each in operation.outputs]
    if name == "reduce":
        return _reduced(operation, *inputs)
    if name == "reduce_max" and dtypes == [jnp.uint32]:
        return _unsigned(jnp.max(_signed(inputs[0]), axis=operation.parameters["axes"]))
    if name in _ORDERED and dtypes == [jnp.uint32]:
        return _unsigned(_ORDERED[name](*map(_signed, inputs)))
    if name == "sign" and dtypes == [jnp.float32]:
        (x,) = inputs
        one = jnp.ones_like(x)
        return jnp.where(lax.abs(x) > 0, jnp.where(x < 0, -one, one), x)
    if name == "reduce_precision":
        return _of_16_bits(inputs[0], **operation.parameters)
    if name not in _ANY_WIDTH and any(map(_is_narrow, inputs)):
        wide = done(operation, *(_wide(x) if _is_narrow(x) else x for x in inputs))
        return wide.astype(dtypes[0])
    return done(operation, *inputs)


_ANY_WIDTH = ("convert_element_type", "bitcast_convert_type", "broadcast_in_dim", "reshape")


def _of_16_bits(x: jax.Array, exponent_bits: int, mantissa_bits: int) -> jax.Array:
    """The number of 16 bits that is nearest to a float32, still as one."""
    if (exponent_bits, mantissa_bits) != (8, 7):
        nearest = x.astype(jnp.float16).astype(x.dtype)
        is_normal = lax.abs(nearest) >= np.float32(jnp.finfo(jnp.float16).tiny)
        return jnp.where(is_normal | (x != x), nearest, 0 * x)
    bits = _as(x, jnp.uint32)
    is_odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + (np.uint32(0x7FFF) + is_odd)) & np.uint32(0xFFFF0000)
    return jnp.where(x != x, x, _as(rounded, x.dtype))


def _is_narrow(x: Any) -> bool:
    dtype = jnp.result_type(x)
    return jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize < 4


def _wide(x: Any) -> jax.Array:
    return jnp.asarray(x).astype(jnp.int32)


def _signed(x: Any) -> jax.Array:
    """Unsigned numbers as signed ones, in the same order."""
    return _as(jnp.asarray(x) ^ np.uint32(2**31), jnp.int32)


def _unsigned(x: jax.Array) -> jax.Array:
    return _as(x, jnp.uint32) ^ np.uint32(2**31)


def _as(x: jax.Array, dtype: Any) -> jax.Array:
    """The same bits. Before jax 0.8, kernels for TPUs know that for arrays only."""
    return lax.bitcast_convert_type(x, dtype) if x.ndim else lax.convert_element_type(x, dtype)


def _reduced(operation: Operation, *inputs: Any) -> Any:
    """The largest numbers over some axes, of one array or of several."""
    count = len(inputs) // 2
    inner = operation.parameters["jaxpr"]
    names = {each.primitive.name for each in getattr(inner, "jaxpr", inner).eqns}
    if names != {"max"}:
        raise NotImplementedError(f"a reduction by {sorted(names)} in a kernel")
    results = []
    for x, first in zip(inputs[:count], inputs[count:], strict=True):
        is_unsigned = x.dtype == jnp.uint32
        largest = jnp.max(_signed(x) if is_unsigned else x, axis=operation.parameters["dimensions"])
        largest = _unsigned(largest) if is_unsigned else largest
        results.append(largest)
        del first  # It is the least of all numbers here: 0 for bits.
    return results
