"""What made a state, as plain data: an optimizer to be compared with one of another day.

A checkpoint holds arrays and numbers. Two optimizers may keep the same ones, Adam and AdaMax do, and
what tells them apart is code: rules and their options, wrappers and theirs, masks, and the functions
of other libraries with what they close over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import optax
from jax.tree_util import keystr, tree_leaves_with_path

from .._core import hyper
from .._core.lifted import Lifted
from .._core.rule import Rule, fields
from .._core.schedule import Schedule, outline
from .._core.transformation import Foreign, data_of
from .._core.wrapper import Wrapper
from ..transforms.parts import parts
from .closures import IN, add_value, closed_over, is_optimizer, is_update, selected

IS_DATA = "is data"
"""What is told of a schedule whose numbers are entries of the state, beside its outline."""


def of(state: Any) -> dict[str, Any]:
    """What made a state, as JSON has it."""
    own = rules(state)
    tx = getattr(state, "tx", None)
    params = getattr(state, "params", None)
    return {
        "rules": own,
        "parts": list(_parts(tx, params)) if is_optimizer(tx) else [],
        "types": _types(state, own),
        "optax": optax.__version__,
    }


def rules(state: Any) -> list[dict[str, Any]]:
    """Every rule of this library in a state: which it is, where it is, and where its state is.

    fields: each hyperparameter as None, as "number", or as what `add_value` tells of a function; of a
      schedule that is data, its outline; of a tree each one in it, under "learning_rate['w']".
    storage: how each of its slots is kept.
    keeps: whether it has a state of its own, beside a count.
    mask: which arrays it selects, by their paths; None for all.
    """
    found = tree_leaves_with_path(state, is_leaf=lambda x: isinstance(x, Rule))
    places = _places_of_states(state)
    params = getattr(state, "params", None)
    records = []
    for path, rule in found:
        if not isinstance(rule, Rule):
            continue
        mask = getattr(rule, "mask", None)
        place, storages = places[id(rule)].pop(0) if places.get(id(rule)) else (None, [])
        records.append(
            {
                "rule": described(rule),
                "path": keystr(path),
                "state": place,
                "storage": dict(zip(rule.slots, storages, strict=False)),
                "keeps": bool(rule.slots or rule.scalars),
                "fields": {
                    where: _field(each)
                    for name in fields(type(rule)).data
                    for where, each in hyper.named(name, getattr(rule, name))
                },
                "mask": None if mask is None else selected(mask.tree, params, repr(mask)),
            }
        )
    return records


def described(rule: Rule) -> str:
    """A rule and its options: Adam and AdaMax have the same slots."""
    options = {name: getattr(rule, name) for name in fields(type(rule))[2]}
    shown = [f"{name}={value}" for name, value in options.items() if isinstance(value, (bool, str))]
    return f"{type(rule).__name__}({', '.join(shown)})"


def _field(value: Any) -> Any:
    if not hyper.is_schedule(value):
        return None if value is None else "number"
    if isinstance(value, Schedule):
        return {"": {"function": outline(value)}, IS_DATA: True}
    values: dict[str, Any] = {}
    add_value(values, [], "", getattr(value, "func", value), None)
    return values


def _places_of_states(state: Any) -> dict[int, list[tuple[str | None, list[str]]]]:
    """For the id of each rule, the paths of its states, None without arrays; and its storages."""
    names = jax.tree_util.tree_map_with_path(lambda path, _: keystr(path), state)
    places: dict[int, list[tuple[str | None, list[str]]]] = {}
    try:
        every = list(parts(state.tx, names.opt_state))
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return {}  # No TrainState, or one whose optimizer has no state, as after training.
    for rule, storages, part in every:
        leaves = tree_leaves_with_path(part)
        place = leaves[0][1].removesuffix(keystr(leaves[0][0])) if leaves else None
        places.setdefault(id(rule), []).append((place, [repr(each) for each in storages]))
    return places


def _parts(tx: Any, params: Any, inside: bool = False) -> Iterator[dict[str, Any]]:
    """A transformation and all that is in it, each with its name and what it was made with.

    inside: whether it is in another library's function, where its rules are not seen as data.
    """
    data = data_of(tx)
    values: dict[str, Any] = {}
    inner: list[Any] = []
    if isinstance(data, Foreign):
        yield from _function(data.transformation.update, params)
    elif isinstance(data, optax.GradientTransformation):
        yield from _function(data.update, params)
    elif isinstance(data, Lifted):
        for index, rule in enumerate(data.rules if inside else ()):
            _rule_values(values, index, rule, params)
        yield {"name": "transform", "library": None, "values": values}
    else:
        for field in dataclasses.fields(data):
            add_value(values, inner, field.name, getattr(data, field.name), params)
        yield {"name": repr(data).partition("(")[0], "library": None, "values": values}
        seen = _seen_in(data, params)
        for each in inner:
            yield from _parts(each, seen.get(id(each), params), inside)


def _seen_in(data: Any, params: Any) -> dict[int, Any]:
    """For the id of each transformation in a wrapper, what it sees of the parameters."""
    if params is None or not isinstance(data, Wrapper):
        return {}
    try:
        return dict(zip(map(id, data.wrapped()), data.params_in(params), strict=True))
    except (TypeError, ValueError):
        return {}  # Parameters of another optimizer.


def _rule_values(values: dict[str, Any], index: int, rule: Rule, params: Any) -> None:
    """A rule's options and hyperparameters, where it is in no state for all to see."""
    values[f"rules[{index}]"] = described(rule)
    for name in fields(type(rule))[0]:
        value = getattr(rule, name)
        key = f"{name}{IN}{type(rule).__name__}"
        add_value(values, [], key, getattr(value, "func", value), params)
    if (mask := getattr(rule, "mask", None)) is not None:
        values |= {
            f"mask{path}": each for path, each in selected(mask.tree, params, repr(mask)).items()
        }


