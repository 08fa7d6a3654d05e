"""How slots are kept: what a storage is, in full precision and in bfloat16."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from ... import maths
from .. import arguments


class Storage:
    """A codec for slots. Subclass it as a frozen dataclass: a storage is static, so it must hash.

    The lift decodes a slot before a rule sees it, and encodes what the rule returns. A rule that
    passes a new value through `ctx.store` goes on with decode(encode(value)), what the state
    really holds, so a run that restarts from a checkpoint takes the very same steps.
    `encode(decode(stored), stored, key)` must give `stored` back. `aj.testing.check_storage` checks
    this and the rest.

    Class attributes:
      stochastic: whether `encode` rounds at random and needs a key. A rule's state then counts its
        steps, of which the keys are made.
      nonnegative_only: whether it is for slots that are real and never negative.
      elementwise: whether it keeps each number; False if it keeps what many have in common.
    """

    stochastic: ClassVar[bool] = False
    nonnegative_only: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True

    def init(self, value: float | jax.Array, param: Any, *, real: bool) -> Any:
        """What the state holds at first: a slot of the shape of param, filled with value.

        real: whether the slot is real and never negative (a second moment), also for a complex param.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no `init`.")

    def encode(self, value: jax.Array, stored: Any, key: jax.Array | None) -> Any:
        """What the state is to hold for value, in the structure and the dtypes of stored.

        key: a uint32 of shape (), another one for each step, array and slot, for
          `maths.random_bits(value.shape, key)`; None for a storage that is not stochastic.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no `encode`.")

    def decode(self, stored: Any) -> jax.Array:
        """The array that stored stands for."""
        raise NotImplementedError(f"{type(self).__name__} defines no `decode`.")

    def holds(self, stored: Any) -> bool:
        """Whether stored can have been made by this storage."""
        del stored
        return True

    def adopted(self, stored: Any, likes: Sequence[Any]) -> Any:
        """What stored is here, if an optimizer of optax made it; else stored.

        likes: the gradient and the parameter. optax keeps a slot in the dtype of the parameter.
        """
        del likes
        return stored

    def from_names(self, stored: Mapping[str, Any], shape: tuple[int, ...], *, real: bool) -> Any:
        """The NamedTuple of which stored has the fields by their names: Flax NNX makes it a mapping."""
        param = jax.ShapeDtypeStruct(shape, jnp.float32)
        made = jax.eval_shape(functools.partial(self.init, 0.0, param, real=real))
        is_made_of = set(getattr(made, "_fields", ())) == set(stored)
        return type(made)(**stored) if is_made_of else stored

    def init_tree(
        self,
        value: float | jax.Array,
        params: Any,
        *,
        real: bool,
        like: Callable[[Any], Any] | None = None,
    ) -> Any:
        """`init` for every array of a tree.

        like: from a parameter to an array of the slot's shape, or to None where it has no such slot;
          None where the slot has the shape of the parameter.
        """

        def first(param: Any) -> Any:
            array = param if like is None else like(param)
            return None if array is None else self.init(value, array, real=real)

        return jax.tree.map(first, params)


@dataclass(frozen=True)
class Float(Storage):
    """A plain array of a floating-point dtype, rounded to nearest.

    dtype: None for float32, or the parameter's own dtype where that is wider or complex.
    """

    dtype: Any = None

    def init(self, value: float | jax.Array, param: Any, *, real: bool) -> jax.Array:
        dtype = self.dtype
        if dtype is None:
            dtype = maths.compute_dtype(jnp.result_type(param))
        if real:
            dtype = jnp.finfo(dtype).dtype
        return jnp.full_like(param, value, dtype=dtype)

    def encode(self, value: jax.Array, stored: jax.Array, key: jax.Array | None) -> jax.Array:
        return maths.saturating_cast(value, stored.dtype)

    def decode(self, stored: jax.Array) -> jax.Array:
        return stored

    def adopted(self, stored: Any, likes: Sequence[Any]) -> Any:
        is_theirs = getattr(stored, "dtype", None) in [jnp.result_type(like) for like in likes]
        if self.dtype is not None or not is_theirs or self.holds(stored):
            return stored
        return lax.convert_element_type(stored, maths.compute_dtype(stored.dtype))

    def holds(self, stored: Any) -> bool:
        if not hasattr(stored, "dtype") or not jnp.issubdtype(stored.dtype, jnp.inexact):
            return False
        if self.dtype is None:
            return jnp.finfo(stored.dtype).bits >= 32
        return jnp.finfo(stored.dtype).dtype == jnp.finfo(self.dtype).dtype


PLAIN = Float()


@dataclass(frozen=True, kw_only=True)
class Compressed(Storage):
    """What the storages below 32 bits share: some arrays stay as they are under "float32".

    These are arrays of less than `min_size` elements, slots that are complex, and those of 64 bits. The
    size is that of the whole array, however it is sharded.
    """

    min_size: int = 4096

    def __post_init__(self) -> None:
        least = arguments.whole("min_size", self.min_size, 0, f" in {type(self).__name__}")
        object.__setattr__(self, "min_size", least)

    def init(self, value: float | jax.Array, param: Any, *, real: bool) -> Any:
        dtype = jnp.result_type(param)
        if self._is_exempt(param.shape, jnp.finfo(dtype).dtype if real else dtype):
            return PLAIN.init(value, param, real=real)
        return self.compressed(value, param, real=real)

    def compressed(self, value: float | jax.Array, param: Any, *, real: bool) -> Any:
        """`init`, for an array that is to be compressed."""
        raise NotImplementedError(f"{type(self).__name__} defines no `compressed`.")

    def _is_exempt(self, shape: tuple[int, ...], dtype: Any) -> bool:
        return self._is_small(shape) or dtype.kind == "c" or jnp.finfo(dtype).bits > 32

    def _is_small(self, shape: tuple[int, ...]) -> bool:
        return math.prod(shape) < self.min_size

    def holds(self, stored: Any) -> bool:
        return PLAIN.holds(stored) and self._is_exempt(stored.shape, stored.dtype)


@dataclass(frozen=True, kw_only=True)
class BFloat16(Compressed):
    """bfloat16, rounded stochastically: up or down, so that the mean is right.

    Rounded to nearest, a second moment whose decay rate is 0.999 never decays.

    min_size: arrays of fewer elements stay in float32.
    """

    stochastic = True

    def compressed(self, value: float | jax.Array, param: Any, *, real: bool) -> jax.Array:
        return jnp.full_like(param, value, dtype=jnp.bfloat16)

    def encode(self, value: jax.Array, stored: jax.Array, key: jax.Array | None) -> jax.Array:
        if stored.dtype != jnp.bfloat16:
            return PLAIN.encode(value, stored, key)
        value = maths.saturating_cast(value, jnp.dtype(jnp.float32))
        return maths.rounded_to_bfloat16(value, maths.random_bits(value.shape, key))

    def decode(self, stored: jax.Array) -> jax.Array:
        return stored

    def holds(self, stored: Any) -> bool:
        return super().holds(stored) or getattr(stored, "dtype", None) == jnp.bfloat16
