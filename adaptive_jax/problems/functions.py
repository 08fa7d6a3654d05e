"""Functions of two variables that are hard to descend."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .problem import Problem


@dataclass(frozen=True, kw_only=True)
class TestFunction(Problem):
    """A `Problem` of two variables without noise: params has the shape (2,), loss and evaluate are one.

    Every run starts at the same point, and the key makes no difference. For other starts, replace init.

    Args:
      minima: every point where the function is lowest, as (x, y).
      minimum: the value there.
      box: ((lowest x, highest x), (lowest y, highest y)) of the part that is usually drawn.

    Example:
      >>> import adaptive_jax as aj, dataclasses, jax
      >>> problem = aj.problems.rosenbrock()
      >>> print(problem.minima, problem.minimum, problem.box)
      ((1.0, 1.0),) 0.0 ((-2.0, 2.0), (-1.0, 3.0))
      >>> anywhere = dataclasses.replace(problem, init=lambda key: jax.random.normal(key, (2,)))
    """

    __test__ = False  # The name is no sign of a test to pytest.

    minima: tuple[tuple[float, float], ...]
    minimum: float
    box: tuple[tuple[float, float], tuple[float, float]]


def _test_function(
    function: Callable[[Any, Any], Any],
    *,
    name: str,
    start: tuple[float, float],
    minima: tuple[tuple[float, float], ...],
    box: tuple[tuple[float, float], tuple[float, float]],
    steps: int,
    minimum: float = 0.0,
    above: float | None = 1e-3,
) -> TestFunction:
    """The problem of a function of x and y. Its target is above the minimum by so much, or None."""

    def init(key: jax.Array) -> jax.Array:
        return jnp.array(start, jnp.float32)

    def evaluate(params: jax.Array) -> jax.Array:
        return function(params[0], params[1])

    def loss(params: jax.Array, key: Any = None) -> jax.Array:
        return evaluate(params)

    return TestFunction(
        name=name,
        init=init,
        loss=loss,
        evaluate=evaluate,
        steps=steps,
        target=None if above is None else minimum + above,
        measure="f(x, y)",
        minima=minima,
        minimum=minimum,
        box=box,
    )


def rosenbrock() -> TestFunction:
    """Rosenbrock's function: a bent valley whose floor is nearly flat.

        f(x, y) = (1 - x)² + 100(y - x²)²

    From (-1.2, 1); the minimum is at (1, 1). Rosenbrock 1960, https://doi.org/10.1093/comjnl/3.3.175.

    Returns:
      The problem. The target is 0.001.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.rosenbrock()
      >>> print(f"{problem.evaluate(problem.init(jax.random.key(0))):.1f}")
      24.2
    """
    return _test_function(
        lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
        name="rosenbrock",
        start=(-1.2, 1.0),
        minima=((1.0, 1.0),),
        box=((-2.0, 2.0), (-1.0, 3.0)),
        steps=700,
    )


def beale() -> TestFunction:
    """Beale's function: plateaus between walls.

        f(x, y) = (1.5 - x + xy)² + (2.25 - x + xy²)² + (2.625 - x + xy³)²

    From (1, 1); the minimum is at (3, 0.5). Problem 5 of Moré, Garbow & Hillstrom 1981,
    https://doi.org/10.1145/355934.355936.

    Returns:
      The problem. The target is 0.001.

    Example:
      >>> import adaptive_jax as aj
      >>> print(aj.problems.beale().minima)
      ((3.0, 0.5),)
    """
    return _test_function(
        lambda x, y: (
            (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2
        ),
        name="beale",
        start=(1.0, 1.0),
        minima=((3.0, 0.5),),
        box=((-4.5, 4.5), (-4.5, 4.5)),
        steps=200,
    )


def himmelblau() -> TestFunction:
    """Himmelblau's function: four minima, all of one height.

        f(x, y) = (x² + y - 11)² + (x + y² - 7)²

    From (0, 0), near the hilltop between the minima. In the survey of Jamil & Yang 2013,
    https://arxiv.org/abs/1308.4008.

    Returns:
      The problem. The target is 0.001.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.himmelblau()
      >>> print(problem.evaluate(problem.init(jax.random.key(0))), problem.minima[0])
      170.0 (3.0, 2.0)
    """
    return _test_function(
        lambda x, y: (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2,
        name="himmelblau",
        start=(0.0, 0.0),
        minima=(
            (3.0, 2.0),
            (-2.805118086952745, 3.131312518250573),
            (-3.779310253377747, -3.283185991286170),
            (3.584428340330492, -1.848126526964404),
        ),
        box=((-5.0, 5.0), (-5.0, 5.0)),
        steps=150,
    )


def booth() -> TestFunction:
    """Booth's function: a quadratic whose condition is 9, across the axes.

        f(x, y) = (x + 2y - 7)² + (2x + y - 5)²

    From (-5, -5); the minimum is at (1, 3). In the survey of Jamil & Yang 2013,
    https://arxiv.org/abs/1308.4008.

    Returns:
      The problem. The target is 0.001.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> hessian = jax.hessian(aj.problems.booth().evaluate)(jnp.zeros(2))
      >>> print(f"{jnp.linalg.cond(hessian):.1f}")
      9.0
    """
    return _test_function(
        lambda x, y: (x + 2 * y - 7) ** 2 + (2 * x + y - 5) ** 2,
        name="booth",
        start=(-5.0, -5.0),
        minima=((1.0, 3.0),),
        box=((-10.0, 10.0), (-10.0, 10.0)),
        steps=150,
    )


def branin() -> TestFunction:
    """Branin's function: a bent valley with three minima in it, all of one height.

        f(x, y) = (y - 5.1x²/(4π²) + 5x/π - 6)² + 10(1 - 1/(8π))cos x + 10

    From (2.5, 12.5), as in DeepOBS; the lowest value is 5/(4π). Branin 1972,
    https://doi.org/10.1147/rd.165.0504.

    Returns:
      The problem. The target is 0.001 above the minimum.

    Example:
      >>> import adaptive_jax as aj
      >>> problem = aj.problems.branin()
      >>> print(f"{problem.minimum:.4f}", len(problem.minima))
      0.3979 3
    """
    return _test_function(
        lambda x, y: (
            (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
            + 10 * (1 - 1 / (8 * math.pi)) * jnp.cos(x)
            + 10
        ),
        name="branin",
        start=(2.5, 12.5),
        minima=((-math.pi, 12.275), (math.pi, 2.275), (3 * math.pi, 2.475)),
        box=((-5.0, 10.0), (0.0, 15.0)),
        steps=150,
        minimum=5 / (4 * math.pi),
    )


def rastrigin() -> TestFunction:
    """Rastrigin's function: a grid of local minima.

        f(x, y) = 20 + x² - 10cos 2πx + y² - 10cos 2πy

    From (-2, 3.5); the minimum is at (0, 0). Mühlenbein, Schomisch & Born 1991,
    https://doi.org/10.1016/S0167-8191(05)80052-3.

    Returns:
      The problem. It has no target: a descent reaches the minimum by luck alone.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.rastrigin()
      >>> print(problem.evaluate(problem.init(jax.random.key(0))), problem.target)
      36.25 None
    """
    return _test_function(
        lambda x, y: sum(10 + z**2 - 10 * jnp.cos(2 * math.pi * z) for z in (x, y)),
        name="rastrigin",
        start=(-2.0, 3.5),
        minima=((0.0, 0.0),),
        box=((-5.12, 5.12), (-5.12, 5.12)),
        steps=200,
        above=None,
    )


def ackley() -> TestFunction:
    """Ackley's function: a funnel with dents, which ends in the tip of a cone.

        f(x, y) = 20 + e - 20exp(-√(½(x² + y²))/5) - exp(½(cos 2πx + cos 2πy))

    From (-1.5, 2.5); the minimum is at (0, 0). In the survey of Jamil & Yang 2013,
    https://arxiv.org/abs/1308.4008.

    Returns:
      The problem. The target is 0.1: a constant learning rate can only circle the tip.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> problem = aj.problems.ackley()
      >>> print(jax.grad(problem.evaluate)(jnp.zeros(2)))
      [0. 0.]
    """

    def function(x: Any, y: Any) -> Any:
        square = (x**2 + y**2) / 2
        # Without this, the gradient at the tip would be 0/0, not 0.
        distance = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
        waves = (jnp.cos(2 * math.pi * x) + jnp.cos(2 * math.pi * y)) / 2
        # 20(1 - exp(-distance/5)) + (e - exp(waves)), neither of which cancels near the minimum.
        return -20 * jnp.expm1(-distance / 5) - math.e * jnp.expm1(waves - 1)

    return _test_function(
        function,
        name="ackley",
        start=(-1.5, 2.5),
        minima=((0.0, 0.0),),
        box=((-5.0, 5.0), (-5.0, 5.0)),
        steps=100,
        above=0.1,
    )


def styblinski_tang() -> TestFunction:
    """Styblinski and Tang's function: four minima, one of them the lowest.

        f(x, y) = ½(x⁴ - 16x² + 5x + y⁴ - 16y² + 5y)

    From (0, 0), next to the hilltop; the minimum is -78.33, at (-2.9035, -2.9035). Styblinski & Tang
    1990, https://doi.org/10.1016/0893-6080(90)90029-K.

    Returns:
      The problem. The target is 0.001 above the minimum.

    Example:
      >>> import adaptive_jax as aj
      >>> problem = aj.problems.styblinski_tang()
      >>> print(f"{problem.minimum:.3f} {problem.target:.3f}")
      -78.332 -78.331
    """
    return _test_function(
        lambda x, y: sum(z**4 - 16 * z**2 + 5 * z for z in (x, y)) / 2,
        name="styblinski-tang",
        start=(0.0, 0.0),
        minima=((-2.903534027771177, -2.903534027771177),),
        box=((-5.0, 5.0), (-5.0, 5.0)),
        steps=100,
        minimum=-78.33233140754282,
    )


TEST_FUNCTIONS = (
    rosenbrock,
    beale,
    himmelblau,
    booth,
    branin,
    rastrigin,
    ackley,
    styblinski_tang,
)
"""The functions that make a `TestFunction`."""
