"""What made a state, as plain data: an optimizer to be compared with one of another day.

A checkpoint holds arrays and numbers. Two optimizers may keep the same ones, Adam and AdaMax do, and
what tells them apart is code: rules and their options, wrappers and theirs, masks, and the functions
of other libraries with what they close over.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path

from .._core import hyper
from .._core.lifted import Lifted
from .._core.rule import Rule, fields
from .._core.transformation import Foreign, data_behind, data_of
from ..transforms.parts import parts

# What a function closes over under these names chooses code, whatever it is.
_OPTIONS = {"every_k_schedule", "inner_factory"}


_UPDATES = {"update", "update_fn"}


_LONGEST = 1000  # Nobody's hyperparameters are a longer list than that.


# optax makes the one of a learning rate that is a number, and the other of a schedule.
_NUMBER, _SCHEDULE = "scale", "scale_by_schedule"


_OF_SCHEDULES = {"ScaleByScheduleState", "WeightDecaySchedule"}


_IN = " of "  # "init_value of learning_rate": what a function closes over, and the function.


def of(state: Any) -> dict[str, Any]:
    """What made a state, as JSON has it."""
    own = rules(state)
    tx = getattr(state, "tx", None)
    params = getattr(state, "params", None)
    return {
        "rules": own,
        "parts": list(_parts(tx, params)) if _is_optimizer(tx) else [],
        "types": _types(state, own),
        "optax": optax.__version__,
    }


# ---------------------------------------------------------------------------- rules


def rules(state: Any) -> list[dict[str, Any]]:
    """Every rule of this library in a state: which it is, where it is, and where its state is.

    fields: each hyperparameter as None, as "number", or as what `_values` tells of a schedule.
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
                "fields": {name: _field(getattr(rule, name)) for name in fields(type(rule))[0]},
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
    if value is None or not callable(value):
        return None if value is None else "number"
    values: dict[str, Any] = {}
    _values(values, [], "", getattr(value, "func", value), None)
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


def selected(mask: Any, params: Any, name: str | None = None) -> dict[str, Any]:
    """Which arrays a mask selects, by their paths; its name alone where that cannot be told."""
    try:
        tree = mask(params) if callable(mask) else mask
        if params is not None:
            tree = jax.tree.map(lambda x, part: jax.tree.map(lambda _: x, part), tree, params)
        return {keystr(path): bool(leaf) for path, leaf in tree_leaves_with_path(tree)}
    except Exception:  # It is one of some of the parameters, say, or the state has none.
        return {"": name or _name_of(mask)}


# ---------------------------------------------------------------------------- everything else


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
            _values(values, inner, field.name, getattr(data, field.name), params)
        yield {"name": repr(data).partition("(")[0], "library": None, "values": values}
        for each in inner:
            yield from _parts(each, params, inside)


def _rule_values(values: dict[str, Any], index: int, rule: Rule, params: Any) -> None:
    """A rule's options and hyperparameters, where it is in no state for all to see."""
    values[f"rules[{index}]"] = described(rule)
    for name in fields(type(rule))[0]:
        value = getattr(rule, name)
        key = f"{name}{_IN}{type(rule).__name__}"
        _values(values, [], key, getattr(value, "func", value), params)
    if (mask := getattr(rule, "mask", None)) is not None:
        values |= {
            f"mask{path}": each for path, each in selected(mask.tree, params, repr(mask)).items()
        }


def _function(update: Any, params: Any) -> Iterator[dict[str, Any]]:
    """Another library's transformation: the function that made its update, and what is closed over."""
    name = getattr(update, "__qualname__", type(update).__name__).partition(".")[0]
    values: dict[str, Any] = {}
    inner: list[Any] = []
    for key, value in _closed_over(update).items():
        _values(values, inner, key, value, params)
    if name != "with_extra_args_support":
        library = str(getattr(update, "__module__", "")).partition(".")[0]
        yield {"name": name, "library": library, "values": values}
    for each in inner:
        is_function = _is_update(each)
        yield from _function(each, params) if is_function else _parts(each, params, inside=True)


def _closed_over(function: Any) -> dict[str, Any]:
    """What a function has in its closure, a partial in itself, and optax's MultiSteps in an object."""
    if isinstance(function, functools.partial):
        args = {str(index): each for index, each in enumerate(function.args)}
        return {"function": function.func, **args, **function.keywords}
    function = getattr(function, "__wrapped__", function)
    owner = getattr(function, "__self__", None)
    if isinstance(owner, optax.MultiSteps):
        return vars(owner)
    if not hasattr(function, "__code__") or not function.__closure__:
        return {}
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__, strict=True):
        try:
            cells[name] = cell.cell_contents
        except ValueError:  # A name that has no value yet.
            continue
    return cells


def _is_update(value: Any) -> bool:
    return callable(value) and getattr(value, "__name__", "") in _UPDATES


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, (optax.GradientTransformation, Foreign))


