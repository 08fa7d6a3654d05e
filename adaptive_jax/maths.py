"""The few pieces of arithmetic that rules share, each written so that it cannot make a NaN.

They take and return single arrays, in the dtype that the lift computes in (float32 at least). What
every array of every step goes through is written in jax.lax, which traces many times faster.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class DecayRate(NamedTuple):
    """A decay rate b of a moving average as a rule sees it: with 1 - b and the bias correction.

    In arithmetic it is the number b, and `1 - b` is exact: b * mean + (1 - b) * value just works.

    In float32, 1 - 0.999 is wrong by 1.3e-5. The complement is therefore taken from the Python
    number, in float64, before anything is rounded. (An array, and a leaf of an optimizer that is an
    argument of the user's own `jit`, has been rounded before: then 1 - b is that of the rounded b, in
    the average and in its correction.)

    The correction, 1 - b(1)·b(2)···b(t), is one scalar per step: computed once, not once per array.
    It is None for a rule that does not count its steps.
    """

    value: jax.Array
    complement: jax.Array
    correction: jax.Array | None = None

    def __rsub__(self, other: Any) -> Any:
        return self.complement if type(other) in (int, float) and other == 1 else other - self.value

    def __sub__(self, other: Any) -> Any:
        return self.value - other

    def __add__(self, other: Any) -> Any:  # type: ignore[override]  # A number here, no tuple.
        return self.value + other

    def __mul__(self, other: Any) -> Any:  # type: ignore[override]
        return self.value * other

    def __pow__(self, exponent: Any) -> Any:
        return self.value**exponent

    def __truediv__(self, other: Any) -> Any:
        return self.value / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.value

    __radd__ = __add__
    __rmul__ = __mul__  # type: ignore[assignment]


@functools.cache
def compute_dtype(dtype: Any, *others: Any) -> Any:
    """The dtype of the maths for arrays of these: float32 at least, float64 if any of them is.

    Complex if the first one is. (Not by promotion, which users may have made strict.)
    """
    wide = any(
        jnp.issubdtype(each, jnp.inexact) and jnp.finfo(each).bits == 64
        for each in (dtype, *others)
    )
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.dtype(jnp.complex128 if wide else jnp.complex64)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def precise(x: jax.Array) -> jax.Array:
    """x in the dtype of the maths: in float32 at least."""
    return x.astype(compute_dtype(jnp.result_type(x)))


def complement(decay: DecayRate | jax.Array) -> jax.Array:
    """1 - decay, at least one unit in the last place.

    A decay of exactly 1 (a 0.999 that somebody rounded to bfloat16) would average nothing, and its
    bias correction divides 0 by 0. With the smallest complement instead, the bias-corrected average
    is the plain mean, which is the limit for decay → 1.
    """
    if isinstance(decay, DecayRate):
        return decay.complement
    return lax.max(1 - decay, jnp.finfo(decay.dtype).eps)


def scaled(x: jax.Array, factor: jax.Array) -> jax.Array:
    """factor · x, for a real factor of shape (), or of the shape of x."""
    return lax.mul(lax.convert_element_type(factor, x.dtype), x)


def quotient(x: jax.Array, divisor: jax.Array | float) -> jax.Array:
    """x / divisor, for a real divisor of the shape of x or of shape ()."""
    return lax.div(x, lax.convert_element_type(divisor, x.dtype))


def decayed(average: jax.Array, decay: DecayRate | jax.Array) -> jax.Array:
    """decay · average, as average - (1 - decay) · average: in float32, 0.999 itself is rounded."""
    return lax.sub(average, scaled(average, complement(decay)))


def decayed_sum(value: jax.Array, total: jax.Array, decay: jax.Array) -> jax.Array:
    """decay · total + value."""
    return lax.add(scaled(total, decay), value)


def ema(value: jax.Array, average: jax.Array, decay: DecayRate | jax.Array) -> jax.Array:
    """Exponential moving average: decay · average + (1 - decay) · value.

    Written with 1 - decay alone, so that the weights add up to one however decay is rounded. Each
    term stays below the larger of the two, so nothing overflows.
    """
    return lax.add(decayed(average, decay), scaled(value, complement(decay)))


def incremented(count: jax.Array) -> jax.Array:
    """count + 1, which stays at the largest integer."""
    one = count.dtype.type(1)  # Under x64, Python's is of 64 bits.
    return lax.add(lax.min(count, count.dtype.type(jnp.iinfo(count.dtype).max) - one), one)


def power_complement(decay: DecayRate | jax.Array, step: jax.Array) -> jax.Array:
    """1 - decay**step, as -expm1(step · log(decay)).

    1 - decay**step cancels: at step 1 it is wrong by 1.3e-5 for 0.999 and by 1.3e-2 for 0.999999.
    """
    exponent = log(decay)
    steps = lax.convert_element_type(step, exponent.dtype)
    return lax.neg(lax.expm1(lax.mul(steps, exponent)))


def log(decay: DecayRate | jax.Array) -> jax.Array:
    """log(decay), of the complement, which is kept below one for the sake of decay = 0."""
    weight = complement(decay)
    weight = lax.min(weight, weight.dtype.type(1 - jnp.finfo(weight.dtype).epsneg))
    return lax.log1p(lax.neg(weight))


def bias_correction(
    decay: DecayRate | jax.Array, step: jax.Array, *, ahead: bool = False
) -> jax.Array:
    """1 - decay**step: the total weight that a moving average started at zero has given so far.

    With `ahead`, the weight that it will have given after one step more.
    """
    if not isinstance(decay, DecayRate) or decay.correction is None:
        return power_complement(decay, step + 1 if ahead else step)
    if ahead:
        return ema(jnp.ones_like(decay.correction), decay.correction, decay)
    return decay.correction


def abs_squared(x: jax.Array) -> jax.Array:
    """|x|², real also for complex x."""
    if jnp.iscomplexobj(x):
        return lax.add(lax.square(lax.real(x)), lax.square(lax.imag(x)))
    return lax.square(x)


def largest_squared(dtype: Any) -> float:
    """The largest number that is squared: 2^62 in float32, 2^510 in float64.

    A few such squares add up to a finite number, those of a complex number too.
    """
    return math.ldexp(1.0, jnp.finfo(dtype).maxexp // 2 - 2)


def clamped(x: jax.Array) -> jax.Array:
    """x, or the nearest number that can be squared; the parts of a complex number one by one."""
    if jnp.iscomplexobj(x):
        return lax.complex(clamped(lax.real(x)), clamped(lax.imag(x)))
    limit = x.dtype.type(largest_squared(x.dtype))
    return lax.clamp(-limit, x, limit)


def bounded(grad: jax.Array) -> jax.Array:
    """A gradient as large as `second_moment` takes it; what is not finite becomes NaN.

    So the ratio of both moments stays that of a gradient of 2^62, for every larger one.
    """
    return lax.add(clamped(grad), lax.mul(grad, grad.dtype.type(0)))


def second_moment(value: jax.Array, average: jax.Array, decay: DecayRate | jax.Array) -> jax.Array:
    """Exponential moving average of |value|², of what can be squared: it is always finite.

    A direction that is made of `bounded` values shows when one was not. The sum comes last and has
    two products only: XLA then stores the average once and reads it back, where it would copy or
    compile twice as long.
    """
    kept = decay.value if isinstance(decay, DecayRate) else 1 - complement(decay)
    square = abs_squared(clamped(value))
    return lax.add(scaled(average, kept), scaled(square, complement(decay)))


def mean_of_squares(
    value: jax.Array, average: jax.Array, decay: DecayRate | jax.Array, more: Any = None
) -> jax.Array:
    """Exponential moving average of |value|², of sums and differences of two or three `bounded` values.

    A square that is too large counts as a little less than the largest number.

    more: what is added to each square; None for nothing.
    """
    kept = decay.value if isinstance(decay, DecayRate) else 1 - complement(decay)
    square = lax.min(abs_squared(value), average.dtype.type(0.99 * jnp.finfo(average.dtype).max))
    square = square if more is None else square + more
    return lax.add(scaled(average, kept), scaled(square, complement(decay)))


def saturated(x: jax.Array) -> jax.Array:
    """Non-negative x, at most half the largest finite number."""
    return lax.min(x, x.dtype.type(jnp.finfo(x.dtype).max / 2))


def least_denominator(dtype: Any) -> float:
    """2^-53 in float32, 2^-501 in float64: its square, and a thousandth of that, are normal numbers.

    A denominator that is not below it divides 0 to 0, and has a finite derivative.
    """
    return math.sqrt(float(jnp.finfo(dtype).tiny) * 2.0**20)


def at_least(size: jax.Array) -> jax.Array:
    """A length to divide by: no less than `least_denominator`."""
    return lax.max(size, size.dtype.type(least_denominator(size.dtype)))


def square_root(x: jax.Array, eps: jax.Array | float = 0.0) -> jax.Array:
    """√(x + eps) of a second moment, for a denominator: at least `least_denominator`.

    So 0/√0 is 0, and a second moment that has underflowed gives a small update instead of an
    infinite one. It is eps that is held above zero: one number, not every element.
    """
    least = x.dtype.type(least_denominator(x.dtype) ** 2)
    return lax.sqrt(lax.add(x, lax.max(lax.convert_element_type(eps, x.dtype), least)))


def denominator(
    x: jax.Array, eps: jax.Array | float, eps_root: jax.Array | float = 0.0
) -> jax.Array:
    """√(x + eps_root) + eps."""
    return lax.add(square_root(x, eps_root), lax.convert_element_type(eps, x.dtype))


def saturating_cast(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x in another floating-point dtype; what is too large for it becomes its largest number.

    A complex x loses its imaginary part in a real dtype. What is not finite stays so: 0 · inf is NaN.
    """
    if jnp.iscomplexobj(x):
        if not jnp.issubdtype(dtype, jnp.complexfloating):
            return saturating_cast(lax.real(x), dtype)
        return lax.convert_element_type(x, dtype)
    if jnp.finfo(dtype).max < jnp.finfo(x.dtype).max:
        largest = x.dtype.type(jnp.finfo(dtype).max)
        x = lax.add(lax.clamp(-largest, x, largest), 0 * x)
    return lax.convert_element_type(x, dtype)


