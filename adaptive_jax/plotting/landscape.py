"""Paths over the contour lines of a function of two parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import pytrees
from .axes import axes_for, legend
from .checks import named, numbers, pairs
from .lines import curve, next_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def paths(
    function: Callable[[jax.Array], jax.Array],
    paths: Mapping[str, Any],
    *,
    box: Any = None,
    minima: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """The ways of optimizers over the contour lines of a function of two parameters.

    The contours are spaced evenly in log(f - min f), which shows the floor of a valley as well as its
    walls. A circle marks the start of a path, its large marker the end. What leaves the box is not
    seen, and the legend says of a path that it ends outside, or diverged. The two axes have scales of
    their own; with `ax.set_aspect("equal")` gradients cross the contours at right angles.

    Args:
      function: from an array of shape (2,) to a number. It is traced, under `jax.vmap`.
      paths: from names to the parameters before the first and after each step, of shape (steps + 1, 2).
      box: what is seen, ((lowest θ₁, highest θ₁), (lowest θ₂, highest θ₂)); None for room enough for all
        finite points and the minima.
      minima: the places of the minima, of shape (minima, 2) or (2,), marked with stars.
      ax: a matplotlib Axes; None for that of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for no paths, other shapes, and a function that does not give one number.
      TypeError: for what is no function, no mapping, and no Axes.
      ImportError: without matplotlib.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from matplotlib.figure import Figure
      >>> import adaptive_jax as aj
      >>> from adaptive_jax import plotting
      >>> def function(params):
      ...     return params[0] ** 2 + 10 * params[1] ** 2
      >>> def step(carry, _):
      ...     params, state = carry
      ...     updates, state = tx.update(jax.grad(function)(params), state, params)
      ...     return (optax.apply_updates(params, updates), state), params
      >>> tx, start = aj.sgd(0.05), jnp.array([2.0, 1.0])
      >>> _, path = jax.lax.scan(step, (start, tx.init(start)), length=30)
      >>> ax = plotting.paths(function, {"SGD": path}, minima=(0, 0), ax=Figure().subplots())
      >>> print(ax.get_xlabel(), ax.get_ylabel())
      θ₁ θ₂
    """
    if not callable(function):
        raise TypeError(
            f"function is {function!r:.200}, which cannot be called: give a function of an array of shape "
            "(2,), such as problem.evaluate."
        )
    points = {
        name: pairs(f"paths[{name!r}]", numbers(f"paths[{name!r}]", path, "(steps + 1, 2)"))
        for name, path in named("paths", paths, "parameters").items()
    }
    lowest = np.zeros((0, 2))
    if minima is not None:
        lowest = numbers("minima", minima, "(minima, 2)", "(2,)")
        lowest = pairs("minima", np.atleast_2d(lowest))
    corners = _box(box, np.concatenate([*points.values(), lowest]))
    result = jax.eval_shape(function, jnp.zeros(2))
    if getattr(result, "shape", None) != ():
        raise ValueError(
            f"function gives {jax.tree.map(pytrees.describe, result)} for an array of shape (2,): it "
            "must give one number, an array of shape ()."
        )
    ax = axes_for(ax)
    _contours(ax, function, corners)
    for index, (name, path) in enumerate(points.items()):
        style = next_style(ax)
        curve(ax, path[:, 0], path[:, 1], {**style, "marker": ""}, None)
        # Each smaller than the one below it: several may end in the same minimum.
        ax.plot(
            path[-1, 0],
            path[-1, 1],
            label=f"{name}{_outside(path, corners)}",
            markersize=max(6, 10 - index),
            markeredgecolor="white",
            zorder=4,
            **style,
        )
    marks = {"color": "black", "markerfacecolor": "white", "linestyle": "none", "zorder": 3}
    starts = np.unique([path[0] for path in points.values()], axis=0)
    ax.plot(starts[:, 0], starts[:, 1], marker="o", markersize=8, label="start", **marks)
    if len(lowest):
        label = "minimum" if len(lowest) == 1 else "minima"
        ax.plot(lowest[:, 0], lowest[:, 1], marker="*", markersize=15, label=label, **marks)
    ax.set_xlim(corners[0, 0], corners[0, 1])
    ax.set_ylim(corners[1, 0], corners[1, 1])
    ax.set_xlabel("θ₁")
    ax.set_ylabel("θ₂")
    legend(ax, beside=True)
    return ax


def _box(box: Any, points: np.ndarray) -> np.ndarray:
    """The lowest and the highest value of either parameter, of shape (2, 2)."""
    if box is None:
        finite = points[np.isfinite(points).all(axis=1)]
        if not len(finite):
            raise ValueError("no point of the paths is finite: give the box that is to be seen.")
        low, high = finite.min(axis=0), finite.max(axis=0)
        longest = (high - low).max() or 1.0
        middle, half = (low + high) / 2, np.maximum(high - low, longest / 4) / 2
        return np.stack([middle - 1.2 * half, middle + 1.2 * half], axis=1)
    corners = numbers("box", box, "(2, 2)")
    if corners.shape != (2, 2) or not (corners[:, 0] < corners[:, 1]).all():
        raise ValueError(
            f"box={box!r} must be ((lowest θ₁, highest θ₁), (lowest θ₂, highest θ₂)), each pair in "
            "ascending order."
        )
    return corners


def _contours(ax: Axes, function: Callable[[jax.Array], jax.Array], corners: np.ndarray) -> None:
    """Grey contour lines, spaced evenly in the logarithm of the height above the lowest point."""
    x, y = (np.linspace(low, high, 300) for low, high in corners)
    grid = jnp.asarray(np.stack(np.meshgrid(x, y), axis=-1), jnp.result_type(float))
    heights = np.asarray(jax.jit(jax.vmap(jax.vmap(function)))(grid), np.float64)
    finite = heights[np.isfinite(heights)]
    above = finite - finite.min() if finite.size else finite
    if not above.any():
        return  # a plane, without contours
    lowest = max(np.quantile(above[above > 0], 0.005), above.max() * 1e-6)
    levels = finite.min() + np.geomspace(lowest, above.max(), 16)
    greys = [str(grey) for grey in np.linspace(0.5, 0.85, len(levels))]  # low is dark
    ax.contour(
        x, y, np.ma.masked_invalid(heights), levels=levels, colors=greys, linewidths=0.7, zorder=1
    )


def _outside(path: np.ndarray, corners: np.ndarray) -> str:
    """What the legend says after the name of a path."""
    if not np.isfinite(path).all():
        return " (diverged)"
    if (path[-1] < corners[:, 0]).any() or (path[-1] > corners[:, 1]).any():
        return " (ends outside)"
    return ""
