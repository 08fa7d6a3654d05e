"""What is said where a checkpoint and a state differ: an error, a warning, or nothing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import jax

from .differences import Meaning
from .made import needs_others
from .plan import Plan


def check(plan: Plan, entries: Mapping[str, Any], choice: str | None) -> None:
    """Raises a ValueError where a run cannot go on with this state, or not as it was chosen to.

    entries: those of the state.
    choice: whose hyperparameters to go on with, "saved" or "given"; None if nobody has chosen.
    """
    if another := _texts(plan, Meaning.ANOTHER):
        raise ValueError(
            f"the checkpoint is not one of such a state: {_some(another)}. Make the state as at the "
            "start of the run that was saved, and restore. Change it afterwards: to an optimizer that "
            "keeps the same with state.replace(tx=tx), to any other with state.replace(tx=tx, "
            "opt_state=tx.init(state.params)), or with state, carried = aj.carry_state(state, tx), which "
            "keeps what both have and says what, to another storage with aj.convert_storage."
        )
    if (kinds := _texts(plan, Meaning.KIND)) and choice != "given":
        raise ValueError(
            f"hyperparameters have changed their kind: {_some(kinds)}. restore_checkpoint(…, "
            'hyperparameters="given") goes on with those of the state; to go on with those of the '
            "checkpoint, make the state's optimizer with them."
        )
    if choice == "given":
        names = [*plan.numbers, *(name for name in plan.made if not needs_others(name))]
        shapes = [name for name in names if isinstance(entries[name], jax.ShapeDtypeStruct)]
        if shapes:
            raise ValueError(
                'hyperparameters="given" needs a state with numbers, and this one has shapes for them: '
                f"{shapes[0]}. Restore what was saved, and change it with state.replace(tx=…)."
            )
    if choice == "saved" and (code := _texts(plan, Meaning.CODE)):
        raise ValueError(
            f'hyperparameters="saved" cannot be: {_some(code)}, and schedules and what functions '
            "close over are code, which no checkpoint holds. Make the state's optimizer with what was "
            "saved."
        )


def notice(plan: Plan, numbers: list[str], choice: str | None) -> None:
    """Warns of hyperparameters that differ, where nobody has chosen.

    numbers: a sentence for each number that differs.
    """
    if choice is not None:
        return
    if numbers:
        warnings.warn(
            f"{_some(numbers)}: the run goes on with those of the checkpoint. restore_checkpoint(…, "
            'hyperparameters="given") takes those of the state, and hyperparameters="saved" says that '
            "this is meant.",
            stacklevel=3,
        )
    if code := _texts(plan, Meaning.CODE):
        warnings.warn(
            f"{_some(code)}: schedules and what functions close over are code, so the run goes on with "
            'those of the state. restore_checkpoint(…, hyperparameters="given") says that this is meant.',
            stacklevel=3,
        )


def _texts(plan: Plan, meaning: Meaning) -> list[str]:
    return [each.text for each in plan.differences if each.meaning is meaning]


def _some(sentences: list[str]) -> str:
    more = f"; and {len(sentences) - 5} more" if len(sentences) > 5 else ""
    return "; ".join(sentences[:5]) + more
