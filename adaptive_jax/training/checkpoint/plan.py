"""Which entry of a checkpoint becomes which of a state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..origin import of, under
from .differences import differences, schedules
from .entries import Plan, Saved, fits, kind_of
from .made import maker
from .messages import difference, refuse
from .pairs import fields_of, masks, movable, pairs_of


def plan_of(saved: Saved, state: Any, entries: dict[str, Any], choice: str | None) -> Plan:
    """Raises a ValueError that names what makes the checkpoint one of another optimizer or state."""
    origin = of(state)
    plan, problems = Plan(), []
    if saved.origin is not None:
        problems, plan.code = differences(saved.origin, origin)
    pairs = pairs_of(saved, origin["rules"])
    if pairs is None:
        other = "no rules of this library"
        names = [rule["rule"] for rule in origin["rules"]]
        problems.insert(
            0,
            f"the optimizer was made of {', '.join(saved.rules) or other}, this one is of "
            f"{', '.join(names) or other}",
        )
        pairs = []
    is_other = bool(problems)
    plan.sources = {name: name for name in entries}
    forms: list[str] = []
    new_names: set[str] = set()  # What the checkpoint need not have,
    old_names: set[str] = set()  # and what the state need not have.
    storages: list[str] = []
    if saved.origin is not None:
        before, after = schedules(saved.origin, origin)
        words = "a schedule", "a number"
        for places, there, here in ((before, *words), (after, *reversed(words))):
            forms += [
                f"the learning rate or decay of {place} is {there} in the checkpoint and {here} in the "
                "state"
                for place in places
            ]
        old_names |= {f"{place}.count" for place in before}
        new_names |= {f"{place}.count" for place in after}
    for old, new in pairs:
        moved, texts = fields_of(saved, old, new, entries, plan)
        forms += texts
        if new is not None:
            for kind in ("path", "state"):
                before, after = (old or {}).get(kind), new[kind]
                for name in entries:
                    if after is not None and under(name, after):
                        plan.sources[name] = "" if before is None else before + name[len(after) :]
            new_names |= movable(entries, new, moved)
        if old is not None:
            old_names |= movable(saved.entries, old, moved)
        if moved and saved.origin is None:  # Where the states of its rules were is not said.
            old_names |= {
                each for each in saved.entries if each.endswith((".count", "_correction"))
            }
        if old is not None and new is not None and not moved and saved.origin is not None:
            problems += masks(old, new)
        if old is not None and new is not None:
            storages += [
                f"the storage of {slot} is {old['storage'].get(slot)} in the checkpoint and {storage} in "
                "the state"
                for slot, storage in new["storage"].items()
                if old["storage"].get(slot) != storage
            ]
    wanted = {name: kind_of(leaf) for name, leaf in entries.items()}
    used = set(plan.sources.values())
    others = []
    for name, kind in wanted.items():
        source = plan.sources[name]
        if source not in saved.entries and name in new_names:
            make = maker(name, entries, origin["rules"], pairs, saved, plan.sources)
            if make is not None:
                plan.made[name] = make
                del plan.sources[name]
                continue
        if not fits(saved.entries.get(source), kind):
            others.append((name, saved.entries.get(source), kind))
    unused = set(saved.entries) - used - old_names
    others += [(name, kind, None) for name, kind in saved.entries.items() if name in unused]
    # Another optimizer has other entries, which say nothing more.
    problems += storages if others else []
    problems += [
        difference(*each)
        for each in others
        if not (is_other and each[0].startswith((".opt_state", ".tx")))
    ]
    plan.numbers += injected(entries, origin["types"])
    # Numbers that are no rule's, such as those that were traced in a function of optax's.
    places = [rule["path"] for rule in origin["rules"]]
    plan.numbers += [
        name
        for name in entries
        if under(name, ".tx") and not any(under(name, place) for place in places)
    ]
    refuse(problems, forms, plan, entries, choice)
    return plan


def injected(entries: Iterable[str], types: Mapping[str, str]) -> list[str]:
    """The numbers that optax.inject_hyperparams keeps in its state, but for those under a schedule."""
    places = [path for path, name in types.items() if name.startswith("Inject")]
    entries = list(entries)
    found = []
    for place in places:
        for name in entries:
            key = name.removeprefix(f"{place}.hyperparams[")
            scheduled = f"{place}.hyperparams_states[{key}"
            if key != name and not any(under(each, scheduled) for each in entries):
                found.append(name)
    return found
