"""What is said where a checkpoint and a state differ."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import jax

from .entries import Plan


def refuse(
    problems: list[str],
    forms: list[str],
    plan: Plan,
    entries: Mapping[str, Any],
    choice: str | None,
) -> None:
    if problems:
        raise ValueError(
            f"the checkpoint is not one of such a state: {_some(problems)}. Make the state as at the "
            "start of the run that was saved, and restore. Change it afterwards: to an optimizer that "
            "keeps the same with state.replace(tx=tx), to any other with state.replace(tx=tx, "
            "opt_state=tx.init(state.params)), to another storage with aj.convert_storage."
        )
    if forms and choice != "given":
        raise ValueError(
            f"hyperparameters have changed their kind: {_some(forms)}. restore_checkpoint(…, "
            'hyperparameters="given") goes on with those of the state; to go on with those of the '
            "checkpoint, make the state's optimizer with them."
        )
    if choice == "given":
        made = [each for each in plan.made if not each.endswith((".count", "_correction"))]
        names = [*plan.numbers, *made]
        shapes = [name for name in names if isinstance(entries[name], jax.ShapeDtypeStruct)]
        if shapes:
            raise ValueError(
                'hyperparameters="given" needs a state with numbers, and this one has shapes for them: '
                f"{shapes[0]}. Restore what was saved, and change it with state.replace(tx=…)."
            )
    if choice == "saved" and plan.code:
        raise ValueError(
            f'hyperparameters="saved" cannot be: {_some(plan.code)}, and schedules and what functions '
            "close over are code, which no checkpoint holds. Make the state's optimizer with what was "
            "saved."
        )


def notice(numbers: list[str], code: list[str], choice: str | None) -> None:
    """Warns of hyperparameters that differ, where nobody has chosen."""
    if choice is not None:
        return
    if numbers:
        warnings.warn(
            f"{_some(numbers)}: the run goes on with those of the checkpoint. restore_checkpoint(…, "
            'hyperparameters="given") takes those of the state, and hyperparameters="saved" says that '
            "this is meant.",
            stacklevel=3,
        )
    if code:
        warnings.warn(
            f"{_some(code)}: schedules and what functions close over are code, so the run goes on with "
            'those of the state. restore_checkpoint(…, hyperparameters="given") says that this is meant.',
            stacklevel=3,
        )


def _some(sentences: list[str]) -> str:
    more = f"; and {len(sentences) - 5} more" if len(sentences) > 5 else ""
    return "; ".join(sentences[:5]) + more


def difference(name: str, saved: Any, wanted: Any) -> str:
    return f"{name} is {_shown(saved)} in the checkpoint and {_shown(wanted)} in the state"


def _shown(kind: Any) -> str:
    if kind is None:
        return "missing"
    shape, dtype = kind
    return "a number" if dtype == "number" else f"{dtype}{list(shape)}"
