"""The values that a hyperparameter may have."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """The values that a hyperparameter may have."""

    low: float = -math.inf
    high: float = math.inf
    open_above: bool = False
    finite: bool = True
    open_below: bool = False

    def __contains__(self, value: float) -> bool:
        if math.isnan(value) or (self.finite and math.isinf(value)):
            return False
        if value < self.low or (self.open_below and value == self.low):
            return False
        return value < self.high if self.open_above else value <= self.high

    def __str__(self) -> str:
        if self.high < math.inf:
            below, above = "(" if self.open_below else "[", ")" if self.open_above else "]"
            return f"a number in {below}{self.low:g}, {self.high:g}{above}"
        kind = "a finite number" if self.finite else "a number"
        if self.low == -math.inf:
            return kind
        return f"{kind} {'>' if self.open_below else '>='} {self.low:g}"
