"""Rules in a row on one array, and its slots between the state and the rule."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from .. import maths
from . import contract
from .context import Context
from .plan import Plan, Stage
from .step import advanced, cast, in_precision, product_of_rates
from .storage.sharding import explicit_sharding
from .views import view


class Part(NamedTuple):
    """A part of an array, where the rules see no more of it at a time.

    place: of each of its numbers in the whole array, as `maths.places` counts them.
    inside: whether there is a number at all; None where there is one everywhere.
    """

    place: jax.Array
    inside: jax.Array | None

    def key(self, key: jax.Array) -> jax.Array:
        """A key of the whole array for `maths.random_bits` of this part."""
        return self.place + key

    def filled(self, value: jax.Array) -> jax.Array:
        """A value that is 0 where there is no number: a block's scale must not depend on it."""
        if self.inside is None:
            return value
        return lax.select(self.inside, value, jnp.zeros_like(value))


def rules_in_a_row(
    plan: Plan,
    gradient: jax.Array,
    entries: Sequence[dict[str, Any]],
    param: jax.Array | None,
    index: Any,
    extra: Mapping[str, Any],
    first: jax.Array | None,
    part: Part | None = None,
) -> tuple[Any, list[dict[str, Any]]]:
    """Rules in a row on one array: the update, or what it is added to after that, and the new entries.

    gradient: or what the rules before these made of it.
    entries: of each rule, what the state holds for the array.
    param: None where no parameters came.
    index: the place of the array in the tree.
    extra: what extra arguments that are trees have for it.
    first: the gradient that came at first, where a rule asks for it.
    part: which part of the array all these are, if they are not the whole.
    """
    arguments = plan, gradient, entries, param, index, extra, first
    function = functools.partial(_updated, part)
    return _on_explicit_mesh(function, arguments, like=(gradient, entries))


def _updated(
    part: Part | None,
    plan: Plan,
    gradient: jax.Array,
    entries: Sequence[dict[str, Any]],
    param: jax.Array | None,
    index: Any,
    extra: Mapping[str, Any],
    first: jax.Array | None,
) -> tuple[Any, list[dict[str, Any]]]:
    seen = param if plan.adding is None or param is None else plan.adding.seen(param)
    array, new = _Array(plan, gradient, seen, index, extra, first), []
    for stage, stored in zip(plan.stages, entries, strict=True):
        if stage is None:
            new.append(dict(stored))
            continue
        rule, after = stage.rule, {}
        scalars = stage.scalars
        if stage.advancing is not None:
            after = _advanced(array, stage, stored)
            scalars = in_precision(after, plan.dtype)
        kept = _Slots(stage, stored, plan.dtype, gradient.shape, index, part)
        grad, slots, seen = kept.seen(array.direction), kept.read(), kept.seen(array.param)
        with contract.of_method(rule, "update", scalars, rule.extra_args, complex_of=plan.dtype):
            context = array.context(stage, "update", scalars, kept)
            result = rule.update(grad, slots, seen, context)
        shapes = {name: None if x is None else x.shape for name, x in slots.items()}
        direction, values = contract.checked_result(rule, grad, result, shapes)
        if stage.axes is not None:
            direction = kept.view.back(direction)
        array.direction = direction
        own = {name: after[name] for name in rule.scalars if name in after}
        new.append(kept.encoded(values) | own)
    direction = maths.saturating_cast(array.direction, plan.out_dtype)
    if plan.adding is not None and param is not None:
        key = plan.adding.key(param, index)
        if key is not None and part is not None:
            key = part.key(key)
        return plan.adding.added(param, direction, key), new
    return direction, new


@jax.jit
def update_array(*arguments: Any) -> tuple[jax.Array, list[dict[str, Any]]]:
    """`rules_in_a_row`. Jitted so that arrays of one shape and dtype are traced once."""
    return rules_in_a_row(*arguments)


@jax.jit
def measure_array(
    plan: Plan,
    gradient: jax.Array,
    entries: Sequence[dict[str, Any]],
    param: jax.Array | None,
    index: Any,
    extra: Mapping[str, Any],
    first: jax.Array | None,
) -> dict[str, jax.Array]:
    """What the one rule of a plan measures of one array, of what `update_array` would get."""
    arguments = plan, gradient, entries, param, index, extra, first
    return _on_explicit_mesh(_measured_alone, arguments)


