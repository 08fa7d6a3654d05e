"""Problems to compare optimizers on: functions of two variables, quadratics, models of real data."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from ._core import arguments

_HELD_OUT = "held-out loss (nats)"


# ---------------------------------------------------------------------------------------------------
# What a problem is


@dataclass(frozen=True)
class Problem:
    """What to train, from where, and how to judge it.

    All three functions are pure JAX: they work under `jit`, `vmap`, `scan` and `grad`.

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

    def __post_init__(self) -> None:
        for argument in ("init", "loss", "evaluate"):
            if not callable(value := getattr(self, argument)):
                raise TypeError(
                    f"{argument}={value!r} of the problem {self.name!r} is a {type(value).__name__}: it "
                    "must be a function."
                )
        object.__setattr__(self, "steps", arguments.whole("steps", self.steps, 1))
        arguments.target(self.target, f" of the problem {self.name!r}")


# ---------------------------------------------------------------------------------------------------
# Functions of two variables


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
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.beale()
      >>> print(f"{problem.evaluate(problem.init(jax.random.key(0))):.3f}")
      14.203
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
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.booth()
      >>> print(problem.evaluate(problem.init(jax.random.key(0))))
      884.0
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
      >>> print(f"{problem.minimum:.4f} {problem.target:.4f}")
      0.3979 0.3989
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


# ---------------------------------------------------------------------------------------------------
# Quadratics


