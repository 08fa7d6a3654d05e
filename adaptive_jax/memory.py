"""What an optimizer's state takes, before it is there, and how to keep it in another way from now on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import _check, _storage, _versions, maths
from ._rule import Rule
from ._transform import Chained, Foreign, Lifted, inner_entry, member, parts, reached, shared
from .rules import Identity, WeightDecay
from .wrappers import Monitor


@dataclass(frozen=True)
class StateBytes:
    """How many bytes an optimizer's state takes; `print` shows it as a table.

    total: all of it.
    parameters: how many numbers the parameters are.
    by_slot: of each slot. What is no slot, such as counts, is "other".
    by_array: of each array of the parameters, by its path.
    """

    total: int
    parameters: int
    by_slot: dict[str, int]
    by_array: dict[str, int]

    @property
    def per_parameter(self) -> float:
        """Bytes per parameter."""
        return self.total / max(1, self.parameters)

    def __str__(self) -> str:
        rows = [("slot", *_row(each)) for each in self.by_slot.items()]
        largest = sorted(self.by_array.items(), key=lambda item: -item[1])
        rows += [("array", *_row(each)) for each in largest[:_SHOWN]]
        if len(largest) > _SHOWN:
            rest = sum(size for _, size in largest[_SHOWN:])
            rows.append(("array", f"{len(largest) - _SHOWN} more", f"{rest:,}"))
        rows.append(("total", f"{self.per_parameter:.4g} bytes per parameter", f"{self.total:,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            f"{kind:<{widths[0]}}  {name:<{widths[1]}}  {size:>{widths[2]}}"
            for kind, name, size in rows
        )


_SHOWN = 10


def _row(item: tuple[str, int]) -> tuple[str, str]:
    return item[0], f"{item[1]:,}"


def state_bytes(tx: optax.GradientTransformation, params: Any) -> StateBytes:
    """How many bytes the state of an optimizer takes, before anything of it is allocated.

    Args:
      tx: the optimizer. Slots are found in those of this library, in its chains and wrappers; the
        state of anything else counts as "other".
      params: the parameters, as arrays or as shapes (`jax.eval_shape`, `jax.ShapeDtypeStruct`).

    Raises:
      TypeError: for what is no optimizer, and parameters that are no arrays, by their path.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> params = {"w": jax.ShapeDtypeStruct((8192, 1024), jnp.float32)}
      >>> print(aj.state_bytes(aj.adam(1e-3, storage={"mu": "int8", "nu": "int16"}), params))
      slot   mu                          8,519,680
      slot   nu                         16,908,288
      slot   other                               4
      array  ['w']                      25,427,968
      total  3.031 bytes per parameter  25,427,972
    """
    arrays = _check.Arrays("params", params)
    state = jax.eval_shape(member(tx, "state_bytes").init, params)
    by_slot: dict[str, int] = {}
    by_array = dict.fromkeys(arrays.paths(), 0)

    for rule, _, part in parts(tx, state):
        for name in rule.slots:
            sizes = [_size(each) for each in arrays.treedef.flatten_up_to(getattr(part, name))]
            by_slot[name] = by_slot.get(name, 0) + sum(sizes)
            for path, size in zip(by_array, sizes, strict=True):
                by_array[path] += size
    total = _size(state)
    if other := total - sum(by_slot.values()):
        by_slot["other"] = other
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    return StateBytes(total, parameters, by_slot, by_array)


def _size(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def map_params(
    tx: optax.GradientTransformation,
    function: Callable[..., Any],
    opt_state: Any,
    /,
    *rest: Any,
    transform_non_params: Callable[[Any], Any] | None = None,
) -> Any:
    """A function of every array of a state that is like a parameter: its sharding, for instance.

    Differs from `optax.tree.map_params`, which knows no storage: there, and in `compensate` with some
    parameters of 32 bits, what is kept for an array is no leaf, and a tree of shardings does not fit.

    Args:
      tx: the optimizer, of this library, of optax, or of both.
      function: called with each slot and what the trees of rest have for its parameter; where the slot
        is kept as codes, with these.
      opt_state: its state, as arrays or as shapes.
      *rest: trees like the parameters.
      transform_non_params: called with every other array: counts, scales, the factors of a matrix, and
        what is measured. None to leave them as they are.

    Returns:
      The state with what the functions returned in the places of its arrays.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec
      >>> params, specs = {"w": jnp.ones((64, 128))}, {"w": PartitionSpec("x", None)}
      >>> tx = aj.adam(1e-3, storage="int8")
      >>> spec = lambda slot, spec: spec
      >>> rest = lambda x: PartitionSpec()
      >>> shardings = aj.map_params(tx, spec, tx.init(params), specs, transform_non_params=rest)
      >>> print(shardings[0].mu["w"])
      Quantized(codes=P('x', None), scales=P())
    """

    def other(tree: Any) -> Any:
        return tree if transform_non_params is None else jax.tree.map(transform_non_params, tree)

    def of_array(kept: Any, *rest: Any) -> Any:
        if hasattr(kept, "dtype"):
            return function(kept, *rest)
        if not isinstance(kept, _storage.Quantized):
            return other(kept)
        return _storage.Quantized(function(kept.codes, *rest), other(kept.scales))

    def is_kept(x: Any) -> bool:
        return isinstance(x, (_storage.Quantized, _storage.Factors, optax.MaskedNode))

    return optax.tree.map_params(
        member(tx, "map_params"),
        of_array,
        opt_state,
        *rest,
        transform_non_params=other,
        is_leaf=is_kept,
    )


def convert_storage(
    tx_old: optax.GradientTransformation,
    tx_new: optax.GradientTransformation,
    params: Any,
    opt_state: Any,
) -> Any:
    """The state of an optimizer as the same one with another `storage` keeps it.

    A run that is half done can so be continued in less memory, or more precisely, with a schedule in
    place of a number, whose count starts at 0, or with a weight decay where there was none. One array
    is converted after the other, and the old state stays as it is.

    Args:
      tx_old: the optimizer that made the state.
      tx_new: the same rules with another storage, in the same chain and wrappers. Its hyperparameters
        may differ.
      params: the parameters, as arrays or as shapes.
      opt_state: the state of tx_old; one that version 0.1.0 made of it is taken as well.

    Returns:
      The state for tx_new.

    Raises:
      ValueError: for a state that tx_old did not make, and optimizers that differ in more than storage
        and hyperparameters.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> params = {"w": jnp.ones((128, 64))}
      >>> exact, lean = aj.adam(1e-3), aj.adam(1e-3, storage="int8")
      >>> state = aj.convert_storage(exact, lean, params, exact.init(params))
      >>> print(state[0].mu["w"].codes.dtype, state[0].nu["w"].codes.dtype)
      int8 uint8
    """
    arrays = _check.Arrays("params", params)
    old, new = member(tx_old, "convert_storage"), member(tx_new, "convert_storage")
    return _convert(arrays, old, new, jax.eval_shape(new.init, params), opt_state)


def _convert(arrays: _check.Arrays, old: Any, new: Any, template: Any, state: Any) -> Any:
    """template: the state of the new optimizer, as shapes."""
    before, after = shared(old), shared(new)
    kinds = {type(before), type(after)}
    if kinds == {Lifted} and _kept(before) == _kept(after):
        return _convert_rules(arrays, before, after, template, state)
    if kinds == {Chained} and len(before.members) == len(after.members):
        _check.chain_state(state, len(before.members))
        each = zip(before.members, after.members, template, state, strict=True)
        return tuple(_convert(arrays, *four) for four in each)
    has_none_of_ours = kinds in ({Foreign}, {Monitor})
    if has_none_of_ours and jax.tree.structure(state) == jax.tree.structure(template):
        return state
    if len(kinds) == 1 and hasattr(before, "inner"):
        _check.wrapper_state(state, type(template))
        name = inner_entry(template)
        inner = _convert(
            arrays, before.inner, after.inner, getattr(template, name), getattr(state, name)
        )
        converted = state._replace(**{name: inner})
        if _kinds(converted) == _kinds(template):
            return converted
    raise ValueError(
        f"convert_storage takes two optimizers that differ in storage and hyperparameters alone, got "
        f"{old!r} and {new!r}. What optax.chain holds cannot be seen: use aj.chain."
    )


def _kinds(state: Any) -> Any:
    leaves, treedef = jax.tree.flatten(state)
    return treedef, [(x.shape, x.dtype) for x in leaves]


def _kept(lifted: Lifted) -> list[type[Rule]]:
    return [type(rule) for rule in lifted.rules if _lasts(rule)]


def _lasts(rule: Rule) -> bool:
    """Whether a rule is there whatever the hyperparameters: a weight decay of 0 has none."""
    return not isinstance(rule, (WeightDecay, Identity))


def _convert_rules(
    arrays: _check.Arrays, before: Lifted, after: Lifted, template: Any, state: Any
) -> Any:
    try:
        states = before.split(state)
    except ValueError as error:
        try:
            states = before.split(_versions.state_of_layout_1(before, state))
        except ValueError:
            raise ValueError(f"tx_old did not make this state: {error}") from None
    old = list(zip(before.rules, states, before.storages, strict=True))
    lasting = iter([each for each in old if _lasts(each[0])])
    passing = iter([each for each in old if not _lasts(each[0])])
    new_parts = []
    every = zip(after.rules, after.split(template), after.storages, strict=True)
    for rule, like, new_storages in every:
        no_rule = None, optax.EmptyState(), ()
        old_rule, part, old_storages = next(lasting) if _lasts(rule) else next(passing, no_rule)
        # A count that is there for the storage or a schedule alone may be new.
        had = part._asdict()
        if "count" in had:
            had["count"] = reached(had["count"])
        entries = {
            name: had[name] if name in had else _first(name, entry, old_rule, had.get("count"))
            for name, entry in like._asdict().items()
            if name not in rule.slots
        }
        storages = zip(rule.slots.items(), old_storages, new_storages, strict=True)
        for (name, slot), old, new in storages:
            stored = arrays.slot(name, getattr(part, name), old, slot.nonnegative, arrays.leaves)
            targets = arrays.treedef.flatten_up_to(getattr(like, name))
            entries[name] = arrays.treedef.unflatten(
                [
                    x
                    if x is None
                    else _convert_array(x, jnp.uint32(i), target=_Static(to), old=old, new=new)
                    for i, (x, to) in enumerate(zip(stored, targets, strict=True))
                ]
            )
        new_parts.append(type(like)(**entries))
    return after.join(new_parts)


def _first(name: str, entry: Any, old: Any, count: Any) -> jax.Array:
    """An entry that the old state has not: a count from 0, a correction as that of the number so far."""
    field = name.removesuffix("_correction")
    if field == name or count is None:
        return jnp.zeros(entry.shape, entry.dtype)
    b = getattr(old, field)
    decay = maths.DecayRate(b, 1.0 - b) if isinstance(b, float) else b  # type: ignore[arg-type]
    decay = jax.tree.map(lambda x: jnp.asarray(x, entry.dtype), decay)
    return maths.power_complement(decay, count).astype(entry.dtype)


class _Static:
    """A tree of shapes that hashes."""

    def __init__(self, tree: Any) -> None:
        self.leaves, self.treedef = jax.tree.flatten(tree)
        self._key = (tuple((x.shape, x.dtype) for x in self.leaves), self.treedef)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self._key == other._key


@functools.partial(jax.jit, static_argnames=("target", "old", "new"))
def _convert_array(
    stored: Any, index: jax.Array, *, target: _Static, old: _storage.Storage, new: _storage.Storage
) -> Any:
    like = target.treedef.unflatten(target.leaves)
    value = old.decode(stored)
    return new.encode(value, like, index if new.stochastic else None)