def _measured_alone(
    plan: Plan, gradient: jax.Array, entries: Sequence[dict[str, Any]], *rest: Any
) -> dict[str, jax.Array]:
    array, (stage,), (stored,) = _Array(plan, gradient, *rest), plan.stages, entries
    assert stage is not None  # An array without elements is not measured.
    return _measured(array, stage, stored, stage.scalars)


def _on_explicit_mesh(
    function: Callable[..., Any], arguments: tuple[Any, ...], like: Any = None
) -> Any:
    """Calls a function of a plan, a gradient and more, with rules that may see matrices.

    On a mesh with explicit axes, JAX refuses a product of matrices along an axis that is divided, and a
    rule knows nothing of meshes. So there the compiler decides how what is in between is divided, as it
    does on any other mesh.

    like: how the results are divided; not at all if None.
    """
    plan, *arrays = arguments
    if all(stage is None or stage.axes is None for stage in plan.stages):
        return function(*arguments)
    # Any of them: the slots may be divided where neither gradients nor parameters are.
    found = (explicit_sharding(x, jnp.shape(x)) for x in jax.tree.leaves(arrays))
    sharding = next((each for each in found if each is not None), None)
    if sharding is None:
        return function(*arguments)
    out = everywhere = sharding.update(spec=PartitionSpec())
    if like is not None:
        own = jax.tree.map(lambda x: jax.typeof(x).sharding, like)
        out = jax.tree.map(lambda each: everywhere if each.mesh.empty else each, own)
    return jax.sharding.auto_axes(function, out_sharding=out)(*arguments)


def _measured(
    array: _Array,
    stage: Stage,
    stored: dict[str, Any],
    scalars: dict[str, jax.Array],
) -> dict[str, jax.Array]:
    shape = array.direction.shape
    rule, kept = stage.rule, _Slots(stage, stored, array.dtype, shape, array.index)
    grad, param = kept.seen(array.direction), kept.seen(array.param)
    with contract.of_method(rule, "measure", scalars, rule.extra_args, complex_of=array.dtype):
        context = array.context(stage, "measure", scalars, kept)
        measured = rule.measure(grad, kept.read(), param, context)  # type: ignore[misc]
    return {name: jnp.asarray(x) for name, x in contract.checked_numbers(rule, measured).items()}


def _advanced(array: _Array, stage: Stage, stored: dict[str, Any]) -> dict[str, jax.Array]:
    """The scalars of one array after this step, of what is measured of it alone."""
    rule: Any = stage.advancing
    before = {name: stored[name] for name in rule.scalars}
    if rule.advance is None:
        return before
    dtype, measured = maths.compute_dtype(jnp.float32, array.dtype, *_dtypes(before)), {}
    if rule.measure is not None:
        found = _measured(array, stage, stored, in_precision(before, array.dtype))
        measured = {name: lax.expand_dims(cast(x, dtype), [0]) for name, x in found.items()}
    return advanced(rule, before, measured, stage.step, stage.extra, stage.learning_rate, dtype)


def _dtypes(numbers: Mapping[str, jax.Array]) -> list[Any]:
    return [x.dtype for x in numbers.values()]


class _Array:
    """One array on its way through rules in a row, and what they are told of it."""

    def __init__(
        self,
        plan: Plan,
        gradient: jax.Array,
        param: jax.Array | None,
        index: Any,
        extra: Mapping[str, Any],
        first: jax.Array | None,
    ) -> None:
        self.dtype, self.index = plan.dtype, index
        self.direction = cast(gradient, plan.dtype)
        self.param = param
        if param is not None:
            self.param = cast(param, self._precision_of(param))
        self._extra, self._first = extra, first

    def _precision_of(self, x: jax.Array) -> Any:
        return maths.compute_dtype(jnp.result_type(x), self.dtype)

    def context(
        self, stage: Stage, method: str, scalars: Mapping[str, Any], kept: _Slots
    ) -> Context:
        """What a method of a rule is told."""
        rule, known = stage.rule, {}
        if rule.needs_gradient and self._first is not None:
            known["gradient"] = kept.seen(cast(self._first, self.dtype))
        own = {name: self._extra[name] for name in rule.extra_args if name in self._extra}
        own = {name: kept.seen(cast(x, self._precision_of(x))) for name, x in own.items()}
        return Context(
            f"{type(rule).__name__}.{method}",
            index=self.index,
            step=stage.step,
            scalars=scalars,
            extra=stage.extra | own,
            selected=stage.selected,
            store=kept.store,
            **product_of_rates(stage.learning_rate, self.dtype),
            **known,
        )


