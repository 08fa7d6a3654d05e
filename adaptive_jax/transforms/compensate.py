"""Parameters below 32 bits that follow a float32 run: what rounding leaves out of them is kept."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
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
from .precision import Rounding, added, is_coarse, is_low, spacing_around, update_and_add


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
    low = [hasattr(x, "dtype") and is_low(x.dtype) for x in leaves]
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
        updates, adding = self._adding(updates, state, params, Rounding("nearest", None))
        trees = updates, state.inner_state, adding.seen_in(params)
        results, inner_state = self._around(adding).update(*trees, **extra_args)
        new = pytrees.Arrays("gradients", updates).match("the updates", results)
        corrections = list(adding.corrections)
        for place, param in enumerate(adding.treedef.flatten_up_to(params)):
            of_array = adding.of_array(place)
            if isinstance(of_array, Correction) and new[place] is not None:
                rounded, corrections[place] = of_array.split(param, new[place])
                old = param.astype(jnp.float32)
                new[place] = jnp.where(rounded == old, 0, rounded - old)
        return adding.treedef.unflatten(new), adding.kept(state, corrections, inner_state)

    def update_and_add(
        self, updates: Any, state: Any, params: Any, adding: Any, backend: Any, **extra_args: Any
    ) -> tuple[Any, CompensateState]:
        """The parameters after an update, and the new state.

        adding: how updates are added to parameters without a correction.
        backend: of tiles; None for whole arrays.
        """
        self.check(state)
        updates, adding = self._adding(pytrees.gradients(updates), state, params, adding)
        trees = updates, state.inner_state, params, adding, backend
        results, inner_state = update_and_add(self._around(adding), *trees, **extra_args)
        new, corrections = adding.treedef.flatten_up_to(results), list(adding.corrections)
        for place, kept in enumerate(corrections):
            if kept is not None and isinstance(new[place], tuple):
                new[place], corrections[place] = new[place]
        return adding.treedef.unflatten(new), adding.kept(state, corrections, inner_state)

    def _adding(
        self, updates: Any, state: Any, params: Any, others: Rounding
    ) -> tuple[Any, Correcting]:
        """The gradients, and how the updates made of them are added."""
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
        for index, (param, gradient) in enumerate(zip(leaves, gradients.leaves, strict=True)):
            if gradient is None or param is None or not is_low(jnp.result_type(param)):
                corrections[index] = None
                continue
            old = corrections[index]
            if old.dtype != self.kept_in(param.dtype):
                raise ValueError(
                    f"the correction at {gradients.paths()[index]} is {pytrees.describe(old)}, and "
                    f"{self!r} keeps another one: make the state with its init(params)."
                )
        return updates, Correcting(corrections, others, gradients.treedef)

    def _around(self, adding: Correcting) -> Any:
        """What is inside, as it takes parameters that are more exact than the dtypes of its states."""
        return _with_rounding(self.inner) if adding.corrects else self.inner

    def evaluate(self, params: Any, state: Any, of_inner: Callable[[Any, Any, Any], Any]) -> Any:
        exact = exact_params(params, state._replace(inner_state=()))
        return of_inner(self.inner, exact, state.inner_state)

    def kept_in(self, dtype: Any) -> Any:
        """The dtype of the correction of a parameter; None for one without."""
        if not is_low(dtype):
            return None
        if jnp.finfo(dtype).bits < 16:
            return jnp.float16
        return jnp.int8 if self.correction == "int8" and dtype == jnp.bfloat16 else dtype


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["corrections", "others"],
    meta_fields=["treedef"],
)
@dataclass(frozen=True)
class Correcting:
    """How updates are added to parameters where more is kept of some than they can hold.

    corrections: of each array what its parameter leaves out; None for one that is as it is.
    others: how updates are added to the parameters that are as they are.
    treedef: of the parameters, with a leaf for each array.
    """

    corrections: list[Any]
    others: Rounding
    treedef: Any

    @property
    def corrects(self) -> bool:
        """Whether there is a correction."""
        return any(kept is not None for kept in self.corrections)

    def seen_in(self, params: Any) -> Any:
        """All parameters as optimizers see them: as exact as they are known."""
        if not self.corrects:
            return params  # A whole module too.
        leaves = enumerate(self.treedef.flatten_up_to(params))
        return self.treedef.unflatten([self.of_array(i).seen(param) for i, param in leaves])

    def of_array(self, place: int) -> Rounding | Correction:
        """How it is done to one array, by its place among the corrections."""
        kept = self.corrections[place]
        return self.others if kept is None else Correction(kept)

    def kept(self, state: Any, new: Sequence[Any], inner_state: Any) -> Any:
        """The state of `compensate` with new corrections in it."""
        old = self.treedef.flatten_up_to(state.correction)
        row = [x if y is None else y for x, y in zip(old, new, strict=True)]
        return CompensateState(self.treedef.unflatten(row), inner_state)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["correction"], meta_fields=[])
@dataclass(frozen=True)
class Correction:
    """How an update is added to a parameter with more bits than its dtype has.

    correction: what the parameter leaves out.
    """

    correction: jax.Array

    def key(self, param: jax.Array, index: Any) -> None:
        """Nothing is rounded at random."""

    def seen(self, param: jax.Array) -> jax.Array:
        """The parameter as rules see it, in float32."""
        return _exact(param, self.correction)

    def added(self, param: jax.Array, update: jax.Array, key: Any) -> tuple[jax.Array, jax.Array]:
        """The parameter after the update, in its own dtype, and what it leaves out then."""
        del key
        rounded, left = self.split(param, update)
        return rounded.astype(param.dtype), left

    def split(self, param: jax.Array, update: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The same, with the parameter in float32."""
        exact = self.seen(param)
        split = _split_24_bits if self.correction.dtype == jnp.int8 else _split_sum
        rounded, left = split(added(exact, update), param.dtype)
        # What is infinite and does not move stays so, such as a mask in a group that is not trained.
        stays = ~jnp.isfinite(exact) & (update == 0)
        left = jnp.where(stays, 0, left).astype(self.correction.dtype)
        return jnp.where(stays, exact, rounded), left


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
            maths.saturating_cast(x, g.dtype) if g is not None and is_low(g.dtype) else x
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


def _split_sum(total: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """A number rounded to a dtype, in float32 still, and what that leaves out."""
    limits = jnp.finfo(dtype)
    largest = total.dtype.type(limits.max)
    total = lax.add(lax.clamp(-largest, total, largest), 0 * total)
    # Not a cast there and back, which XLA may leave out.
    if limits.bits == 16:
        rounded = lax.reduce_precision(total, limits.nexp, limits.nmant)
    else:  # Dtypes of 8 bits and less have exponents of their own.
        spacing = spacing_around(total, dtype)
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
