"""What a problem is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax

from .._core import arguments


@dataclass(frozen=True)
class Problem:
    """What to train, from where, and how to judge it.

    All functions are pure JAX: they work under `jit`, `vmap`, `scan` and `grad`.

    Args:
      name: for tables and figures.
      init: init(key) makes the first parameters, any pytree of floating-point arrays.
      loss: loss(params, key) is the training loss, a scalar. The key draws the batch or the noise;
        a deterministic problem ignores it.
      evaluate: evaluate(params) is what is judged, a scalar. It is deterministic: the function without
        noise, or the loss on held-out data.
      steps: how many steps training takes, 1 or more.
      target: the value of evaluate that counts as reached, or None.
      measure: what evaluate is, with its unit, for the axes of figures.
      test: test(params) is the same measure on data that neither trained nor selected, a scalar. Where
        evaluate is the loss on held-out data, what is selected by it, settings or a step to stop at, is
        flattered by it, and this is what to report. None where evaluate is no estimate from data.

    Raises:
      TypeError, ValueError: for functions that cannot be called, steps that are not 1 or more, and a
        target that is no number.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> def distance(params, key=None):
      ...     return jnp.sum((params - 3.0) ** 2)
      >>> problem = aj.problems.Problem(
      ...     "distance", lambda key: jnp.zeros(2), distance, distance, steps=100, target=1e-3
      ... )
      >>> params = problem.init(jax.random.key(0))
      >>> print(problem.evaluate(params))
      18.0
    """

    name: str
    init: Callable[[jax.Array], Any] = field(repr=False)
    loss: Callable[[Any, jax.Array], jax.Array] = field(repr=False)
    evaluate: Callable[[Any], jax.Array] = field(repr=False)
    steps: int
    target: float | None = None
    measure: str = "value"
    test: Callable[[Any], jax.Array] | None = field(default=None, repr=False)

    @property
    def reported(self) -> Callable[[Any], jax.Array]:
        """What to report of params that evaluate has selected: test, or evaluate where there is none."""
        return self.evaluate if self.test is None else self.test

    def __post_init__(self) -> None:
        for argument in ("init", "loss", "evaluate", *(["test"] if self.test is not None else [])):
            if not callable(value := getattr(self, argument)):
                raise TypeError(
                    f"{argument}={value!r} of the problem {self.name!r} is a {type(value).__name__}: it "
                    "must be a function."
                )
        object.__setattr__(self, "steps", arguments.whole("steps", self.steps, 1))
        arguments.target(self.target, f" of the problem {self.name!r}")
