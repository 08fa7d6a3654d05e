"""How each entry of a state is made: of which one of a checkpoint, or of others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..origin import of, under
from .differences import Both, Difference, differences
from .entries import Saved
from .made import Maker, maker, needs_others
from .pairs import Pair, base_of, pairs_of


@dataclass(frozen=True)
class Plan:
    """How each entry of a state is made.

    sources: for what is restored, the name that it has in the checkpoint.
    made: for what is in no checkpoint, a function of the other entries and of what was restored.
    numbers: the names of the hyperparameters that are numbers on both sides.
    differences: in what the checkpoint and the state differ beside these numbers.
    """

    sources: Mapping[str, str]
    made: Mapping[str, Maker]
    numbers: list[str]
    differences: list[Difference]


def plan_of(saved: Saved, state: Any, entries: Mapping[str, Any]) -> Plan:
    """The plan for a state, whatever the checkpoint is of."""
    origin = of(state)
    both = Both(saved, origin, entries, pairs_of(saved, origin["rules"], entries))
    sources = {name: name for name in entries}
    for pair in both.pairs or ():
        sources |= pair.sources(entries)
    is_new, may_be_gone = _that_come(both), _that_go(both)
    made: dict[str, Maker] = {}
    for name in entries:
        # Two schedules may have a number of one name, which is not the same one.
        if name in is_new and (sources[name] not in saved.entries or not needs_others(name)):
            make = maker(name, both, sources)
            if make is not None:
                made[name] = make
                del sources[name]
    return Plan(sources, made, list(_numbers(both)), differences(both, sources, may_be_gone))


def _that_come(both: Both) -> set[str]:
    """The entries of the state that a checkpoint need not have."""
    _, after = both.schedules()
    names = {f"{place}.count" for place in after}
    return names.union(*(_moved(both.entries, pair.new, pair) for pair in both.pairs or ()))


def _that_go(both: Both) -> set[str]:
    """The entries of the checkpoint that a state need not have."""
    pairs, saved = both.pairs or (), both.saved
    before, _ = both.schedules()
    names = {f"{place}.count" for place in before}
    if saved.origin is None and any(pair.changed for pair in pairs):
        # Where the states of its rules were is not said.
        names |= {each for each in saved.entries if each.endswith((".count", "_correction"))}
    return names.union(*(_moved(saved.entries, pair.old, pair) for pair in pairs))


def _moved(entries: Iterable[str], rule: Any, pair: Pair) -> set[str]:
    """The entries that come and go with hyperparameters: themselves, and what a schedule needs.

    rule: the one of the pair to which the entries belong.
    """
    if rule is None or not pair.changed:
        return set()
    places = [f"{rule['path']}.{name}" for name in pair.changed]
    if rule["state"] is not None:
        places += [f"{rule['state']}{each}.count" for each in ("", ".inner_state")]
        # Of a tree all corrections come and go together.
        places += [f"{rule['state']}.{base_of(name)}_correction" for name in pair.changed]
    return {name for name in entries if any(under(name, place) for place in places)}


def _numbers(both: Both) -> Iterator[str]:
    """The hyperparameters that are numbers on both sides, by the names of their entries."""
    for pair in both.pairs or ():
        for each in pair.hyperparameters:
            yield from each.numbers
    yield from _injected(both.entries, both.origin["types"])
    # Numbers that are no rule's, such as those that were traced in a function of optax's.
    places = [rule["path"] for rule in both.origin["rules"]]
    for name in both.entries:
        if under(name, ".tx") and not any(under(name, place) for place in places):
            yield name


def _injected(entries: Iterable[str], types: Mapping[str, str]) -> Iterator[str]:
    """The numbers that optax.inject_hyperparams keeps in its state, but for those under a schedule."""
    for place in [path for path, name in types.items() if name.startswith("Inject")]:
        for name in entries:
            key = name.removeprefix(f"{place}.hyperparams[")
            scheduled = f"{place}.hyperparams_states[{key}"
            if key != name and not any(under(each, scheduled) for each in entries):
                yield name