def decoded(
    stage: Stage, entries: Mapping[str, Any], dtype: Any, shape: tuple[int, ...]
) -> dict[str, jax.Array]:
    """The slots of one rule for one array of a shape, as the rule sees them."""
    return _Slots(stage, entries, dtype, shape).read()


class _Slots:
    """The slots of one rule for one array, between the state and the rule, which may see matrices."""

    def __init__(
        self,
        stage: Stage,
        stored: Mapping[str, Any],
        dtype: Any,
        shape: tuple[int, ...],
        index: Any = None,
        part: Part | None = None,
    ) -> None:
        self.view, self._count, self._rule = view(stage.axes, shape), stage.count, stage.rule
        self._stored = {name: stored[name] for name in stage.rule.slots}
        self._index, self._part = index, part
        self._storages = dict(zip(stage.rule.slots, stage.storages, strict=True))
        real = jnp.finfo(dtype).dtype
        self._dtypes = {
            name: real if slot.nonnegative else dtype for name, slot in stage.rule.slots.items()
        }
        self._codes: dict[str, tuple[Any, Any]] = {}

    def seen(self, x: Any) -> Any:
        """An array as the rule sees it; None for None."""
        return None if x is None else self.view.to_matrices(x)

    def read(self) -> dict[str, jax.Array]:
        """Each slot as the rule sees it; None for one that this array has not."""
        found = {name: self._decode(name, stored) for name, stored in self._stored.items()}
        return {name: self._seen_slot(name, x) for name, x in found.items()}

    def _seen_slot(self, name: str, x: Any) -> Any:
        """A slot as the rule sees it: in the layout of the parameter, or in a shape of its own."""
        return self.seen(x) if self._rule.slots[name].shape is None else x

    def _decode(self, name: str, stored: Any) -> Any:
        if stored is None:
            return None
        return maths.saturating_cast(self._storages[name].decode(stored), self._dtypes[name])

    def store(self, name: str, value: jax.Array) -> jax.Array:
        """Encodes value, and returns what it reads back as."""
        contract.check_stored(self._rule, name, self._stored, value)
        if self._stored[name] is None:
            self._codes[name] = None, None
            return value
        storage, key = self._storages[name], None
        if storage.stochastic:
            key = self._key(name)
        if self._rule.matrix and self._rule.slots[name].shape is None:
            contract.check_matrices(self._rule, name, value, self.view.shape)
            value = self.view.back(value)
        filled = value
        if self._part is not None:
            filled = self._part.filled(value)
            key = None if key is None else self._part.key(key)
        code = storage.encode(filled, self._stored[name], key)
        decoded = self._decode(name, code)
        if storage.stochastic:
            decoded = maths.read_back(value, decoded)
        decoded = self._seen_slot(name, decoded)
        self._codes[name] = decoded, code
        return decoded

    def _key(self, name: str) -> jax.Array:
        """With what a slot is rounded at random."""
        salt = zlib.crc32(name.encode())
        if self._part is not None:  # A kernel that is the same for all arrays has numbers come in.
            return maths.random_key(self._count, self._index, salt)
        # XLA writes a number that is known into a kernel, and so would compile one for each array. An
        # array, here of two numbers, comes in: what is compiled is one kernel for all of one shape.
        index = jnp.asarray(self._index, jnp.uint32)
        keys = maths.random_key(self._count, jnp.stack([index, ~index]), salt)
        return lax.index_in_dim(keys, 0, keepdims=False)

    def encoded(self, values: Any) -> dict[str, Any]:
        """What the state is to hold. A value that came from `store` is not encoded again."""
        for name, value in values.items():
            if name not in self._codes or self._codes[name][0] is not value:
                self.store(name, value)
        return self._stored | {name: code for name, (_, code) in self._codes.items()}
