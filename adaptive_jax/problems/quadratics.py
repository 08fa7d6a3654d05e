"""Quadratics, of vectors and of a matrix, with noise or without."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from .._core import arguments
from .problem import Problem


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
    axes = _rotation(np.random.RandomState(seed), dimension) if rotation else None
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
class MatrixRegression(Problem):
    """A `Problem`, made by `matrix_regression`, with the numbers that it is made of.

    Args:
      left: A, rows x rows, float32.
      right: B, columns x columns.
      optimum: W*, the matrix where evaluate is least.
      minimum: what it is there.
    """

    left: np.ndarray = field(repr=False)
    right: np.ndarray = field(repr=False)
    optimum: np.ndarray = field(repr=False)
    minimum: float = 0.0


def matrix_regression(
    rows: int = 32,
    columns: int = 16,
    condition_rows: float = 100.0,
    condition_columns: float = 100.0,
    noise: float = 0.0,
    *,
    seed: int = 0,
) -> MatrixRegression:
    """A linear regression on both sides of a matrix: for preconditioners with a factor for each side.

        f(W) = ½‖AWB - Y‖²,   Y = AW*B,   eigenvalues of AᵀA from 1 to 1/condition_rows
        loss = f(W - X),   X ~ N(0, noise²I), a new X for each key

    The Hessian is BBᵀ ⊗ AᵀA, with condition_rows times condition_columns for its condition. The eigenvalues
    of AᵀA, and of BBᵀ, are spread evenly over the orders of magnitude, in random rotations, so that no
    scale of single coordinates helps. The first W, and W*, are drawn from N(0, I); f is 0 at W*. For two
    sides of a quadratic and what Kronecker factors make of it, Gupta et al. 2018,
    https://arxiv.org/abs/1802.09568.

    Args:
      rows: how many rows W has, 1 or more.
      columns: how many columns, 1 or more.
      condition_rows: the largest eigenvalue of AᵀA over the smallest, 1 or more.
      condition_columns: that of BBᵀ, 1 or more.
      noise: the standard deviation of X, in the units of W, 0 or more.
      seed: of A, B and W*, which belong to the problem and do not change with a key.

    Returns:
      The problem. Its params are {"w": (rows, columns)}. evaluate is f. The target is 0.1 % of what f is
      at the start on average, or, with much noise, the part noise² of it; None from a noise of 1 on.

    Raises:
      ValueError: for an argument out of range.

    Example:
      >>> import adaptive_jax as aj
      >>> problem = aj.problems.matrix_regression()
      >>> print(problem.optimum.shape, problem.evaluate({"w": problem.optimum}))
      (32, 16) 0.0
    """
    rows, columns = arguments.whole("rows", rows, 1), arguments.whole("columns", columns, 1)
    seed = arguments.whole("seed", seed, 0)
    arguments.number("condition_rows", condition_rows, 1.0)
    arguments.number("condition_columns", condition_columns, 1.0)
    arguments.number("noise", noise, 0.0)
    random = np.random.RandomState(seed)
    # Singular values: the eigenvalues are their squares.
    of_rows, of_columns = (
        np.geomspace(1.0, 1 / condition, size) ** 0.5
        for condition, size in ((condition_rows, rows), (condition_columns, columns))
    )
    left = (of_rows[:, None] * _rotation(random, rows)).astype(np.float32)
    right = (_rotation(random, columns) * of_columns[None]).astype(np.float32)
    optimum = random.normal(size=(rows, columns)).astype(np.float32)
    start = ((of_rows**2).sum() * (of_columns**2).sum() + ((left @ optimum @ right) ** 2).sum()) / 2

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"w": jax.random.normal(key, (rows, columns), jnp.float32)}

    def evaluate(params: dict[str, jax.Array]) -> jax.Array:
        # Not AWB - Y, of which few digits would be left near the optimum.
        distance = params["w"] - jnp.asarray(optimum)
        residual = jnp.asarray(left) @ distance @ jnp.asarray(right)
        return jnp.sum(residual**2) / 2

    def loss(params: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        if not noise:
            return evaluate(params)
        moved = noise * jax.random.normal(key, (rows, columns), jnp.float32)
        return evaluate({"w": params["w"] - moved})

    return MatrixRegression(
        name="matrix regression" if not noise else "noisy matrix regression",
        init=init,
        loss=loss,
        evaluate=evaluate,
        steps=300,
        target=max(1e-3, noise**2) * float(start) if noise < 1 else None,
        measure="½‖AWB - Y‖²",
        left=left,
        right=right,
        optimum=optimum,
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
    eigenvalues, rotation = drawn_as_in_deepobs(np.random.RandomState(42))
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


def drawn_as_in_deepobs(random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and rotation of a `quadratic_deep`. DeepOBS's next one goes on with the generator."""
    eigenvalues = np.concatenate([random.uniform(0, 1, 90), random.uniform(30, 60, 10)])
    return eigenvalues, _random_rotation(random, 100)


def _rotation(random: np.random.RandomState, dimension: int) -> np.ndarray:
    """A rotation, or one with a reflection, drawn uniformly: float32."""
    axes, triangle = np.linalg.qr(random.normal(size=(dimension, dimension)))
    # With the signs of the diagonal, which are the algorithm's choice, it would not be uniform.
    return (axes * np.sign(np.diag(triangle))[None]).astype(np.float32)


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
