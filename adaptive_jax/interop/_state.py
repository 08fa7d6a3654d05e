"""Between a state of this library and a saved run: which entry each slot is, and which setting.

The formats of PyTorch and Keras are read and written in their own rooms. Here a saved run is

    {path of the parameter: Saved(its name there, {name of the entry: array})}

with every array already in the layout that the parameter has here.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import keystr

from .._core import states
from .._core.lifted import Lifted
from .._core.rule import Rule, Slot
from .._core.transformation import Foreign, data_of
from .._core.wrapper import rebuilt, walk
from ..rules.factored import FactoredRms
from ..transforms.chain import Chained
from ..transforms.matrices import OfMatrices
from ._arrays import array, paths


@dataclass
class Saved:
    """What was saved of one parameter: its name there, and its entries by name."""

    name: str
    entries: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """What another library calls a slot or a scalar, and the sign that it has there."""

    name: str
    sign: int = 1


Vocabulary = Mapping[type[Rule], Mapping[str, Entry]]
"""For each rule, from its slots and scalars to the other library's entries."""


def lifted_of(tx: Any, module: str) -> Lifted:
    """The one optimizer of a port, for all arrays, in a transformation or a chain."""
    port = port_of(tx, module)
    if not isinstance(port, Lifted):
        raise TypeError(f"{tx!r} has an optimizer for each of several groups of arrays.")
    return port


def port_of(tx: Any, module: str) -> Lifted | OfMatrices:
    """The one optimizer of a port in a transformation or a chain, or that of several groups of arrays."""
    ported = [each for (each,) in walk(tx, through=Chained) if _is_of(each, module)]
    if len(ported) != 1:
        raise TypeError(
            f"expected one optimizer of adaptive_jax.interop.{module}, alone or in an aj.chain, got "
            f"{tx!r}."
        )
    return ported[0]


def _is_of(data: Any, module: str) -> bool:
    if isinstance(data, OfMatrices):
        return all(_is_of(data_of(each), module) for each in data.wrapped())
    return isinstance(data, Lifted) and _is_port(data.factory, module)


def _is_port(factory: Any, module: str) -> bool:
    return getattr(factory, "label", "").startswith(f"{module}.")


def entries_of(
    lifted: Lifted, vocabulary: Vocabulary, shape: tuple[int, ...] | None = None
) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """The entries that another library keeps for this optimizer: for slots and for scalars.

    shape: of the one array that they are for; None for those of all arrays.
    """
    slots, scalars = {}, {}
    for rule in lifted.rules:
        if decays := states.scheduled_decays(rule):
            raise ValueError(
                f"{decays[0]} of {lifted!r} is a schedule, which no saved run knows: give it a number."
            )
        words = vocabulary.get(type(rule), {})
        kept = rule.slots if shape is None else kept_slots(rule, shape)
        slots |= {slot: words[slot] for slot in kept}
        scalars |= {scalar: words[scalar] for scalar in rule.scalars}
    return slots, scalars


def kept_slots(rule: Rule, shape: tuple[int, ...]) -> list[str]:
    """The slots that hold something of an array of this shape: what it has not is one 0 here."""
    if isinstance(rule, FactoredRms):
        return ["v"] if rule.axes(shape) is None else ["v_row", "v_col"]
    return list(rule.slots)


def fill(
    tx: Any, params: Any, vocabulary: Vocabulary, module: str, saved: Mapping[str, Saved], step: int
) -> Any:
    """The state of tx with what was saved in it."""
    target = port_of(tx, module)

    def filled(_: Any, inner: Any, state: Any) -> Any:
        if inner is target and isinstance(inner, OfMatrices):
            groups = zip(inner.wrapped(), inner.params_in(params), strict=True)
            new = [fill(each, own, vocabulary, module, saved, step) for each, own in groups]
            return inner, inner.with_states(state, new)
        if inner is target and isinstance(target, Lifted):
            state = _fill(target, state, params, vocabulary, saved)
        elif isinstance(inner, Foreign) and jax.tree.leaves(state):
            raise TypeError(
                f"the chain holds {inner!r}, whose state no saved run has: import the state of the "
                "optimizer alone, and put it into the chain's."
            )
        return inner, _count_to(inner, state, step)

    return rebuilt(filled, tx, tx, tx.init(params), through=Chained)[1]


def _fill(target: Lifted, state: Any, params: Any, vocabulary: Vocabulary, saved: Any) -> Any:
    new = []
    for rule, storages, part in zip(
        target.rules, target.storages, target.split(state), strict=True
    ):
        values: dict[str, Any] = {}
        words = vocabulary.get(type(rule), {})
        for name in rule.scalars:
            value = next(iter(saved.values())).entries[words[name].name]
            values[name] = jnp.asarray(value, getattr(part, name).dtype)
        for name, storage in zip(rule.slots, storages, strict=True):
            old = getattr(part, name)
            values[name] = _slot(old, name, rule, storage, params, words[name], saved)
        new.append(part._replace(**values) if values else part)
    return target.join(new)


