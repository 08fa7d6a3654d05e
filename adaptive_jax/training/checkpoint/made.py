"""What is in no checkpoint, made of what is."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ... import maths
from ..origin import under
from .entries import Saved
from .placement import fresh


def maker(
    name: str,
    entries: Mapping[str, Any],
    rules: list[Any],
    pairs: list[Any],
    saved: Saved,
    sources: Mapping[str, str],
) -> Any:
    """A function for an entry that no checkpoint has: a new hyperparameter, or what a schedule needs."""
    leaf = entries[name]
    if not name.endswith((".count", "_correction")):
        return lambda values, restored: leaf
    rules = [rule for rule in rules if rule["state"] is not None]
    rule = next((rule for rule in rules if under(name, rule["state"])), None)
    if name.endswith("_correction"):
        field_name = name.rpartition(".")[2].removesuffix("_correction")
        old = next(old for old, new in pairs if new is rule)
        source = f"{old['path']}.{field_name}"
        place = rule["state"] if rule is not None else ""

        def correction(values: Mapping[str, Any], restored: Mapping[str, Any]) -> Any:
            b = saved.value(source, restored)
            decay = maths.DecayRate(b, 1.0 - b) if isinstance(b, float) else b  # type: ignore[arg-type]
            decay = jax.tree.map(lambda x: jnp.asarray(x, leaf.dtype), decay)
            return fresh(maths.power_complement(decay, values[f"{place}.count"]), leaf)

        return correction
    if rule is None:  # In a chain of optax's.
        chain = name.rpartition("[")[0]
        others = [
            each for each in entries if each.startswith(f"{chain}[") and each.endswith("].count")
        ]
    else:
        optimizer = rule["path"].rpartition(".rules[")[0]
        same = [each for each in rules if each["path"].rpartition(".rules[")[0] == optimizer]
        others = [f"{each['state']}.count" for each in same if each is not rule]
    known = [each for each in others if sources.get(each) in saved.entries]
    group, is_group, _ = name.rpartition(".inner_opt_state")
    known += [f"{group}.gradient_step"] if is_group else []
    if known:
        return lambda values, restored: fresh(values[known[0]], leaf)
    wrapper, is_wrapped, _ = name.rpartition(".inner_state")
    skipped = [".skipped", f"{wrapper}.total" if is_wrapped else ""]

    def steps(values: Mapping[str, Any], restored: Mapping[str, Any]) -> Any:
        left_out = [values[each] for each in skipped if each in values]
        return fresh(functools.reduce(lambda a, b: a - b, left_out, values[".step"]), leaf)

    return steps if ".step" in entries else None