def norm(x: jax.Array, axes: int | tuple[int, ...] | None = None) -> jax.Array:
    """√Σ|x|² of one array: no square over- or underflows.

    axes: along which axes to add up, which then have length 1; None for all, and a result of shape ().
    """
    some = (axes,) if isinstance(axes, int) else axes
    return _norm(x, None if some is None else tuple(axis % x.ndim for axis in some))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _norm(x: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    in_two_passes = functools.partial(_relative_norm, axes=axes)
    if axes is not None or jnp.finfo(x.dtype).maxexp < 128:  # float16 has no room for three units.
        return in_two_passes(x)
    # Memory is what it takes on a GPU and a TPU, and one pass is half of that. CPUs add up one sum faster.
    return lax.platform_dependent(x, cpu=in_two_passes, default=_norm_of_three)


def _norm_of_three(x: jax.Array) -> jax.Array:
    """√Σ|x|², read once: small, middle and large numbers are added up apart, in units of their own.

    Blue 1978, "A portable Fortran program to find the Euclidean norm of a vector".
    """
    size, unit = lax.abs(x), jnp.finfo(x.dtype).maxexp // 128
    number = size.dtype.type
    is_small = lax.lt(size, number(2.0 ** (-50 * unit)))
    is_large = lax.ge(size, number(2.0 ** (50 * unit)))
    zero, roots = lax.full_like(size, 0), []
    for part, raised in [
        (lax.select(is_small, size, zero), 90 * unit),
        (lax.select(is_small | is_large, zero, size), 0),  # NaN is here.
        (lax.select(is_large, size, zero), -90 * unit),
    ]:
        squares = lax.square(lax.mul(part, number(2.0**raised)))
        root = lax.sqrt(lax.reduce(squares, number(0), lax.add, range(x.ndim)))
        roots.append(lax.mul(root, number(2.0**-raised)))
    return _relative_norm(jnp.stack(roots), None)


def _relative_norm(x: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    """√Σ|x|² in units of the largest |x|, for which it is read twice."""
    largest, exponent = _along(axes, lax.abs(x), lax.max), jnp.finfo(x.dtype).maxexp
    one = largest.dtype.type(1)
    # Small numbers are multiplied and large ones divided, so that what XLA makes of this with a quotient or
    # a constant in the place of x has no product that is 0 or infinite. The clamp keeps 1/small from it.
    small = lax.clamp(one * 2.0 ** (1 - exponent // 2), largest, one)
    large = lax.clamp(one, largest, one * 2.0 ** (exponent * 3 // 4))
    factor = lax.clamp(one, 1 / small, one * 2.0 ** (exponent // 2 - 1))
    raised = lax.mul(x, lax.convert_element_type(_as_wide(factor, x, axes), x.dtype))
    total = _along(axes, abs_squared(quotient(raised, _as_wide(large, x, axes))), lax.add)
    return lax.mul(lax.mul(small, large), lax.sqrt(total))


@_norm.defjvp
def _derivative_of_norm(axes: Any, primals: Any, tangents: Any) -> Any:
    """⟨x/‖x‖, dx⟩, and 0 for zeros. Of the quotients above, XLA would make one by the square of a unit."""
    (x,), (change,) = primals, tangents
    length = _norm(x, axes)
    divisor = lax.select(lax.eq(length, 0 * length), lax.full_like(length, 1), length)
    # XLA multiplies by 1/‖x‖, which is 0 for a large one, so both are made smaller there.
    limit = divisor.dtype.type(largest_squared(divisor.dtype))
    factor = lax.select(
        lax.gt(divisor, limit), lax.full_like(divisor, 1 / limit), lax.full_like(divisor, 1)
    )
    numerator = lax.mul(x, lax.convert_element_type(_as_wide(factor, x, axes), x.dtype))
    direction = quotient(numerator, _as_wide(lax.mul(divisor, factor), x, axes))
    product = lax.mul(lax.conj(direction) if jnp.iscomplexobj(x) else direction, change)
    return length, _along(axes, lax.real(product) if jnp.iscomplexobj(x) else product, lax.add)


def _along(axes: tuple[int, ...] | None, values: jax.Array, function: Any) -> jax.Array:
    """Values that are reduced along axes, which keep the length 1; along all for None."""
    places = range(values.ndim) if axes is None else axes
    found = lax.reduce(values, values.dtype.type(0), function, places)
    return found if axes is None else lax.expand_dims(found, axes)


def _as_wide(x: jax.Array, like: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    """What was reduced along axes, in the shape of the array before; a number stays one."""
    return x if axes is None else lax.broadcast_in_dim(x, like.shape, range(like.ndim))


def root_of_squares(x: jax.Array, y: jax.Array) -> jax.Array:
    """√(x² + y²) of two numbers: no square over- or underflows."""
    return norm(jnp.stack([x, y]))


def inner(x: jax.Array, y: jax.Array) -> jax.Array:
    """⟨x, y⟩ of two real arrays, each of which is read once; 0 where that is not finite.

    What is held to a range one by one costs a sum more than all else, so the sum is, as a whole.
    """
    product = lax.mul(x, y)
    total = lax.reduce(product, product.dtype.type(0), lax.add, range(x.ndim))
    return lax.select(lax.is_finite(total), total, lax.full_like(total, 0))


def norm_in_one_pass(x: jax.Array) -> jax.Array:
    """√Σ|x|² of one array, which is read once, where `norm` reads it twice on a CPU.

    In float32 it is at most 2^64, and below 2^-63 it is 0. So it is for what is added to a larger sum, or
    held against a larger number.
    """
    limits = jnp.finfo(x.dtype)
    total = lax.reduce(abs_squared(x), limits.dtype.type(0), lax.add, range(x.ndim))
    # The derivative of a root at 0 is infinite.
    root = lax.sqrt(lax.clamp(limits.dtype.type(limits.tiny), total, limits.dtype.type(limits.max)))
    return lax.select(
        lax.le(total, limits.dtype.type(limits.tiny)), lax.mul(root, limits.dtype.type(0)), root
    )


def root_mean_square(x: jax.Array) -> jax.Array:
    """√(Σ|x|²/n) of one array of n numbers; 0 without any."""
    length = norm(x)
    return length / length.dtype.type(math.sqrt(max(1, x.size)))


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """x @ y of matrices, (…, m, n), in their own precision: accelerators round what they multiply."""
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


def ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """x/y in float32 at least, for a y that is not negative; 0 where y is 0. NaN shows.

    A subnormal y is taken for 0, as some processors do, and as they do not at each place.
    """
    is_zero = y < jnp.finfo(y.dtype).tiny
    # The quotient comes last: XLA computes one once, and what is cheap, with the sum that y may be, once
    # more for each array that is multiplied by it.
    quotient = jnp.where(is_zero, 0, x) / jnp.where(is_zero, 1, y)
    return quotient.astype(compute_dtype(jnp.float32, quotient.dtype))


def ascent(gradients: Any) -> Any:
    """The direction in which a loss grows fastest, of what JAX calls its gradients.

    They are the same where the parameters are real. Of complex ones, JAX gives the conjugate.
    """
    return jax.tree.map(lambda g: lax.conj(g) if jnp.iscomplexobj(g) else g, gradients)


def global_norm(tree: Any) -> jax.Array:
    """√Σ|x|² over all arrays of a tree, in float32 at least: the norm of the norms of its arrays."""
    arrays = [jnp.asarray(x) for x in jax.tree.leaves(tree)]
    dtype = compute_dtype(jnp.float32, *(x.dtype for x in arrays))
    norms = [norm(x.astype(compute_dtype(x.dtype, dtype))) for x in arrays]
    return norm(jnp.stack(norms)) if norms else jnp.zeros((), dtype)


def places(shape: tuple[int, ...]) -> jax.Array:
    """The place of each element among all of an array, as a uint32 that wraps around."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        place = place + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return place


def random_bits(shape: tuple[int, ...], key: Any) -> jax.Array:
    """A uint32 for each element, the upper 16 bits of which are random.

    A hash of a key, a uint32 of shape (), and of the element's place. It is a few integer operations
    that fuse with what uses them, and the same however an array is sharded. Not for cryptography, nor
    for initial values.

    key: or, for a part of an array, key + place for each of its elements.
    """
    bits = (key if jnp.shape(key) else places(shape) + key) * jnp.uint32(0x9E3779B9)
    return (bits ^ (bits >> 15)) * jnp.uint32(0x85EBCA6B)


def random_normal(shape: tuple[int, ...], key: Any, dtype: Any) -> jax.Array:
    """A number from N(0, 1) for each element: one of 65536, each as likely, by `random_bits` of a key."""
    uniform = ((random_bits(shape, key) >> 16).astype(dtype) + 0.5) / 2**16
    return math.sqrt(2) * lax.erf_inv(2 * uniform - 1)


def random_key(step: jax.Array, index: Any, salt: Any) -> jax.Array:
    """A key for `random_bits`: another one for each step, array, and salt.

    Of many arrays and salts, many keys.
    """
    bits = step.astype(jnp.uint32) * jnp.uint32(0x85EBCA6B)
    bits = bits + jnp.asarray(index, jnp.uint32) * jnp.uint32(0xC2B2AE35) + jnp.uint32(salt)
    # The last steps of MurmurHash3: every bit of the result depends on every bit.
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


@jax.custom_jvp
def rounded_to_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Float32 rounded up or down at random, so that the mean over all bits is x.

    What is too large becomes the largest number; what is not finite stays so.
    """
    number = lax.bitcast_convert_type(x, jnp.uint32)
    largest = jnp.float32(jnp.finfo(jnp.bfloat16).max)
    # A product, for the bits of a sharded array are not sharded before they meet it.
    up = (bits >> 16) * (lax.abs(x) <= largest).astype(jnp.uint32)
    rounded = lax.bitcast_convert_type((number + up) & jnp.uint32(0xFFFF0000), jnp.float32)
    # In float32 already, so that the cast is exact, and it does not matter where XLA leaves it out. It
    # ends in a cast, and not in a change of type bit by bit, which XLA would compute once more for
    # each use.
    return rounded.astype(jnp.bfloat16)


@rounded_to_bfloat16.defjvp
def _rounded_to_bfloat16_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """The derivative of the mean, which is x."""
    return rounded_to_bfloat16(*primals), lax.convert_element_type(tangents[0], jnp.bfloat16)


@jax.custom_jvp
def read_back(value: jax.Array, decoded: jax.Array) -> jax.Array:
    """What was stored for value, with the derivative of value: codes have none."""
    return decoded


@read_back.defjvp
def _read_back_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return primals[1], lax.convert_element_type(tangents[0], primals[1].dtype)