def _function(update: Any, params: Any) -> Iterator[dict[str, Any]]:
    """Another library's transformation: the function that made its update, and what is closed over."""
    name = getattr(update, "__qualname__", type(update).__name__).partition(".")[0]
    values: dict[str, Any] = {}
    inner: list[Any] = []
    for key, value in closed_over(update).items():
        add_value(values, inner, key, value, params)
    if name != "with_extra_args_support":
        library = str(getattr(update, "__module__", "")).partition(".")[0]
        yield {"name": name, "library": library, "values": values}
    for each in inner:
        is_function = is_update(each)
        yield from _function(each, params) if is_function else _parts(each, params, inside=True)


def _types(state: Any, own: list[dict[str, Any]]) -> dict[str, str]:
    """The names of the types in an optimizer's state, but for the states of rules of this library."""
    places = [record["state"] for record in own if record["state"] is not None]
    users = set(_named_tuples(getattr(state, "params", None), "").values())
    types = _named_tuples(getattr(state, "opt_state", None), ".opt_state")
    return {
        path: name
        for path, name in types.items()
        if name not in users and not any(under(path, place) for place in places)
    }


def _named_tuples(tree: Any, path: str) -> dict[str, str]:
    """The name of every NamedTuple with arrays in it, by its path."""
    found = {}
    if hasattr(tree, "_fields") and jax.tree.leaves(tree):
        found[path] = type(tree).__name__
    for step, child in tree_leaves_with_path(tree, is_leaf=lambda x: x is not tree):
        if step:
            found |= _named_tuples(child, path + keystr(step))
    return found


def under(name: str, path: str) -> bool:
    """Whether an entry is at a path, or in what is there."""
    return name == path or name.startswith((path + ".", path + "["))


def names_of_optax(tx: Any) -> set[str]:
    """What of optax is in a transformation, and in the factories of those that it injects numbers into."""
    found = [part for part in _parts(tx, None) if part["library"] == "optax"]
    factories = [part["values"].get("inner_factory") for part in found]
    return {part["name"] for part in found} | {each["function"] for each in factories if each}
