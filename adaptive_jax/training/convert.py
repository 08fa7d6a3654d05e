"""A state that was made with one storage, for another."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import maths
from .._core import hyper, pytrees
from .._core.lifted import Lifted
from .._core.rule import Rule
from .._core.step import reached
from .._core.storage import base
from .._core.transformation import Foreign, data_of, member
from .._core.views import views_of_arrays
from .._core.wrapper import Wrapper
from ..rules.scaling import Identity, WeightDecay
from ..transforms.memory import Static
from . import versions


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
    pytrees.check_floats("params", params)
    old, new = member(tx_old, "convert_storage"), member(tx_new, "convert_storage")
    return _convert(params, old, new, jax.eval_shape(new.init, params), opt_state)


def _convert(params: Any, old: Any, new: Any, template: Any, state: Any) -> Any:
    """template: the state of the new optimizer, as shapes."""
    before, after = data_of(old), data_of(new)
    kind = type(before) if type(before) is type(after) else type(None)
    if issubclass(kind, Lifted) and _kept(before) == _kept(after):
        return _convert_rules(params, before, after, template, state)
    if issubclass(kind, Wrapper) and len(before.wrapped()) == len(after.wrapped()):
        before.check(state)
        state = versions.with_new_entries_itself(template, state)
        seen, will_be_seen = before.params_in(params), after.params_in(params)
        # Not the same groups: another optimizer.
        if jax.tree.structure(seen) == jax.tree.structure(will_be_seen):
            trees = after.states_in(template), before.states_in(state)
            every = zip(seen, before.wrapped(), after.wrapped(), *trees, strict=True)
            new_parts = [_convert(*each) for each in every]
            kinds = _kinds if new_parts else jax.tree.structure
            if kinds(_without(after, template)) == kinds(_without(before, state)):
                return before.with_states(state, new_parts)
    if kind is Foreign and jax.tree.structure(state) == jax.tree.structure(template):
        return state
    raise ValueError(
        f"convert_storage takes two optimizers that differ in storage and hyperparameters alone, got "
        f"{old!r} and {new!r}. What optax.chain holds cannot be seen: use aj.chain."
    )


def _without(wrapper: Wrapper, state: Any) -> Any:
    """What a wrapper keeps beside the states of what it wraps."""
    return wrapper.with_states(state, [None] * len(wrapper.wrapped()))


def _kinds(state: Any) -> Any:
    leaves, treedef = jax.tree.flatten(state)
    return treedef, [(x.shape, x.dtype) for x in leaves]


def _kept(lifted: Lifted) -> list[type[Rule]]:
    return [type(rule) for rule in lifted.rules if _lasts(rule)]


def _lasts(rule: Rule) -> bool:
    """Whether a rule is there whatever the hyperparameters: a weight decay of 0 has none."""
    return not isinstance(rule, (WeightDecay, Identity))


def _convert_rules(params: Any, before: Lifted, after: Lifted, template: Any, state: Any) -> Any:
    arrays = pytrees.Arrays("params", params)
    try:
        states = before.split(state)
    except ValueError as error:
        try:
            states = before.split(versions.state_of_layout_1(before, state))
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
            name: _entry(name, entry, had, old_rule)
            for name, entry in like._asdict().items()
            if name not in rule.slots
        }
        views = views_of_arrays(rule, "params", arrays.treedef.unflatten(arrays.leaves))
        storages = zip(rule.slots.items(), old_storages, new_storages, strict=True)
        for (name, slot), old, new in storages:
            stored = arrays.slot(name, getattr(part, name), old, slot, views, arrays.leaves)
            targets = arrays.treedef.flatten_up_to(getattr(like, name))
            entries[name] = arrays.treedef.unflatten(
                [
                    x
                    if x is None
                    else _convert_array(x, jnp.uint32(i), target=Static(to), old=old, new=new)
                    for i, (x, to) in enumerate(zip(stored, targets, strict=True))
                ]
            )
        new_parts.append(type(like)(**entries))
    return after.join(new_parts)


def _entry(name: str, like: Any, had: Mapping[str, Any], old: Any) -> Any:
    """An entry that is no slot: as it was, a count from 0, or a correction as that of the number so far.

    A tree of corrections is made of one for all of them, or for a branch.
    """
    if name in had and jax.tree.structure(had[name]) == jax.tree.structure(like):
        return had[name]
    field = name.removesuffix("_correction")
    if field == name or "count" not in had:
        return jax.tree.map(lambda entry: jnp.zeros(entry.shape, entry.dtype), like)

    def corrected(entry: Any, b: Any) -> Any:
        decay = maths.DecayRate(b, 1.0 - b) if isinstance(b, float) else b  # type: ignore[arg-type]
        decay = jax.tree.map(lambda x: jnp.asarray(x, entry.dtype), decay)
        return maths.power_complement(decay, had["count"]).astype(entry.dtype)

    def copied(entry: Any, correction: Any) -> Any:
        return jnp.array(correction, entry.dtype)

    before, function = (had[name], copied) if name in had else (getattr(old, field), corrected)
    made = hyper.mapped(function, like, before)
    if jax.tree.structure(made) != jax.tree.structure(like):
        raise ValueError(
            f"{field} of {type(old).__name__} is a tree in tx_old with more branches than in tx_new: what "
            "each of them had so far is not one number."
        )
    return made


@functools.partial(jax.jit, static_argnames=("target", "old", "new"))
def _convert_array(
    stored: Any, index: jax.Array, *, target: Static, old: base.Storage, new: base.Storage
) -> Any:
    like = target.treedef.unflatten(target.leaves)
    value = old.decode(stored)
    return new.encode(value, like, index if new.stochastic else None)