def quadratic(
    dimension: int = 100,
    condition: float = 1e4,
    noise: float = 0.0,
    *,
    rotation: bool = True,
    seed: int = 0,
) -> Problem:
    """A quadratic whose eigenvalues are spread evenly over the orders of magnitude.

        f(θ) = ½θᵀHθ,   H = RᵀΛR,   Λ from 1 to 1/condition
        loss = ½(θ - x)ᵀH(θ - x),   x ~ N(0, noise²I), a new x for each key

    So the gradient is H(θ - x): its noise is largest where the curvature is, and is zero on average. The
    first parameters are drawn from N(0, I). The noise is that of Schneider, Balles & Hennig 2019,
    https://arxiv.org/abs/1903.05499; what such a quadratic says of optimizers, Zhang et al. 2019,
    https://arxiv.org/abs/1907.04164.

    Args:
      dimension: how many parameters, 1 or more.
      condition: the largest eigenvalue over the smallest, 1 or more.
      noise: the standard deviation of x, in the units of θ, 0 or more.
      rotation: whether R is a random rotation, which is dimension x dimension numbers, or the identity,
        which spares them, and suits optimizers that scale each coordinate.
      seed: of the rotation, which belongs to the problem and does not change with a key.

    Returns:
      The problem. evaluate is f. The target is 0.1 % of what f is at the start on average, or, with
      much noise, the part noise² of it, which a constant learning rate still reaches; None from a noise of
      1 on.

    Raises:
      ValueError: for a dimension, condition or noise out of range.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.quadratic(dimension=3, condition=100.0)
      >>> params = problem.init(jax.random.key(0))
      >>> print(params.shape, float(problem.evaluate(0.0 * params)))
      (3,) 0.0
    """
    dimension = arguments.whole("dimension", dimension, 1)
    seed = arguments.whole("seed", seed, 0)
    arguments.number("condition", condition, 1.0)
    arguments.number("noise", noise, 0.0)
    eigenvalues = np.geomspace(1.0, 1 / condition, dimension)
    axes = None
    if rotation:
        normal = np.random.RandomState(seed).normal(size=(dimension, dimension))
        axes, triangle = np.linalg.qr(normal)
        # With the signs of the diagonal, which are the algorithm's choice, it would not be uniform.
        axes = (axes * np.sign(np.diag(triangle))[None]).astype(np.float32)
    halves = (eigenvalues / 2).astype(np.float32)

    def init(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (dimension,), jnp.float32)

    def evaluate(params: jax.Array) -> jax.Array:
        # Along its axes: a sum of squares is never below 0, and small eigenvalues keep their digits.
        along = params if axes is None else jnp.asarray(axes) @ params
        return jnp.sum(jnp.asarray(halves) * along**2)

    def loss(params: jax.Array, key: jax.Array) -> jax.Array:
        if not noise:
            return evaluate(params)
        return evaluate(params - noise * jax.random.normal(key, (dimension,), jnp.float32))

    return Problem(
        name="quadratic" if not noise else "noisy quadratic",
        init=init,
        loss=loss,
        evaluate=evaluate,
        steps=300,
        target=max(1e-3, noise**2) * float(eigenvalues.sum()) / 2 if noise < 1 else None,
        measure="f(θ)",
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class QuadraticDeep(Problem):
    """A `Problem`, made by `quadratic_deep`, with the numbers that it is made of.

    Args:
      hessian: H, 100 x 100, float64.
      data: the 1000 x 100 points x to train with, float32.
      test_data: those to judge with, 896 x 100.
    """

    hessian: np.ndarray = field(repr=False)
    data: np.ndarray = field(repr=False)
    test_data: np.ndarray = field(repr=False)


def quadratic_deep() -> QuadraticDeep:
    """DeepOBS's `quadratic_deep`: a noisy quadratic with the spectrum of a network, and its very numbers.

        loss = mean of ½(θ - x)ᵀH(θ - x) over a batch of 128 points x,   θ = (1, …, 1) at the start

    H has 100 eigenvalues, 90 of them drawn from (0, 1) and 10 from (30, 60), in a random rotation. The
    points are 1000 draws from N(0, 0.6² I). Eigenvalues, rotation and points come from NumPy's
    `RandomState` with the seeds of DeepOBS (42, and 43 for the test points), so H is the same to
    rounding and the points to the bit. A batch is drawn with replacement here. DeepOBS goes through its
    points in an order that it repeats in every epoch, 7 batches each; `tests/benchmarks/crowded_valley.py`
    does as well, and reaches the published losses.

    Schneider, Balles & Hennig 2019, https://arxiv.org/abs/1903.05499; the spectrum, Chaudhari et al.
    2017, https://arxiv.org/abs/1611.01838; the rotation, Diaconis & Shahshahani 1987,
    https://doi.org/10.1017/S0269964800000255.

    Returns:
      The problem. evaluate is the mean over the 896 test points that DeepOBS takes with its batch size,
      where no params have less than 86.87. The target is 88.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.quadratic_deep()
      >>> params = problem.init(jax.random.key(0))
      >>> print(f"{problem.evaluate(params):.2f}")
      353.45
    """
    random = np.random.RandomState(42)
    eigenvalues = np.concatenate([random.uniform(0, 1, 90), random.uniform(30, 60, 10)])
    rotation = _random_rotation(random, 100)
    data, test_data = (
        np.random.RandomState(seed).normal(0, 0.6, (1000, 100)).astype(np.float32)
        for seed in (42, 43)
    )
    test_data = test_data[: 7 * 128]
    axes, halves = rotation.astype(np.float32), (eigenvalues / 2).astype(np.float32)
    rotated, test_rotated = (
        (points @ rotation.T).astype(np.float32) for points in (data, test_data)
    )

    def init(key: jax.Array) -> jax.Array:
        return jnp.ones(100, jnp.float32)

    def mean_loss(params: jax.Array, points: jax.Array) -> jax.Array:
        along = (jnp.asarray(axes) @ params)[None] - points
        return jnp.mean(along**2 @ jnp.asarray(halves))

    def loss(params: jax.Array, key: jax.Array) -> jax.Array:
        batch = jax.random.randint(key, (128,), 0, len(rotated))
        return mean_loss(params, jnp.asarray(rotated)[batch])

    def evaluate(params: jax.Array) -> jax.Array:
        return mean_loss(params, jnp.asarray(test_rotated))

    return QuadraticDeep(
        name="quadratic_deep",
        init=init,
        loss=loss,
        evaluate=evaluate,
        steps=700,
        target=88.0,
        measure="test loss",
        hessian=rotation.T @ np.diag(eigenvalues) @ rotation,
        data=data,
        test_data=test_data,
    )


def _random_rotation(random: np.random.RandomState, dimension: int) -> np.ndarray:
    """A rotation drawn uniformly: in the plane first, then one dimension more at a time.

    From all but one dimension to all: rotate those, then reflect so that the first axis comes to lie
    in a random direction. Another way to draw it would use the generator in another order.
    """
    angle = 2 * np.pi * random.uniform()
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for size in range(3, dimension + 1):
        direction = random.normal(size=size)
        mirror = -direction / np.linalg.norm(direction)
        mirror[0] += 1
        mirror /= np.linalg.norm(mirror)
        larger = np.eye(size)
        larger[1:, 1:] = rotation
        rotation = larger - 2 * np.outer(mirror, mirror @ larger)
    # Every dimension above the second was a reflection: with the sign it is a rotation again.
    return -rotation


# ---------------------------------------------------------------------------------------------------
# Models of real data


def logistic_regression(l2: float = 1e-3) -> Problem:
    """Benign or malignant: logistic regression on scikit-learn's breast cancer data.

        loss = mean of log(1 + exp(-s(wᵀx + b))) over a batch of 32, plus ½ l2 ‖w‖²,   s = ±1

    569 patients with 30 measurements, each with mean 0 and variance 1 over the three quarters to train
    with. w and b are 0 at the start. Convex, and badly conditioned: measurements go together. Data: Street,
    Wolberg & Mangasarian 1993, https://doi.org/10.1117/12.148698.

    Args:
      l2: the strength of the L2 term, 0 or more.

    Returns:
      The problem. Its params are {"w": (30,), "b": ()}. evaluate is the mean over the 143 patients held
      out, without the L2 term.

    Raises:
      ImportError: without scikit-learn.
      ValueError: for a negative l2.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.logistic_regression()
      >>> params = problem.init(jax.random.key(0))
      >>> print(f"{problem.evaluate(params):.3f}")  # log 2
      0.693
    """
    arguments.number("l2", l2, 0.0)
    _datasets("logistic_regression")
    from sklearn.datasets import load_breast_cancer

    patients: Any = load_breast_cancer()
    training, held_out = _held_out(patients.data, 2 * patients.target - 1)
    mean, deviation = training[0].mean(0), training[0].std(0)
    training, held_out = (
        (((x - mean) / deviation).astype(np.float32), signs.astype(np.float32))
        for x, signs in (training, held_out)
    )

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"w": jnp.zeros(30, jnp.float32), "b": jnp.zeros((), jnp.float32)}

    def cross_entropy(params: Any, x: Any, signs: Any) -> jax.Array:
        return jnp.mean(jax.nn.softplus(-signs * (x @ params["w"] + params["b"])))

    def loss(params: Any, key: jax.Array) -> jax.Array:
        batch = jax.random.randint(key, (32,), 0, len(training[0]))
        penalty = l2 / 2 * jnp.sum(params["w"] ** 2)
        return cross_entropy(params, *(jnp.asarray(each)[batch] for each in training)) + penalty

    def evaluate(params: Any) -> jax.Array:
        return cross_entropy(params, *map(jnp.asarray, held_out))

    return Problem(
        "logistic regression", init, loss, evaluate, steps=200, target=0.05, measure=_HELD_OUT
    )


