"""In what two origins differ: in the optimizer, or in its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..._core import hyper
from ..closures import IN

# What a function closes over under these names chooses code, whatever it is.
_OPTIONS = {"every_k_schedule", "inner_factory"}


# optax makes the one of a learning rate that is a number, and the other of a schedule.
_NUMBER, _SCHEDULE = "scale", "scale_by_schedule"


_OF_SCHEDULES = {"ScaleByScheduleState", "WeightDecaySchedule"}


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
            name = key if is_number else key.partition(IN)[0]
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
    while IN in key:
        key = key.partition(IN)[2]
        if old.get(key) != new.get(key):
            return True
    return False


def _is_number(key: str, one: Any, two: Any) -> bool:
    """Whether a difference is one of numbers, such as a schedule has, and not of the optimizer."""
    if key.partition(IN)[0].lstrip("_") in _OPTIONS:
        return False
    if IN in key:
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
        f"{key.partition(IN)[0]}={each!r}"
        for key, each in value.items()
        if isinstance(each, (int, float)) and not isinstance(each, bool)
    ]
    return f"the schedule {name}({', '.join(numbers)})" if numbers else f"the schedule {name}"
