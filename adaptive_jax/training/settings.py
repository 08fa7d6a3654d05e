"""The arguments of `train_step`, as every part of a step reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .loss import Loss
from .state import TrainState


@dataclass(frozen=True)
class Settings:
    """The arguments of `train_step`."""

    loss: Loss
    accumulate: int
    loss_scale: float | None
    skip_nonfinite: bool
    rounding: str
    metrics: tuple[str, ...]
    by_name: bool
    gradient: Callable[..., Any] | None
    tiles: Any
    told: list[str] = field(default_factory=list)  # What was warned about.

    def skips(self, state: TrainState) -> bool:
        """Whether a step that is not finite is left out."""
        return self.skip_nonfinite or state.loss_scale is not None
