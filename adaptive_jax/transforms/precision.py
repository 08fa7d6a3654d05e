"""Parameters below 32 bits that learn: how updates are added to them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from .. import maths
from .._core import arguments, export, pytrees
from .._core.transformation import Foreign, Transformation, data_of
from .._core.wrapper import Wrapper

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

    @property
    def stochastic(self) -> bool:
        """Whether parameters below 32 bits are rounded at random."""
        return self.rounding == "stochastic"

    def key(self, param: jax.Array, index: Any) -> jax.Array | None:
        """A key for `maths.random_bits`; None for a parameter that is rounded to nearest.

        index: the place of the array in the tree.
        """
        if not self.stochastic or not _is_low(jnp.result_type(param)):
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
        gradients = pytrees.Arrays("gradients", updates)
        if params is None:
            raise ValueError("params is None: there is nothing to add the updates to.")
        leaves = gradients.params(params, ())
        new = []
        for index, (param, update) in enumerate(zip(leaves, gradients.leaves, strict=True)):
            if update is None or param is None:
                new.append(param)
                continue
            key = self.key(param, index)
            if key is not None:
                _check_fine(gradients, index, jnp.result_type(param), update)
            new.append(self.added(param, update, key))
        return gradients.treedef.unflatten(new)


def update_and_add(
    transformation: Any,
    updates: Any,
    state: Any,
    params: Any,
    adding: Rounding,
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
    updates, state = transformation.update(updates, state, params, **extra_args)
    return adding.apply(params, updates), state


@export.state
class CompensateState(NamedTuple):
    """What rounding has left out of each low-precision parameter, and the inner state.

    correction: of the parameter's dtype, to be added to it, or float16 for one of 8 bits or less; or an
      int8, the next 8 bits of a bfloat16.
    """

    correction: Any
    inner_state: Any


_CORRECTIONS = ("parameter", "int8")


@dataclass(frozen=True)
class Compensate(Wrapper):
    """`compensate`, of its arguments."""

    inner: Any
    correction: str = "parameter"

    wraps = {"inner": "inner_state"}
    state_type = CompensateState
    label = "compensate"

    def init(self, params: Any) -> CompensateState:
        def first(param: Any) -> Any:
            dtype = self.kept_in(jnp.result_type(param))
            return optax.MaskedNode() if dtype is None else jnp.zeros_like(param, dtype)

        return CompensateState(jax.tree.map(first, params), self.inner.init(params))

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, CompensateState]:
        # Updates have the dtype of their gradients: of 8 bits, small ones would be lost before they
        # are added.
        updates = jax.tree.map(
            lambda g: g.astype(jnp.float32) if is_coarse(jnp.result_type(g)) else g, updates
        )
        if params is None and jax.tree.leaves(updates):  # None is also the tree of no parameters.
            raise ValueError(
                "compensate needs the parameters: call update(gradients, state, params)."
            )
        gradients = pytrees.Arrays("gradients", updates)
        leaves = gradients.params(params, ())
        corrections = gradients.match("the state's correction", state.correction)
        exact = list(leaves)
        for index, (param, gradient) in enumerate(zip(leaves, gradients.leaves, strict=True)):
            if gradient is None or param is None or not _is_low(jnp.result_type(param)):
                continue
            old = corrections[index]
            if old.dtype != self.kept_in(param.dtype):
                raise ValueError(
                    f"the correction at {gradients.paths()[index]} is {pytrees.describe(old)}, and "
                    f"{self!r} keeps another one: make the state with its init(params)."
                )
            exact[index] = _exact(param, old)
        is_exact = [new is not old for new, old in zip(exact, leaves, strict=True)]
        inner, unflatten = self.inner, gradients.treedef.unflatten
        if any(is_exact):  # Else the parameters are left alone, a whole module too.
            inner, params = _with_rounding(inner), unflatten(exact)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        new = gradients.match("the updates", updates)
        for index, is_low in enumerate(is_exact):
            if is_low and new[index] is not None:
                total = added(exact[index], new[index])
                old, param = corrections[index], leaves[index]
                split = _split_24_bits if old.dtype == jnp.int8 else _split_sum
                rounded, left = split(total, param.dtype)
                corrections[index] = left.astype(old.dtype)
                new[index] = rounded - param.astype(jnp.float32)
        return unflatten(new), CompensateState(unflatten(corrections), inner_state)

    def evaluate(self, params: Any, state: Any, of_inner: Callable[[Any, Any, Any], Any]) -> Any:
        exact = exact_params(params, state._replace(inner_state=()))
        return of_inner(self.inner, exact, state.inner_state)

    def kept_in(self, dtype: Any) -> Any:
        """The dtype of the correction of a parameter; None for one without."""
        if not _is_low(dtype):
            return None
        if jnp.finfo(dtype).bits < 16:
            return jnp.float16
        return jnp.int8 if self.correction == "int8" and dtype == jnp.bfloat16 else dtype


@dataclass(frozen=True)
class _Rounding:
    """Another library's transformation, which gets parameters that are as exact as its gradients.

    Its state was made for rounded ones, and has their dtypes.
    """

    foreign: Any

    def update(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        gradients = pytrees.Arrays("gradients", updates)
        rounded = [
            maths.saturating_cast(x, g.dtype) if g is not None and _is_low(g.dtype) else x
            for g, x in zip(gradients.leaves, gradients.params(params, ()), strict=True)
        ]
        params = gradients.treedef.unflatten(rounded)
        return self.foreign.update(updates, state, params, **extra_args)


def _with_rounding(transformation: Any) -> Any:
    """The transformation with all those of other libraries in it in a `_Rounding`."""
    if isinstance(transformation, Foreign):
        return _Rounding(transformation)
    data = data_of(transformation)
    if not isinstance(data, Wrapper):
        return transformation
    return Transformation.of(data.with_wrapped(map(_with_rounding, data.wrapped())))


def compensate(
    inner: optax.GradientTransformation, correction: str = "parameter"
) -> Transformation:
    """Parameters in bfloat16 or float16 that follow a float32 run: what rounding cuts off is kept.

        θ' = round(θ + c + u),   c ← θ + c + u - θ'

    c has the dtype of the parameter and makes it twice as precise (Kahan 1965,
    https://doi.org/10.1145/363707.363723); for parameters of 8 bits and less it is a float16. As an
    int8 it is the next 8 bits of the number, rounded to nearest: weights of 24 bits. The updates
    for such parameters are θ' - θ in float32, exactly, whatever the dtype of the gradients:
    `apply_updates`, or optax's, then gives θ'. What is inside sees θ + c in float32 (another library's
    transformations see it rounded to the dtype of their gradients, as their states are). Parameters of 32
    bits and more are left alone.
    `exact_params` adds both up. To go on with the state of a run without it:
    `compensate(tx).init(params)._replace(inner_state=state)`.

    Args:
      inner: the optimizer, complete: nothing may change its updates afterwards.
      correction: how c is kept: "parameter" for the parameter's dtype, 2 bytes; "int8" for 1 byte,
        for parameters in bfloat16 (those in float16 keep theirs in float16).

    Returns:
      The transformation. `update` needs the parameters. Its state is a `CompensateState`.

    Raises:
      TypeError: for something that is not a transformation.
      ValueError: for an unknown correction.

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
    arguments.one_of("correction", correction, _CORRECTIONS)
    return Transformation.of(Compensate(inner, correction))


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


def _split_sum(total: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """A number rounded to a dtype, in float32 still, and what that leaves out."""
    limits = jnp.finfo(dtype)
    largest = total.dtype.type(limits.max)
    total = lax.add(lax.clamp(-largest, total, largest), 0 * total)
    # Not a cast there and back, which XLA may leave out.
    if limits.bits == 16:
        rounded = lax.reduce_precision(total, limits.nexp, limits.nmant)
    else:  # Dtypes of 8 bits and less have exponents of their own.
        spacing = _spacing(total, dtype)
        rounded = lax.round(total / spacing, lax.RoundingMethod.TO_NEAREST_EVEN) * spacing
    return rounded, total - rounded


def _split_24_bits(total: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The bfloat16 nearest to a number of 24 bits, in float32 still, and the last 8 of them, signed."""
    del dtype
    largest = total.dtype.type(jnp.finfo(jnp.bfloat16).max)
    total = lax.add(lax.clamp(-largest, total, largest), 0 * total)
    number = lax.bitcast_convert_type(total.astype(jnp.float32), jnp.int32)
    bits = (number + 0x80) >> 8
    upper = (bits + 0x80) >> 8
    # The 24 bits of NaN could be those of a number, upper and all.
    upper = lax.select(lax.ne(total, total), jnp.full_like(upper, 0x7FC0), upper)
    rounded = lax.bitcast_convert_type(upper << 16, jnp.float32)
    return rounded, (bits - (upper << 8)).astype(jnp.int8)


def _exact(param: jax.Array, correction: jax.Array) -> jax.Array:
    """What a parameter and its correction stand for, in float32."""
    wide = param.astype(jnp.float32)
    if correction.dtype != jnp.int8:
        return wide + correction.astype(jnp.float32)
    bits = lax.bitcast_convert_type(wide, jnp.int32) + (correction.astype(jnp.int32) << 8)
    return lax.bitcast_convert_type(bits, jnp.float32)


def exact_params(params: Any, opt_state: Any) -> Any:
    """The parameters of a compensated run in float32, as precise as it knows them.

    For evaluation, and to save them.

    Args:
      params: the parameters.
      opt_state: the state of `compensate`, or one with such in it, as of a chain or a wrapper. In the
        groups of a `partition` there may be several.

    Returns:
      Low-precision parameters and their corrections added up, in float32. Without `compensate` they
      are cast to float32; those of 32 bits and more are as they were.

    Raises:
      ValueError: for a state of other parameters, and one with several corrections of one of them.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx = aj.compensate(aj.sgd(1e-3), "int8")
      >>> params = jnp.ones((), jnp.bfloat16)
      >>> updates, state = tx.update(jnp.ones((), jnp.bfloat16), tx.init(params), params)
      >>> params = aj.apply_updates(params, updates)
      >>> print(params, f"{aj.exact_params(params, state):.3f}")
      1 0.999
    """

    def is_compensated(x: Any) -> bool:
        return isinstance(x, CompensateState)

    nodes = jax.tree.leaves(opt_state, is_leaf=is_compensated)
    found = [node for node in nodes if is_compensated(node)]
    leaves, treedef = jax.tree.flatten(params, is_leaf=lambda x: x is None)
    # In a whole module there are functions and integers, too.
    low = [hasattr(x, "dtype") and _is_low(x.dtype) for x in leaves]
    arrays = pytrees.Arrays(
        "params",
        treedef.unflatten([x if is_low else None for x, is_low in zip(leaves, low, strict=True)]),
    )
    corrections: list[Any] = [optax.MaskedNode()] * len(leaves)
    for node in found:
        for index, correction in enumerate(_in_all_places(node.correction, arrays)):
            if isinstance(correction, optax.MaskedNode):
                continue  # Of a parameter of 32 bits, or one of another group.
            if not isinstance(corrections[index], optax.MaskedNode):
                raise ValueError(
                    f"the state has {len(found)} corrections in it: give that of one of them."
                )
            corrections[index] = correction
    return treedef.unflatten(
        [
            param
            if not is_low
            else param.astype(jnp.float32)
            if isinstance(correction, optax.MaskedNode)
            else _exact(param, correction)
            for param, is_low, correction in zip(leaves, low, corrections, strict=True)
        ]
    )


def _in_all_places(correction: Any, arrays: pytrees.Arrays) -> list[Any]:
    """The correction of each array, where one `optax.MaskedNode` may stand for many arrays."""
    params = arrays.treedef.unflatten(arrays.leaves)

    def in_each(kept: Any, part: Any) -> Any:
        is_masked = isinstance(kept, optax.MaskedNode)
        return jax.tree.map(lambda _: kept, part, is_leaf=_is_none) if is_masked else kept

    try:
        is_kept = lambda x: x is None or isinstance(x, optax.MaskedNode)  # noqa: E731
        correction = jax.tree.map(in_each, correction, params, is_leaf=is_kept)
    except ValueError:
        pass  # Of other parameters, which is said by:
    return arrays.match("the correction", correction)


def _is_none(x: Any) -> bool:
    return x is None


def _is_low(dtype: Any) -> bool:
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
    spacing = _spacing(x, dtype)
    quotient = x / spacing
    below = jnp.floor(quotient)
    # Not the floor of a sum, which float32 would round: what is on the grid stays there.
    uniform = (bits >> 8).astype(jnp.float32) * 2.0**-24
    rounded = jnp.where(uniform >= 1 - (quotient - below), below + 1, below) * spacing
    return jnp.where(jnp.isfinite(x), rounded, x)


def _spacing(x: jax.Array, dtype: Any) -> jax.Array:
    """How far the numbers of dtype are from each other around a float32.

    As far as in that of the power of two below |x|, and as the smallest ones at least. (A grid finer
    than 2^-126 would be subnormal in float32 itself.)
    """
    limits = jnp.finfo(dtype)
    exponent = lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0x7F800000)
    power = lax.bitcast_convert_type(exponent, jnp.float32) * 2.0**-limits.nmant
    return jnp.maximum(power, max(float(limits.smallest_subnormal), 2.0**-126))