def _values(values: dict[str, Any], inner: list[Any], key: str, value: Any, params: Any) -> None:
    """Puts what a value says into values, under names that begin with key, and optimizers into inner."""
    is_measure = hasattr(value, "update") and dataclasses.is_dataclass(value)
    if _is_optimizer(value) or _is_update(value) or is_measure:
        inner.append(value)
    elif (own := data_behind(value)) is not None:
        inner.append(own)  # The update of an optimizer of this library.
    elif key.lstrip("_") == "mask" and value is not None:
        values |= {f"mask{path}": each for path, each in selected(value, params).items()}
    elif value is None or isinstance(value, (bool, int, float, str)):
        values[key] = value
    elif isinstance(value, (np.ndarray, np.generic, jax.Array)):
        known = np.shape(value) == () and not isinstance(value, Tracer)
        number = value.item() if known else None
        is_real = isinstance(number, (bool, int, float))
        values[key] = number if is_real else f"{value.dtype}{list(np.shape(value))}"
    elif isinstance(value, np.dtype):
        values[key] = str(value)
    elif isinstance(value, (Mapping, tuple, list)) and len(value) > _LONGEST:
        values[key] = f"{len(value)} entries"
    elif isinstance(value, Mapping):
        for name, each in value.items():
            _values(values, inner, f"{key}[{name!r}]", each, params)
    elif isinstance(value, (tuple, list)):
        for index, each in enumerate(value):
            _values(values, inner, f"{key}[{index}]", each, params)
    elif callable(value) and not isinstance(value, type):
        values[key] = {"function": _name_of(value)}
        if key.count(_IN) < 8:  # A function may close over itself.
            for name, each in _closed_over(value).items():
                _values(values, [], f"{name}{_IN}{key}", each, params)


def _name_of(function: Callable[..., Any]) -> str:
    function = getattr(function, "func", function)
    return str(getattr(function, "__qualname__", type(function).__name__))


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


# ---------------------------------------------------------------------------- comparing


def differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """In what two origins differ beside their rules: what makes another optimizer, and what is a number.

    The names inside another library are its own affair: of two versions of optax they are not compared.
    """
    other = [
        f"{path} is {saved['types'].get(path, 'none')} in the checkpoint and "
        f"{given['types'].get(path, 'none')} in the state"
        for path in {**given["types"], **saved["types"]}
        if path in saved["types"] and path in given["types"]
        if saved["types"][path] != given["types"][path]
    ]
    numbers: list[str] = []
    known = None if saved["optax"] == given["optax"] else "optax"
    before = [part for part in saved["parts"] if known is None or part["library"] != known]
    after = [part for part in given["parts"] if known is None or part["library"] != known]
    names = [[part["name"] for part in each] for each in (before, after)]
    kinds = [[_NUMBER if name == _SCHEDULE else name for name in each] for each in names]
    if kinds[0] != kinds[1]:
        texts = [", ".join(each) or "nothing" for each in names]
        return [f"the optimizer was made of {texts[0]}, this one is of {texts[1]}", *other], []
    for old, new in zip(before, after, strict=True):
        if old["name"] != new["name"]:
            continue  # See `schedules`.
        for key in {**old["values"], **new["values"]}:
            one, two = old["values"].get(key), new["values"].get(key)
            if same(one, two) or _is_in_other_function(key, old["values"], new["values"]):
                continue
            # A user's own function may close over the name of a file, which is no other optimizer.
            is_own_text = old["library"] not in (None, "optax") and str in (type(one), type(two))
            is_number = _is_number(key, one, two) or is_own_text
            name = key if is_number else key.partition(_IN)[0]
            text = (
                f"{name.lstrip('_')} of {old['name']} is {shown(one)} in the checkpoint and "
                f"{shown(two)} in the state"
            )
            (numbers if is_number else other).append(text)
    return other, numbers


def schedules(saved: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Where only one of the two has a schedule of optax's, by the paths of its states."""
    before, after = (
        {path for path, name in each["types"].items() if name in _OF_SCHEDULES}
        for each in (saved, given)
    )
    return before - after, after - before


def same(one: Any, two: Any) -> bool:
    """Whether two values are equal, NaN to itself."""
    return one == two or (one != one and two != two)


def _is_in_other_function(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether it is closed over by a function that is another one: that says it all."""
    while _IN in key:
        key = key.partition(_IN)[2]
        if old.get(key) != new.get(key):
            return True
    return False


def _is_number(key: str, one: Any, two: Any) -> bool:
    """Whether a difference is one of numbers, such as a schedule has, and not of the optimizer."""
    if key.partition(_IN)[0].lstrip("_") in _OPTIONS:
        return False
    if _IN in key:
        return True
    return all(
        each is None or (isinstance(each, (int, float, Mapping)) and not isinstance(each, bool))
        for each in (one, two)
    )


def shown(value: Any) -> str:
    """A value as a person would say it, a schedule with its numbers."""
    if not isinstance(value, Mapping):
        return "none" if value is None else hyper.show(value)
    if "function" in value:
        return value["function"].partition(".<locals>")[0]
    if isinstance(value[""], str):
        return value[""]
    name = shown(value[""])
    numbers = [
        f"{key.partition(_IN)[0]}={each!r}"
        for key, each in value.items()
        if isinstance(each, (int, float)) and not isinstance(each, bool)
    ]
    return f"the schedule {name}({', '.join(numbers)})" if numbers else f"the schedule {name}"


def names_of_optax(tx: Any) -> set[str]:
    """What of optax is in a transformation, and in the factories of those that it injects numbers into."""
    parts = [part for part in _parts(tx, None) if part["library"] == "optax"]
    factories = [part["values"].get("inner_factory") for part in parts]
    return {part["name"] for part in parts} | {each["function"] for each in factories if each}