def digits(hidden: int = 32) -> Problem:
    """Which digit it is: a network with one hidden layer on scikit-learn's handwritten digits.

        logits = W₂ relu(W₁x + b₁) + b₂,   loss = mean cross-entropy over a batch of 64

    1797 images of 8 x 8 pixels between 0 and 1, three quarters of them to train with. Weights are drawn
    from N(0, 2/inputs), He et al. 2015, https://arxiv.org/abs/1502.01852; biases are 0.

    Args:
      hidden: the width of the hidden layer, 1 or more.

    Returns:
      The problem. Its params are a list of two layers {"w": (inputs, outputs), "b": (outputs,)}. evaluate
      is the mean cross-entropy over the 450 images held out, in nats.

    Raises:
      ImportError: without scikit-learn.
      ValueError: for a hidden width below 1.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.digits()
      >>> params = problem.init(jax.random.key(0))
      >>> print([layer["w"].shape for layer in params], bool(problem.evaluate(params) < 3.5))
      [(64, 32), (32, 10)] True
    """
    hidden = arguments.whole("hidden", hidden, 1)
    _datasets("digits")
    from sklearn.datasets import load_digits

    images: Any = load_digits()
    training, held_out = _held_out(
        (images.data / 16).astype(np.float32),  # Pixels are 0 to 16.
        images.target.astype(np.int32),
    )
    init = _normal(
        [
            {"w": np.full((inputs, outputs), (2 / inputs) ** 0.5), "b": np.zeros(outputs)}
            for inputs, outputs in itertools.pairwise((64, hidden, 10))
        ]
    )

    def cross_entropy(params: Any, x: Any, labels: Any) -> jax.Array:
        first, second = params
        activations = jax.nn.relu(x @ first["w"] + first["b"][None])
        logits = activations @ second["w"] + second["b"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def loss(params: Any, key: jax.Array) -> jax.Array:
        batch = jax.random.randint(key, (64,), 0, len(training[0]))
        return cross_entropy(params, *(jnp.asarray(each)[batch] for each in training))

    def evaluate(params: Any) -> jax.Array:
        return cross_entropy(params, *map(jnp.asarray, held_out))

    return Problem("digits", init, loss, evaluate, steps=400, target=0.1, measure=_HELD_OUT)


def _normal(deviations: Any) -> Callable[[jax.Array], Any]:
    """A function that draws every number of a tree from a normal distribution, given its deviation.

    In one draw for all arrays: one for each would be compiled for each, which takes seconds.
    """
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(np.float32), deviations))
    flat = np.asarray(flat)

    def init(key: jax.Array) -> Any:
        return unravel(jnp.asarray(flat) * jax.random.normal(key, flat.shape, jnp.float32))

    return init