def _slot(
    old: Any, name: str, rule: Rule, storage: Any, params: Any, word: Entry, saved: Any
) -> Any:
    slot: Slot = rule.slots[name]
    with_path, treedef = jax.tree_util.tree_flatten_with_path(params)
    stored = []
    pairs = zip(with_path, treedef.flatten_up_to(old), strict=True)
    for index, ((path, leaf), first) in enumerate(pairs):
        if name not in kept_slots(rule, np.shape(leaf)):
            stored.append(first)
            continue
        one = saved[keystr(path, simple=True, separator="/")]
        value, what = one.entries[word.name], f"{word.name} of {one.name}"
        shape = slot.shape_for(np.shape(leaf))
        if value.shape != shape:
            of = f"the parameter {np.shape(leaf)}"
            if shape != np.shape(leaf):
                of = f"that of {of} is {shape}"
            raise ValueError(
                f"{what} has the shape {value.shape}, {of}: transpose it with a mapping, "
                "{name: (path, axes)}."
            )
        if np.iscomplexobj(value) and (slot.nonnegative or not jnp.iscomplexobj(leaf)):
            raise ValueError(f"{what} is complex, where {name} is real here.")
        if slot.nonnegative and (value < 0).any():
            raise ValueError(f"{what} has negative entries, where {name} is never negative.")
        code = storage.decode(first)
        value = jnp.array(word.sign * value, code.dtype)
        stored.append(storage.encode(value, first, jnp.uint32(index)))
    return treedef.unflatten(stored)


def _count_to(inner: Any, state: Any, step: int) -> Any:
    """The state of an optimizer of this library with its counts set."""
    if not isinstance(inner, Lifted):
        return state

    def at_step(part: Any) -> Any:
        if "count" not in getattr(part, "_fields", ()):
            return part
        return part._replace(count=jnp.asarray(step, part.count.dtype))

    return inner.join([at_step(part) for part in inner.split(state)])


def read(
    tx: Any, state: Any, params: Any, vocabulary: Vocabulary, module: str
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float], int]:
    """The reverse of `fill`: each parameter's entries, the scalars, and the count."""
    target = port_of(tx, module)
    part = next(part for each, part in walk(tx, state, through=Chained) if each is target)
    if isinstance(target, OfMatrices):
        every = zip(target.wrapped(), target.states_in(part), target.params_in(params), strict=True)
        entries, scalars, counts = zip(
            *(read(*each, vocabulary, module) for each in every), strict=True
        )
        merge = functools.partial(functools.reduce, operator.or_)
        return merge(entries), merge(scalars), max(counts)
    split = target.split(part)
    shapes = {path: np.shape(leaf) for path, leaf in paths(params).items()}
    by_path: dict[str, dict[str, np.ndarray]] = {path: {} for path in shapes}
    scalars, count = {}, 0
    for rule, storages, old in zip(target.rules, target.storages, split, strict=True):
        words = vocabulary.get(type(rule), {})
        count = max(count, int(getattr(old, "count", 0))) if states.counts_steps(rule) else count
        for name in rule.scalars:
            scalars[words[name].name] = float(getattr(old, name))
        for name, storage in zip(rule.slots, storages, strict=True):
            values = jax.tree.structure(params).flatten_up_to(getattr(old, name))
            word = words[name]
            for (path, entries), value in zip(by_path.items(), values, strict=True):
                if name not in kept_slots(rule, shapes[path]):
                    continue
                # Times a sign, an array of shape () would become a number.
                entries[word.name] = np.asarray(word.sign * array(storage.decode(value), word.name))
    return by_path, scalars, count


def setting(lifted: Lifted, name: str, default: Any) -> Any:
    """The value that an argument of the call has now; `default` if it was left without effect."""
    value = lifted.arguments().get(name)
    value = default if value is None else value
    values = value if isinstance(value, tuple) else (value,)
    for each in values:
        if np.shape(each) != () and not callable(each):
            raise ValueError(
                f"{name} of the optimizer has the shape {np.shape(each)}: a saved run is one run, so "
                "take one optimizer out of the vmapped ones with jax.tree.map(lambda x: x[i], tx)."
            )
    return value


def decaying(lifted: Lifted, params: Any) -> dict[str, bool]:
    """For the path of each parameter, whether the optimizer's mask lets its weights decay."""
    masks = [getattr(rule, "mask", None) for rule in lifted.rules]
    masks = [mask for mask in masks if mask is not None]
    if not masks:
        return dict.fromkeys(paths(params), True)
    tree = masks[0].tree(params)
    full = jax.tree.map(lambda each, part: jax.tree.map(lambda _: bool(each), part), tree, params)
    return paths(full)


def partitioned(
    tx: Mapping[Any, Any],
    params: Any,
    param_labels: Any,
    convert: Callable[[Any, Any], Any],
) -> Any:
    """The state of `optax.partition(tx, param_labels)`, from the state of each of its optimizers."""
    if param_labels is None:
        raise TypeError(
            "several optimizers need param_labels as well, the second argument of optax.partition."
        )
    own = parts(tx, params, param_labels)
    inner = {
        label: optax.MaskedState(convert(each, part))
        for (label, each), part in zip(tx.items(), own, strict=True)
    }
    state: Any = optax.partition(tx, param_labels).init(params)
    return state._replace(inner_states=inner)


def parts(tx: Mapping[Any, Any], params: Any, param_labels: Any) -> list[Any]:
    """The parameters of each label, with holes where the others are."""
    labels = param_labels(params) if callable(param_labels) else param_labels
    full = jax.tree.map(lambda label, part: jax.tree.map(lambda _: label, part), labels, params)
    if unknown := set(jax.tree.leaves(full)) - set(tx):
        raise ValueError(f"param_labels has {sorted(unknown)}, for which there is no optimizer.")

    def only(this: Any) -> Any:
        return jax.tree.map(
            lambda label, leaf: leaf if label == this else optax.MaskedNode(), full, params
        )

    return [only(this) for this in tx]
