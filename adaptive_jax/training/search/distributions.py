"""Settings drawn at random, from a distribution for each hyperparameter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..._core import arguments


class Distribution:
    """What `draw` draws one hyperparameter from.

    A grid that is even in it is its quantiles, `aj.LogUniform(1e-4, 1.0).at(np.linspace(0, 1, 5))`.
    """

    def at(self, u: np.ndarray) -> Any:
        """The values of which a share u, from 0 to 1, lies below."""
        raise NotImplementedError(f"{type(self).__name__} must say where its quantiles are: at(u).")


def _check_numbers(distribution: Any) -> None:
    for value in (distribution.low, distribution.high):
        if not arguments.is_number(value):
            raise TypeError(f"{distribution}: low and high must be numbers.")


@dataclass(frozen=True)
class Uniform(Distribution):
    """Numbers between low and high, each as likely.

    Example:
      >>> import adaptive_jax as aj, numpy as np
      >>> print(aj.Uniform(2.0, 4.0).at(np.array([0.0, 0.5])))
      [2. 3.]
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not -math.inf < self.low <= self.high < math.inf:
            raise ValueError(f"{self}: low and high must be finite, and low no more than high.")

    def at(self, u: np.ndarray) -> np.ndarray:
        """`low + u (high - low)`."""
        return self.low + u * (self.high - self.low)


@dataclass(frozen=True)
class LogUniform(Distribution):
    """Numbers between low and high, each order of magnitude as likely: for learning rates.

    For decay rates near 1, such as b1 and b2, see `LogUniform.complement`.

    Example:
      >>> import adaptive_jax as aj, numpy as np
      >>> print(aj.LogUniform(1e-4, 1.0).at(np.array([0.0, 0.5])))
      [0.0001 0.01  ]
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not 0 < self.low <= self.high < math.inf:
            raise ValueError(
                f"{self}: low must be above 0, high finite, and low no more than high."
            )

    def at(self, u: np.ndarray) -> np.ndarray:
        """`low (high / low)^u`."""
        return self.low * (self.high / self.low) ** u

    @staticmethod
    def complement(low: float, high: float) -> LogUniformComplement:
        """Numbers b between low and high, of which 1 - b is log-uniform: for decay rates near 1.

            1 - b ~ LogUniform(1 - high, 1 - low)

        What b1 and b2 do depends on 1 - b, which is one over the length of an average: from 0.9 to 0.99
        is as far as from 0.99 to 0.999.

        Args:
          low: the smallest b, 0 or more.
          high: the largest, above ½ and below 1.

        Raises:
          TypeError: for what is no number.
          ValueError: for numbers out of range; for a high of ½ or less, which is no decay rate near 1, but
            what 1 - b would be.

        Example:
          >>> import adaptive_jax as aj, numpy as np
          >>> print(aj.LogUniform.complement(0.9, 0.999).at(np.array([0.0, 0.5, 1.0])))
          [0.9   0.99  0.999]
        """
        return LogUniformComplement(low, high)


@dataclass(frozen=True, repr=False)
class LogUniformComplement(Distribution):
    """What `LogUniform.complement` makes."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not 0 <= self.low <= self.high < 1:
            raise ValueError(
                f"{self}: low and high must be from 0 to below 1, and low no more than high: they are "
                "of b itself, such as 0.9 and 0.9999."
            )
        if self.high <= 0.5:
            # As many digits as tell that 1 - 1e-4 is meant.
            low, high = (f"{1 - each:.12g}" for each in (self.high, self.low))
            meant = (
                f"for 1 - b between {self.low:g} and {self.high:g}, write "
                f"LogUniform.complement({low}, {high}); "
            )
            raise ValueError(
                f"{self}: low and high are of b itself, and none of these is near 1: "
                f"{meant if self.low > 0 else ''}for b as small as this, "
                f"Uniform({self.low!r}, {self.high!r})."
            )

    def __repr__(self) -> str:
        return f"LogUniform.complement({self.low!r}, {self.high!r})"

    def at(self, u: np.ndarray) -> np.ndarray:
        """`1 - (1 - low) ((1 - high) / (1 - low))^u`."""
        return 1 - (1 - self.low) * ((1 - self.high) / (1 - self.low)) ** u


@dataclass(frozen=True, init=False)
class Choice(Distribution):
    """One of these values, each as likely: `Choice("relu", "tanh")`.

    Example:
      >>> import adaptive_jax as aj, numpy as np
      >>> aj.Choice(16, 32).at(np.array([0.1, 0.9]))
      [16, 32]
    """

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        if not values:
            raise ValueError("Choice() needs at least one value.")
        if len(values) == 1 and isinstance(values[0], (list, tuple, np.ndarray)):
            inside = ", ".join(map(repr, values[0]))
            raise ValueError(
                f"Choice({values[0]!r}) has one value, a list: write Choice({inside})."
            )
        object.__setattr__(self, "values", values)

    def __repr__(self) -> str:
        return f"Choice({', '.join(map(repr, self.values))})"

    def at(self, u: np.ndarray) -> list[Any]:
        """The value whose share of [0, 1) u falls into."""
        last = len(self.values) - 1
        return [self.values[min(int(each * len(self.values)), last)] for each in u]


def draw(
    count: int, *, seed: int = 0, method: str = "sobol", **distributions: Distribution
) -> dict[str, Any]:
    """Settings drawn at random, a column per hyperparameter: what `sweep` takes as its table.

    Args:
      count: how many settings.
      seed: other seeds draw others; the same one draws the same again.
      method: "sobol" for points that fill the space evenly (Sobol's, scrambled by a random matrix and
        a shift: Matoušek 1998, https://doi.org/10.1006/jcom.1998.0489), or "random" for independent
        ones.
      **distributions: a `Uniform`, `LogUniform`, `LogUniform.complement` or `Choice` per hyperparameter.

    Returns:
      From each name to its column, of length count.

    Raises:
      ValueError, TypeError: for a count that is none, an unknown method, and what is no distribution.

    Example:
      >>> import adaptive_jax as aj
      >>> drawn = aj.draw(4, learning_rate=aj.LogUniform(1e-4, 1.0), nesterov=aj.Choice(True, False))
      >>> print(drawn["nesterov"], drawn["learning_rate"].shape)
      [False, True, False, True] (4,)
    """
    count = arguments.whole("count", count, 1)
    seed = arguments.whole("seed", seed, 0)
    arguments.one_of("method", method, ("sobol", "random"))
    if not distributions:
        raise ValueError("draw needs a distribution, such as learning_rate=aj.LogUniform(1e-4, 1).")
    for name, each in distributions.items():
        if not isinstance(each, Distribution):
            raise TypeError(
                f"{name}={each!r} is no distribution: give aj.Uniform(low, high), aj.LogUniform(low, "
                "high), aj.LogUniform.complement(low, high) or aj.Choice(value, …)."
            )
    if method == "sobol":
        from scipy.stats import qmc  # jax needs scipy, so it is there.

        # A Sobol sequence is even in its first 2^k points. (`seed` is `rng`, too, since SciPy 1.15.)
        generator = np.random.default_rng(seed)
        sobol = qmc.Sobol(len(distributions), seed=generator)  # type: ignore[call-arg]
        points = sobol.random_base2(math.ceil(math.log2(count)))[:count]
    else:
        points = np.random.default_rng(seed).random((count, len(distributions)))
    return {
        name: each.at(column)
        for (name, each), column in zip(distributions.items(), points.T, strict=True)
    }