def _datasets(problem: str) -> None:
    """Raises an ImportError that says what to install if scikit-learn is missing."""
    try:
        import sklearn.datasets  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{problem} has its data from scikit-learn, which is not installed: "
            'pip install "adaptive_jax[examples]".'
        ) from error


def _held_out(x: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
    """Three quarters to train with and one to judge with, always the same."""
    order = np.random.RandomState(0).permutation(len(x))
    training, held_out = np.split(order, [len(x) * 3 // 4])
    return (x[training], labels[training]), (x[held_out], labels[held_out])


_HEAD_WIDTH = 32


def language_model(layers: int = 2, width: int = 64, length: int = 64, batch: int = 16) -> Problem:
    """Which character comes next: a small GPT on the text that ships with Python.

        loss = mean cross-entropy of the next character, over a batch of pieces of text

    The text is what `help()` knows of the language, the standard library's `pydoc_data.topics`, nine
    tenths of it to train with. The network is a causal transformer whose layers normalize their input,
    attend with heads of width 32, and go through a feed-forward part four times as wide: Vaswani et al.
    2017, https://arxiv.org/abs/1706.03762; Radford et al. 2019,
    https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf.
    The text differs a little between versions of Python, and so does the loss.

    Args:
      layers: how many, 1 or more.
      width: of the embedding, a multiple of 32.
      length: how many characters the network sees at most, 1 or more.
      batch: how many pieces of text a step takes, 1 or more.

    Returns:
      The problem. Its params are dicts of matrices. evaluate is the mean over 64 pieces of the text held
      out, always the same, in nats per character. The target is for the sizes that are the defaults.

    Raises:
      ValueError: for sizes out of range.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.language_model(layers=1, width=32, length=8)
      >>> params = problem.init(jax.random.key(0))
      >>> print(params["positions"].shape, problem.loss(params, jax.random.key(1)).shape)
      (8, 32) ()
    """
    layers = arguments.whole("layers", layers, 1)
    length = arguments.whole("length", length, 1)
    batch = arguments.whole("batch", batch, 1)
    width = arguments.whole("width", width, _HEAD_WIDTH)
    if width % _HEAD_WIDTH:
        raise ValueError(
            f"width={width!r} must be a multiple of {_HEAD_WIDTH}, the width of a head."
        )
    vocabulary, training, held_out = _text()
    if length >= len(held_out):
        raise ValueError(
            f"length={length!r} must be less than {len(held_out)}, the characters of the text held out."
        )
    starts = np.random.RandomState(0).randint(len(held_out) - length, size=64)
    fixed = held_out[starts[:, None] + np.arange(length + 1)[None]]

    # What a layer adds is smaller the more of them there are: the sum does not grow with them.
    added = (2 * layers) ** -0.5
    init = _normal(
        {
            "tokens": np.full((vocabulary, width), 0.1),
            "positions": np.full((length, width), 0.1),
            "layers": [
                {
                    "attention_input": np.full((width, 3 * width), width**-0.5),
                    "attention_output": np.full((width, width), added * width**-0.5),
                    "feed_forward_input": np.full((width, 4 * width), width**-0.5),
                    "feed_forward_output": np.full((4 * width, width), added / 2 * width**-0.5),
                }
                for _ in range(layers)
            ],
            "output": np.full((width, vocabulary), width**-0.5),
        }
    )

    def cross_entropy(params: Any, pieces: jax.Array) -> jax.Array:
        logits = jax.vmap(_transformer, in_axes=(None, 0))(params, pieces[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, pieces[:, 1:]).mean()

    def loss(params: Any, key: jax.Array) -> jax.Array:
        starts = jax.random.randint(key, (batch,), 0, len(training) - length)
        places = starts[:, None] + jnp.arange(length + 1, dtype=starts.dtype)[None]
        return cross_entropy(params, jnp.asarray(training)[places])

    def evaluate(params: Any) -> jax.Array:
        return cross_entropy(params, jnp.asarray(fixed))

    return Problem(
        "language model", init, loss, evaluate, steps=500, target=2.05, measure=_HELD_OUT
    )


@functools.cache
def _text() -> tuple[int, np.ndarray, np.ndarray]:
    """How many characters there are, the text to train with and the one held out, as numbers of them."""
    from pydoc_data.topics import topics

    # Topics quote each other. Every paragraph is kept once: what is held out must be unseen.
    paragraphs = dict.fromkeys("\n\n".join(topics.values()).split("\n\n"))
    characters, tokens = np.unique(list("\n\n".join(paragraphs)), return_inverse=True)
    training, held_out = np.split(tokens.astype(np.int32), [len(tokens) * 9 // 10])
    return len(characters), training, held_out


def _transformer(params: Any, tokens: jax.Array) -> jax.Array:
    """For each place of one piece of text, the logits of the character that comes next."""
    x = params["tokens"][tokens] + params["positions"][: len(tokens)]
    for layer in params["layers"]:
        mixed = _attention(jax.nn.standardize(x) @ layer["attention_input"])
        x = x + mixed @ layer["attention_output"]
        inner = jax.nn.gelu(jax.nn.standardize(x) @ layer["feed_forward_input"])
        x = x + inner @ layer["feed_forward_output"]
    return jax.nn.standardize(x) @ params["output"]


def _attention(inputs: jax.Array) -> jax.Array:
    """Each place takes from itself and from those before it, by how well its query fits their keys."""
    length = len(inputs)
    queries, keys, values = (
        part.reshape(length, -1, _HEAD_WIDTH) for part in jnp.split(inputs, 3, axis=1)
    )
    scores = jnp.einsum("qhd,khd->hqk", queries, keys) * _HEAD_WIDTH**-0.5
    past = jnp.tri(length, dtype=bool)[None]
    weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
    return jnp.einsum("hqk,khd->qhd", weights, values).reshape(length, -1)
