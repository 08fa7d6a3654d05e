"""What a training step measures, on the device."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from .. import maths
from .rates import UnknownRate, learning_rate
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
) -> dict[str, Any]:
    """updated: the optimizer's state after the update, which may be skipped."""
    update_norm = functools.cache(lambda: maths.global_norm(updates))
    parameter_norm = functools.cache(lambda: maths.global_norm(old.params))
    measures: dict[str, Callable[[], Any]] = {
        "loss": lambda: loss,
        "learning_rate": lambda: learning_rate(old.tx, old.opt_state, updated),
        "skipped": lambda: new.skipped,
        "gradient_norm": lambda: maths.global_norm(gradients),
        "update_norm": update_norm,
        "parameter_norm": parameter_norm,
        "update_ratio": lambda: maths.ratio(update_norm(), parameter_norm()),
    }
    values = {}
    for name in settings.metrics:
        try:
            values[name] = measures[name]()
        except UnknownRate as error:
            if settings.by_name:
                raise ValueError(
                    f"metrics={settings.metrics!r} names {name!r}, and {error}, or leave the name out."
                ) from None
            if name not in settings.told:
                settings.told.append(name)
                warnings.warn(
                    f'The metric {name!r} is left out: {error}. metrics=("loss", "skipped") does '
                    "without it, and without this warning.",
                    stacklevel=2,
                )
    return {name: value for name, value in values.items() if value is not None}
