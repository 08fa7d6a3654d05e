"""In what a checkpoint and a state can differ: a function for each kind of difference.

Each says what it compares, what a difference means, and how it is said.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import origins
from .entries import Saved, kind_of
from .pairs import Pair, kind_of_rule


class Meaning(enum.Enum):
    """What a difference means for a run that goes on."""

    ANOTHER = "The checkpoint is of another optimizer or state, and is refused."
    KIND = "A number became a schedule, say: what the state has is taken, if that is asked for."
    CODE = "What no checkpoint holds is in force as the state has it, and that is said."


@dataclass(frozen=True)
class Difference:
    """In what a checkpoint and a state differ, as a sentence."""

    meaning: Meaning
    text: str


@dataclass(frozen=True)
class Both:
    """A checkpoint and the state that it is to become.

    origin: what made the state.
    entries: those of the state.
    pairs: the rules of both; None if they are those of another optimizer.
    """

    saved: Saved
    origin: Mapping[str, Any]
    entries: Mapping[str, Any]
    pairs: Sequence[Pair] | None

    def shared_pairs(self) -> list[Pair]:
        """The rules that are there on both sides."""
        pairs = self.pairs or ()
        return [pair for pair in pairs if pair.old is not None and pair.new is not None]

    def schedules(self) -> tuple[set[str], set[str]]:
        """Where only the checkpoint, and only the state, has a schedule of optax's."""
        if self.saved.origin is None:
            return set(), set()
        return origins.schedules(self.saved.origin, self.origin)


def of_rules(both: Both) -> Iterator[Difference]:
    """The rules, in their order, but for those that are only a hyperparameter."""
    if both.pairs is None:
        names = both.saved.rules, [rule["rule"] for rule in both.origin["rules"]]
        before, after = (", ".join(each) or "no rules of this library" for each in names)
        yield Difference(
            Meaning.ANOTHER, f"the optimizer was made of {before}, this one is of {after}"
        )


def of_parts(both: Both) -> Iterator[Difference]:
    """Everything else that the optimizers are made of, and the numbers that functions close over."""
    if both.saved.origin is not None:
        another, numbers = origins.differences(both.saved.origin, both.origin)
        yield from (Difference(Meaning.ANOTHER, text) for text in another)
        yield from (Difference(Meaning.CODE, text) for text in numbers)


def of_masks(both: Both) -> Iterator[Difference]:
    """Which arrays a rule takes."""
    for pair in both.shared_pairs() if both.saved.origin is not None else ():
        before, after = pair.old["mask"], pair.new["mask"]
        if before != after and not pair.changed:
            yield Difference(
                Meaning.ANOTHER,
                f"the mask of {kind_of_rule(pair.new)} selects {_selection(before)} in the checkpoint "
                f"and {_selection(after)} in the state",
            )


def _selection(mask: Any) -> str:
    if mask is None:
        return "all arrays"
    if "" in mask and isinstance(mask[""], str):
        return mask[""]
    chosen = [path or "the array" for path, selects in mask.items() if selects]
    return ", ".join(chosen) or "nothing"


def of_schedules(both: Both) -> Iterator[Difference]:
    """A number in one, and a schedule of optax's, which has a count, in the other."""
    words = "a schedule", "a number"
    for places, (there, here) in zip(both.schedules(), (words, words[::-1]), strict=True):
        for place in places:
            yield Difference(
                Meaning.KIND,
                f"the learning rate or decay of {place} is {there} in the checkpoint and {here} in the "
                "state",
            )


def of_hyperparameters(both: Both) -> Iterator[Difference]:
    """A hyperparameter of this library: of what kind it is, and which schedule."""
    for pair in both.pairs or ():
        for each in pair.hyperparameters:
            if each.here != each.there:
                yield Difference(Meaning.CODE if each.is_scheduled else Meaning.KIND, str(each))


def of_storages(both: Both) -> Iterator[Difference]:
    """How slots are kept. It matters where entries differ by it, and explains these."""
    for pair in both.shared_pairs():
        for slot, storage in pair.new["storage"].items():
            if (before := pair.old["storage"].get(slot)) != storage:
                yield Difference(
                    Meaning.ANOTHER,
                    f"the storage of {slot} is {before} in the checkpoint and {storage} in the state",
                )


OF_OPTIMIZERS = (of_rules, of_parts)
"""What makes another optimizer, whose state has other entries."""

OF_STATES = (of_masks, of_schedules, of_hyperparameters)
"""What two states of one optimizer can differ in beside their entries."""


def differences(
    both: Both, sources: Mapping[str, str], may_be_gone: Collection[str]
) -> list[Difference]:
    """All of them.

    sources: from the entries of the state that are restored to those of the checkpoint.
    may_be_gone: the entries of the checkpoint that the state need not have.
    """
    found = [each for kind in OF_OPTIMIZERS for each in kind(both)]
    is_another = any(each.meaning is Meaning.ANOTHER for each in found)
    found += [each for kind in OF_STATES for each in kind(both)]
    entries = dict(_of_entries(both, sources, may_be_gone))
    if entries:
        found += of_storages(both)
    # Another optimizer has other entries, which say nothing more.
    known = (".opt_state", ".tx") if is_another else ()
    return found + [each for name, each in entries.items() if not name.startswith(known)]


def _of_entries(
    both: Both, sources: Mapping[str, str], may_be_gone: Collection[str]
) -> Iterator[tuple[str, Difference]]:
    """Shapes and dtypes, and what is missing on one side, after the name of the entry."""

    def difference(name: str, there: Any, here: Any) -> tuple[str, Difference]:
        text = (
            f"{name} is {_shown_kind(there)} in the checkpoint and {_shown_kind(here)} in the state"
        )
        return name, Difference(Meaning.ANOTHER, text)

    saved = both.saved.entries
    for name, source in sources.items():
        there, here = saved.get(source), kind_of(both.entries[name])
        if not _fits(there, here):
            yield difference(name, there, here)
    expected = {*sources.values(), *may_be_gone}
    for name, there in saved.items():
        if name not in expected:
            yield difference(name, there, None)


def _fits(saved: Any, wanted: Any) -> bool:
    """A Python number fits an array of shape (): `jax.eval_shape` makes one of it."""
    if saved is None:
        return False
    return saved == wanted or (saved[0] == wanted[0] == [] and "number" in (saved[1], wanted[1]))


def _shown_kind(kind: Any) -> str:
    if kind is None:
        return "missing"
    shape, dtype = kind
    return "a number" if dtype == "number" else f"{dtype}{list(shape)}"
