"""What is in no checkpoint, made of what is: a new hyperparameter, and what a new schedule needs."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ... import maths
from ..origin import under
from .differences import Both
from .placement import fresh

Maker = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""A function that makes an entry, of the other entries and of what was restored."""


def maker(name: str, both: Both, sources: Mapping[str, str]) -> Maker | None:
    """How to make an entry that a checkpoint need not have; None if nothing tells.

    sources: from the entries that are restored to those of the checkpoint.
    """
    leaf = both.entries[name]
    if not needs_others(name):
        return lambda values, restored: leaf
    rules = [rule for rule in both.origin["rules"] if rule["state"] is not None]
    rule = next((rule for rule in rules if under(name, rule["state"])), None)
    if _is_correction(name):
        return _correction(name, both, rule)
    others = [
        each for each in _other_counts(name, both, rule) if sources.get(each) in both.saved.entries
    ]
    group, is_group, _ = name.rpartition(".inner_opt_state")
    others += [f"{group}.gradient_step"] if is_group else []
    if others:
        return lambda values, restored: fresh(values[others[0]], leaf)
    return _steps(name, leaf) if ".step" in both.entries else None


def needs_others(name: str) -> bool:
    """Whether an entry that is made is no hyperparameter, which is as the state has it."""
    return name.endswith(".count") or _is_correction(name)


def _is_correction(name: str) -> bool:
    """Whether an entry is a bias correction, or one in a tree of them."""
    return re.search(r"^\.opt_state\b.*\.\w+_correction\b", name) is not None


def _correction(name: str, both: Both, rule: Any) -> Maker | None:
    """A bias correction, as if the number that was saved had been a schedule all along.

    Where there is a tree now, what was saved may have been one number, or one correction, for all of it
    or for a branch.
    """
    old = next((pair.old for pair in both.pairs or () if pair.new is rule), None)
    if rule is None or old is None:
        return None
    leaf, entries = both.entries[name], both.saved.entries
    own = name.removeprefix(f"{rule['state']}.")
    field = own.replace("_correction", "", 1)
    known = next(
        (x for x in entries if under(f"{old['state']}.{own}", x) and x != old["state"]), None
    )
    if known is not None:
        return lambda values, restored: fresh(both.saved.value(known, restored), leaf)
    source = next((each for each in entries if under(f"{old['path']}.{field}", each)), None)
    if source is None:
        return None

    def make(values: Mapping[str, Any], restored: Mapping[str, Any]) -> Any:
        b = both.saved.value(source, restored)
        decay = maths.DecayRate(b, 1.0 - b) if isinstance(b, float) else b  # type: ignore[arg-type]
        decay = jax.tree.map(lambda x: jnp.asarray(x, leaf.dtype), decay)
        return fresh(maths.power_complement(decay, values[f"{rule['state']}.count"]), leaf)

    return make


def _other_counts(name: str, both: Both, rule: Any) -> list[str]:
    """The counts of the same optimizer, which agree with this one."""
    if rule is None:  # In a chain of optax's.
        chain = name.rpartition("[")[0]
        return [
            each
            for each in both.entries
            if each.startswith(f"{chain}[") and each.endswith("].count")
        ]

    def optimizer(rule: Any) -> str:
        return rule["path"].rpartition(".rules[")[0]

    return [
        f"{each['state']}.count"
        for each in both.origin["rules"]
        if each["state"] is not None and each is not rule and optimizer(each) == optimizer(rule)
    ]


def _steps(name: str, leaf: Any) -> Maker:
    """A count, as that of the run's steps that were not skipped."""
    wrapper, is_wrapped, _ = name.rpartition(".inner_state")
    skipped = [".skipped", f"{wrapper}.total" if is_wrapped else ""]

    def make(values: Mapping[str, Any], restored: Mapping[str, Any]) -> Any:
        left_out = [values[each] for each in skipped if each in values]
        return fresh(functools.reduce(lambda a, b: a - b, left_out, values[".step"]), leaf)

    return make
