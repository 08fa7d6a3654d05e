"""Which rule of a checkpoint is which of a state, and what of it may come and go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any

import jax
import numpy as np

from ..._core import hyper
from ..origin import under
from .differences import shown
from .entries import Plan, Saved


def pairs_of(saved: Saved, given: list[Any]) -> list[tuple[Any, Any]] | None:
    """Each rule that was saved with the same one here; with None one that is only a hyperparameter.

    A weight decay of 0 is no rule at all. None if the rules are those of another optimizer.
    """
    names = [rule["rule"] for rule in given]
    if saved.origin is None:
        unknown = [{**rule, "fields": None} for rule in given]
        return list(zip(unknown, given, strict=True)) if saved.rules == names else None
    before: list[Any] = saved.origin["rules"]
    pairs: list[tuple[Any, Any]] = []
    for tag, i, j, k, n in SequenceMatcher(None, saved.rules, names, autojunk=False).get_opcodes():
        old, new = before[i:j], given[k:n]
        if tag == "equal":
            pairs += zip(old, new, strict=True)
            continue
        if any(rule["keeps"] or not rule["fields"] for rule in [*old, *new]):
            return None
        if {type_of(rule) for rule in old} & {type_of(rule) for rule in new}:
            return None  # The same rule with other options.
        pairs += [(rule, None) for rule in old] + [(None, rule) for rule in new]
    return pairs


def type_of(rule: Any) -> str:
    return rule["rule"].partition("(")[0]


def fields_of(
    saved: Saved, old: Any, new: Any, entries: Mapping[str, Any], plan: Plan
) -> tuple[list[str], list[str]]:
    """The hyperparameters of a rule that are a number on one side only, and a sentence for each."""
    moved, texts = [], []
    for name in (new or old)["fields"]:
        here, leaves = None, []
        if new is not None:
            here = new["fields"][name]
            leaves = [each for each in entries if under(each, f"{new['path']}.{name}")]
        there, number = _saved_field(saved, old, name, here)
        is_schedule = isinstance(here, dict) and isinstance(there, dict)
        if is_schedule or here == there == "number":
            plan.numbers += leaves
        if here == there:
            continue
        given = entries[leaves[0]] if len(leaves) == 1 else None
        text = (
            f"{name} is {number if there == 'number' else shown(there)} in the checkpoint and "
            f"{number_shown(given) if here == 'number' else shown(here)} in the state"
        )
        if is_schedule:
            plan.code.append(text)
        else:
            moved.append(name)
            texts.append(text)
    return moved, texts


def _saved_field(saved: Saved, old: Any, name: str, here: Any) -> tuple[Any, str]:
    """What a hyperparameter was: None, "number" or a schedule; and the number."""
    if old is None:
        return None, ""
    path = f"{old['path']}.{name}"
    number = number_shown(saved.numbers.get(path))
    if old["fields"] is not None:
        return old["fields"].get(name), number
    if any(under(each, path) for each in saved.entries):
        return "number", number
    # None, or a schedule: version 0.1.0 did not say.
    return ({"": "a schedule, or none"} if here == "number" else here), number


def number_shown(value: Any) -> str:
    """A hyperparameter as a person would say it, None for one whose value is not at hand."""
    if value is None or isinstance(value, jax.ShapeDtypeStruct):
        return "a number"
    if np.ndim(value) > 0 and np.size(value) <= 8:
        return f"[{', '.join(f'{each:.6g}' for each in np.ravel(value))}]"
    return hyper.show(value)


def movable(entries: Iterable[str], rule: Any, moved: list[str]) -> set[str]:
    """The entries that come and go with hyperparameters: themselves, and what a schedule needs."""
    if not moved:
        return set()
    places = [f"{rule['path']}.{name}" for name in moved]
    if rule["state"] is not None:
        places += [f"{rule['state']}{each}.count" for each in ("", ".inner_state")]
        places += [f"{rule['state']}.{name}_correction" for name in moved]
    return {name for name in entries if any(under(name, place) for place in places)}


def masks(old: Any, new: Any) -> list[str]:
    """In what the masks of a rule differ, as a sentence."""
    before, after = old["mask"], new["mask"]
    if before == after:
        return []

    def shown(mask: Any) -> str:
        if mask is None:
            return "all arrays"
        if "" in mask and isinstance(mask[""], str):
            return mask[""]
        chosen = [path or "the array" for path, selects in mask.items() if selects]
        return ", ".join(chosen) or "nothing"

    return [
        f"the mask of {type_of(new)} selects {shown(before)} in the checkpoint and {shown(after)} in "
        "the state"
    ]
