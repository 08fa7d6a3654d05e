"""What a training step measures, on the device."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import maths
from ..transforms.diagnose import DiagnoseState
from ..transforms.evaluate import eval_params
from ..transforms.finite import all_finite, finite_after_by_path, finite_by_path
from ..transforms.skip import skips_in
from .estimator import numbers_of
from .rates import learning_rates
from .settings import Settings
from .state import TrainState

METRICS = (
    "loss",
    "learning_rate",
    "skipped",
    "gradient_norm",
    "update_norm",
    "parameter_norm",
    "update_ratio",
    "loss_at_eval_params",
    "measured",
    "nonfinite",
)
"""What `train_step` can measure."""


def measured_metrics(
    settings: Settings,
    old: TrainState,
    new: TrainState,
    updated: Any,
    loss: Any,
    gradients: Any,
    updates: Any,
    value_fn: Callable[[Any], Any],
    extra_args: Mapping[str, Any],
) -> dict[str, Any]:
    """updated: the optimizer's state after the update, which may be skipped.

    extra_args: those that an estimator made.
    """
    update_norm = functools.cache(lambda: maths.global_norm(updates))
    parameter_norm = functools.cache(lambda: maths.global_norm(old.params))
    measures: dict[str, Callable[[], Any]] = {
        "loss": lambda: loss,
        "skipped": lambda: _skipped(new),
        "gradient_norm": lambda: maths.global_norm(gradients),
        "update_norm": update_norm,
        "parameter_norm": parameter_norm,
        "update_ratio": lambda: maths.ratio(update_norm(), parameter_norm()).astype(jnp.float32),
        "loss_at_eval_params": lambda: value_fn(eval_params(old.tx, old.params, old.opt_state)),
        "measured": lambda: _measured(updated),
        "nonfinite": lambda: _nonfinite(old, loss, gradients, updates, extra_args),
    }
    values = {}
    for name in settings.metrics:
        if name != "learning_rate":
            values[name] = measures[name]()
            continue
        known, unknown = learning_rates(old.tx, old.opt_state, updated)
        values |= known
        if unknown is not None:
            _leave_out(settings, name, unknown)
    return {name: value for name, value in values.items() if value is not None}


def _skipped(state: TrainState) -> Any:
    """How many steps were skipped, by the step itself and by what is in the optimizer."""
    totals = [jnp.sum(each.total, dtype=jnp.int32) for each in skips_in(state.opt_state)]
    if not totals:
        return state.skipped
    return sum(totals, jnp.int32(0) if state.skipped is None else state.skipped)


def _nonfinite(
    old: TrainState, loss: Any, gradients: Any, updates: Any, extra_args: Mapping[str, Any]
) -> dict[str, Any]:
    """What a step that skips looks at, by name, and whether it is not finite."""
    of_gradients = finite_by_path(gradients)
    of_updates = finite_after_by_path(old.params, updates)
    others = {"loss": all_finite(loss)}
    others |= {name: all_finite(numbers_of({name: x})) for name, x in extra_args.items()}
    arrays = {f"params{path}": x & of_updates.get(path, True) for path, x in of_gradients.items()}
    return {name: ~finite for name, finite in (others | arrays).items()}


def _measured(opt_state: Any) -> Any:
    """What `diagnose` measured in this step; a tuple where there are several, the outer one first."""
    found = list(_diagnosed(opt_state))
    if not found:
        raise ValueError(
            "metrics names 'measured', which is what aj.diagnose measures, and there is none in the "
            "optimizer: TrainState.create(params, aj.diagnose(tx))."
        )
    return found[0] if len(found) == 1 else tuple(found)


def _diagnosed(opt_state: Any) -> Iterator[Any]:
    is_one = lambda x: isinstance(x, DiagnoseState)  # noqa: E731
    for state in filter(is_one, jax.tree.leaves(opt_state, is_leaf=is_one)):
        yield state.measured
        yield from _diagnosed(state.inner_state)


def _leave_out(settings: Settings, name: str, unknown: Exception) -> None:
    """Says once that a metric is not known; a ValueError if it was asked for by name."""
    if settings.by_name:
        raise ValueError(
            f"metrics={settings.metrics!r} names {name!r}, and {unknown}, or leave the name out."
        )
    if name not in settings.told:
        settings.told.append(name)
        warnings.warn(
            f'The metric {name!r} is left out: {unknown}. metrics=("loss", "skipped") does '
            "without it, and without this warning.",
            stacklevel=3,
        )
