"""Which rule of a checkpoint is which of a state, with its hyperparameters on both sides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import jax
import numpy as np

from ..._core import hyper
from ..origin import IS_DATA, under
from .entries import Saved
from .origins import shown


@dataclass(frozen=True)
class Hyperparameter:
    """One hyperparameter of a rule, in a checkpoint and in a state.

    there, here: what it is in each: None, "number", or what a schedule tells of itself.
    number: the number in the checkpoint, as a person would say it.
    leaves: the entries that it has in the state, from their names to what is there.
    """

    name: str
    there: Any
    here: Any
    number: str
    leaves: Mapping[str, Any]

    @property
    def is_scheduled(self) -> bool:
        """Whether it is a schedule on both sides: the same one as data, or functions, which are code."""
        if not (isinstance(self.here, Mapping) and isinstance(self.there, Mapping)):
            return False
        return self.here == self.there or not (IS_DATA in self.here or IS_DATA in self.there)

    @property
    def is_of_another_kind(self) -> bool:
        """Whether it is none, a number or a schedule in one, and not so in the other; or another one."""
        return self.here != self.there and not self.is_scheduled

    @property
    def numbers(self) -> list[str]:
        """The entries that are numbers on both sides, those of a schedule among them."""
        are_numbers = self.is_scheduled or self.here == self.there == "number"
        return list(self.leaves) if are_numbers else []

    def __str__(self) -> str:
        given = next(iter(self.leaves.values())) if len(self.leaves) == 1 else None
        there = self.number if self.there == "number" else shown(self.there)
        here = shown_number(given) if self.here == "number" else shown(self.here)
        return f"{self.name} is {there} in the checkpoint and {here} in the state"


@dataclass(frozen=True)
class Pair:
    """A rule that was saved and the same one of a state, as `origin` tells of them.

    One of the two is None where a rule is only a hyperparameter: a weight decay of 0 is no rule.
    """

    old: Any
    new: Any
    hyperparameters: Sequence[Hyperparameter]

    @property
    def changed(self) -> list[str]:
        """The names of the hyperparameters that are of another kind."""
        return [each.name for each in self.hyperparameters if each.is_of_another_kind]

    def sources(self, entries: Iterable[str]) -> Iterator[tuple[str, str]]:
        """The rule's entries in the state, each with its name in the checkpoint; "" if it has none."""
        for kind in ("path", "state"):
            before = None if self.old is None else self.old[kind]
            after = None if self.new is None else self.new[kind]
            if after is None:
                continue
            for name in entries:
                if under(name, after):
                    yield name, "" if before is None else before + name.removeprefix(after)


def pairs_of(
    saved: Saved, given: list[dict[str, Any]], entries: Mapping[str, Any]
) -> list[Pair] | None:
    """Each rule that was saved with the same one here; None if they are those of another optimizer."""
    matched = _matched(saved, given)
    if matched is None:
        return None
    return [Pair(old, new, list(_compared(saved, old, new, entries))) for old, new in matched]


def _matched(saved: Saved, given: list[dict[str, Any]]) -> list[tuple[Any, Any]] | None:
    names = [rule["rule"] for rule in given]
    if saved.origin is None:
        unknown = [{**rule, "fields": None} for rule in given]
        return list(zip(unknown, given, strict=True)) if saved.rules == names else None
    before: list[Any] = saved.origin["rules"]
    matched: list[tuple[Any, Any]] = []
    for tag, i, j, k, n in SequenceMatcher(None, saved.rules, names, autojunk=False).get_opcodes():
        old, new = before[i:j], given[k:n]
        if tag == "equal":
            matched += zip(old, new, strict=True)
            continue
        if any(rule["keeps"] or not rule["fields"] for rule in [*old, *new]):
            return None
        if {kind_of_rule(rule) for rule in old} & {kind_of_rule(rule) for rule in new}:
            return None  # The same rule with other options.
        matched += [(rule, None) for rule in old] + [(None, rule) for rule in new]
    return matched


def kind_of_rule(rule: Mapping[str, Any]) -> str:
    """The name of a rule, without its options."""
    return rule["rule"].partition("(")[0]


def _compared(
    saved: Saved, old: Any, new: Any, entries: Mapping[str, Any]
) -> Iterator[Hyperparameter]:
    names = list((new or old)["fields"])
    if new is not None and old is not None:
        # A tree has other names than a number, or another tree.
        known = {base_of(name) for name in names}
        before = (name for name in old["fields"] or () if name not in names)
        names += [name for name in before if base_of(name) in known]
    for name in names:
        here: Any = None
        leaves: dict[str, Any] = {}
        if new is not None:
            here = new["fields"].get(name)
            leaves = {
                each: entries[each] for each in entries if under(each, f"{new['path']}.{name}")
            }
        there, number = _saved_field(saved, old, name, here)
        yield Hyperparameter(name, there, here, number, leaves)


def base_of(name: str) -> str:
    """The name of a hyperparameter, for one in a tree that of the tree."""
    return re.split(r"[.[]", name, maxsplit=1)[0]


def _saved_field(saved: Saved, old: Any, name: str, here: Any) -> tuple[Any, str]:
    """What a hyperparameter was: None, "number" or a schedule; and the number."""
    if old is None:
        return None, ""
    path = f"{old['path']}.{name}"
    number = shown_number(saved.numbers.get(path))
    if old["fields"] is not None:
        return old["fields"].get(name), number
    if any(under(each, path) for each in saved.entries):
        return "number", number
    # None, or a schedule: version 0.1.0 did not say.
    return ({"": "a schedule, or none"} if here == "number" else here), number


def shown_number(value: Any) -> str:
    """A hyperparameter as a person would say it, None for one whose value is not at hand."""
    if value is None or isinstance(value, jax.ShapeDtypeStruct):
        return "a number"
    if np.ndim(value) > 0 and np.size(value) <= 8:
        return f"[{', '.join(f'{each:.6g}' for each in np.ravel(value))}]"
    return hyper.show(value)
