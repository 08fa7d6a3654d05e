"""Pictures of training: curves, sensitivity, paths, measurements, performance profiles.

Every function draws into the matplotlib Axes `ax`, or into a new figure's, and returns the Axes. Titles,
limits and files are the caller's: `ax.set_title(...)`, `ax.figure.savefig("losses.pdf")`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ._core import arguments, pytrees
from .transforms.measures import MEASURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D

# Okabe and Ito's colours stay apart for colour-blind readers, dashes and markers in grey print. Their
# yellow is too light for a line on white: a grey stands in its place. The three lists have no common
# divisor, so the same dashes meet the same markers again only after 45 lines.
COLORS = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F",
)  # fmt: skip


DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


MARKERS = ("o", "s", "^", "D", "v", "P", "<", ">", "p")


SPREADS = ("quartiles", "range", "deviation")
"""What the band of `loss_curves` can be."""


_CURVE = "adaptive_jax curve"  # the gid of lines that were given a style


# The gid of the crosses for what diverged, and what fills them: None for the colour of their edge.
_CROSSES = {"diverged": None, "all seeds diverged": None, "some seeds diverged": "white"}


_ROW = 0.06  # the height of a row of crosses, as a share of the height of the Axes


def loss_curves(
    curves: Mapping[str, Any],
    *,
    steps: Any = None,
    spread: str = "quartiles",
    ax: Axes | None = None,
) -> Axes:
    """Loss against the step: for each optimizer a line through the middle of its seeds, and a band.

    A run with a NaN or an infinity anywhere has diverged. It counts neither in the line nor in the
    band, and the legend says so: "Adam (2 of 10 diverged)". Where every run of an optimizer diverged,
    its line goes as far as all of them are finite, without a say in the limits of the y axis.

    The y axis is logarithmic where all losses are positive and span more than a decade. There a band
    that reaches below the lowest loss, as mean less deviation may, ends at it.

    Args:
      curves: from names to losses, of shape (seeds, points), or (points,) for one run.
      steps: where the points are, of shape (points,); None for 0, 1, 2, ...
      spread: "quartiles", the median in a band from the first to the third quartile; "range", the
        median in a band from the lowest to the highest; "deviation", the mean with a sample standard
        deviation to either side. A single run has no band.
      ax: a matplotlib Axes; None for that of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for no curves, other shapes, and an unknown spread.
      TypeError: for what is no mapping, and no Axes.
      ImportError: without matplotlib.

    Example:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from adaptive_jax import plotting
      >>> losses = 0.9 ** np.arange(50) * np.array([[1.0], [2.0], [np.nan]])
      >>> ax = plotting.loss_curves({"Adam": losses}, spread="range", ax=Figure().subplots())
      >>> print(ax.get_yscale(), [text.get_text() for text in ax.get_legend().get_texts()])
      log ['Adam (1 of 3 diverged)']
    """
    arguments.one_of("spread", spread, SPREADS)
    runs = {
        name: np.atleast_2d(_numbers(f"curves[{name!r}]", losses, "(seeds, points)", "(points,)"))
        for name, losses in _named("curves", curves, "losses").items()
    }
    places = {
        name: _steps(steps, losses.shape[1], f"curves[{name!r}]") for name, losses in runs.items()
    }
    ax = _axes(ax)
    kept = {name: losses[np.isfinite(losses).all(axis=1)] for name, losses in runs.items()}
    some_kept = any(len(losses) for losses in kept.values())
    shown = np.concatenate([losses.ravel() for losses in (kept if some_kept else runs).values()])
    logarithmic = _scale(ax, "y", shown)
    for name, losses in runs.items():
        style = _next_style(ax)
        label = f"{name}{_diverged(len(losses) - len(kept[name]), len(losses))}"
        if len(kept[name]) == 0:
            limits = ax.dataLim.frozen()
            center = _center_and_band(_while_finite(losses), spread)[0]
            _line(ax, places[name], center, style, label)
            if some_kept:  # What blows up would press the others flat.
                ax.dataLim.set(limits)
            continue
        center, low, high = _center_and_band(kept[name], spread)
        _line(ax, places[name], center, style, label)
        if len(kept[name]) > 1:
            # A logarithmic axis would reach for the smallest positive number of the band.
            cut = logarithmic and low.min() < shown.min()
            low = np.maximum(low, shown.min()) if cut else low
            band = _band(ax, places[name], low, high, style)
            if cut:
                band.sticky_edges.y.append(shown.min())  # the axis ends where the band is cut
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    _legend(ax)
    return ax


def sensitivity(
    values: Any,
    losses: Any,
    *,
    name: str = "learning_rate",
    label: str | None = None,
    maximize: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Loss against a hyperparameter: how wide the range of good settings is, and where it ends.

    The line is the median of the seeds, the band goes from the lowest to the highest, a star marks the
    setting with the best mean, as `Sweep.best` does. A seed that diverged, with NaN or an infinity,
    counts as infinitely bad: where half of them did, there is no line. A filled cross at the top marks
    the settings where every seed diverged, a hollow one those where some did. Call it again with the same
    `ax` for another optimizer: it takes the next colour, and a row of crosses of its own.

    Both axes are logarithmic where all is positive and spans more than a decade. Losses that are finite
    but huge press the others flat: give them as infinity, or end the axis with `ax.set_ylim`.

    Args:
      values: the settings, of shape (settings,), in any order.
      losses: of shape (settings, seeds), or (settings,).
      name: of the hyperparameter, for the x axis.
      label: of the optimizer, for the legend.
      maximize: whether more is better, as of an accuracy.
      ax: a matplotlib Axes; None for that of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for other shapes, and settings that are not finite.
      TypeError: for what is no Axes.
      ImportError: without matplotlib.

    Example:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from adaptive_jax import plotting
      >>> rates, losses = np.array([0.001, 0.01, 0.1, 1.0]), np.array([3.0, 0.2, 0.1, np.nan])
      >>> ax = plotting.sensitivity(rates, losses, label="SGD", ax=Figure().subplots())
      >>> print([text.get_text() for text in ax.get_legend().get_texts()])
      ['SGD (best: 0.1)', 'diverged']
    """
    places = _numbers("values", values, "(settings,)")
    runs = _numbers("losses", losses, "(settings, seeds)", "(settings,)")
    if len(runs) != len(places):
        raise ValueError(
            f"losses has shape {runs.shape}, values has shape {places.shape}: losses must be "
            f"({len(places)}, seeds) or ({len(places)},), one row for each of the values."
        )
    if not np.isfinite(places).all():
        raise ValueError(
            f"values has {places[~np.isfinite(places)][0]} in it: they must be finite, as places on the "
            "x axis."
        )
    order = np.argsort(places)
    places, runs = places[order], runs[order].reshape(len(places), -1)
    finite = np.isfinite(runs)
    sign = -1 if maximize else 1
    as_losses = np.where(finite, sign * runs, np.inf)
    median = sign * np.median(as_losses, axis=1)
    drawn = np.isfinite(median)
    # The best mean; where every setting has a seed that diverged, the best median.
    best = np.lexsort((sign * median, as_losses.mean(axis=1)))[0]
    ax = _axes(ax)
    _scale(ax, "x", places)
    _scale(ax, "y", runs[finite & drawn[:, np.newaxis]])
    style = _next_style(ax)
    note = f"best: {places[best]:.3g}" if drawn[best] else "no setting works"
    note = note if label is None else f"{label} ({note})"
    line = _line(ax, places, np.where(drawn, median, np.nan), style, note)
    line.set_markevery(1)  # every setting that was tried
    if runs.shape[1] > 1:
        low = np.where(finite, runs, np.inf).min(axis=1)
        high = np.where(finite, runs, -np.inf).max(axis=1)
        low, high = np.where(drawn, low, np.nan), np.where(drawn, high, np.nan)
        _band(ax, places, low, high, style)
    if drawn[best]:
        ax.plot(
            places[best],
            median[best],
            linestyle="none",
            marker="*",
            markersize=16,
            markeredgecolor="white",
            color=style["color"],
            zorder=4,
        )
    _crosses(ax, places, finite, style)
    ax.set_xlabel(name.replace("_", " "))
    ax.set_ylabel("loss")
    _legend(ax)
    return ax


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
        name: _pairs(f"paths[{name!r}]", _numbers(f"paths[{name!r}]", path, "(steps + 1, 2)"))
        for name, path in _named("paths", paths, "parameters").items()
    }
    lowest = np.zeros((0, 2))
    if minima is not None:
        lowest = _numbers("minima", minima, "(minima, 2)", "(2,)")
        lowest = _pairs("minima", np.atleast_2d(lowest))
    corners = _box(box, np.concatenate([*points.values(), lowest]))
    result = jax.eval_shape(function, jnp.zeros(2))
    if getattr(result, "shape", None) != ():
        raise ValueError(
            f"function gives {jax.tree.map(pytrees.describe, result)} for an array of shape (2,): it "
            "must give one number, an array of shape ()."
        )
    ax = _axes(ax)
    _contours(ax, function, corners)
    for index, (name, path) in enumerate(points.items()):
        style = _next_style(ax)
        _line(ax, path[:, 0], path[:, 1], {**style, "marker": ""}, None)
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
    _legend(ax, beside=True)
    return ax


def measurements(
    history: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    measure: str,
    *,
    groups: Sequence[str] | None = None,
    steps: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """One measure of `aj.diagnose` against the step: a line for each group of arrays.

    The effective learning rate is a line through its median in a band between its other quantiles.
    Norms, ratios and rates are on a logarithmic axis, where a 0 leaves a gap.

    Args:
      history: what was measured, `state.measured` of each step in a list; or the same stacked, as
        `jax.lax.scan` gives it: from measures to groups to arrays of shape (steps,), for
        "effective_learning_rate" (steps, quantiles), with one quantile or three.
      measure: its name, one of those that `aj.diagnose` was given.
      groups: the names of the groups to draw; None for all, if they are 8 or fewer.
      steps: when they were measured, of shape (steps,); None for 1, 2, 3, ...
      ax: a matplotlib Axes; None for that of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for an unknown measure, one that was not measured, an unknown group, more groups than
        can be told apart, and other shapes.
      TypeError: for what is no Axes.
      ImportError: without matplotlib.

    Example:
      >>> import jax.numpy as jnp
      >>> from matplotlib.figure import Figure
      >>> import adaptive_jax as aj
      >>> from adaptive_jax import plotting
      >>> tx = aj.diagnose(aj.adam(0.1), ("update_norm",))
      >>> params = {"w": jnp.ones(3), "b": jnp.ones(1)}
      >>> state, history = tx.init(params), []
      >>> for _ in range(5):
      ...     _, state = tx.update(params, state, params)
      ...     history.append(state.measured)
      >>> ax = plotting.measurements(history, "update_norm", ax=Figure().subplots())
      >>> print([text.get_text() for text in ax.get_legend().get_texts()])
      ["['b']", "['w']"]
    """
    arguments.one_of("measure", measure, MEASURES)
    measured = _measured(history, measure)
    names = list(measured) if groups is None else list(groups)
    if isinstance(groups, str) or not names or not set(names) <= set(measured):
        raise ValueError(
            f"groups={groups!r} must be a list of one or more of the groups that were measured: "
            f"{_names(measured)}."
        )
    if len(names) > len(COLORS):
        raise ValueError(
            f"{len(names)} groups are too many for one picture: name {len(COLORS)} or fewer of them, "
            f"groups=[...], of {_names(names)}. `aj.diagnose` can also put arrays together, with "
            "group_by."
        )
    values = {name: measured[name] for name in names}
    places = {
        name: _steps(steps, len(each), f"the {measure} of {name!r} in history", first=1)
        for name, each in values.items()
    }
    ax = _axes(ax)
    if (limits := MEASURES[measure].limits) is not None:
        ax.set_ylim(*limits)
    elif any((each > 0).any() for each in values.values()):
        ax.set_yscale("log")
        values = {name: np.where(each > 0, each, np.nan) for name, each in values.items()}
    for name, each in values.items():
        style = _next_style(ax)
        each = np.where(np.isfinite(each), each, np.nan)
        _line(ax, places[name], each[:, each.shape[1] // 2], style, name)
        if each.shape[1] > 1:
            _band(ax, places[name], each[:, 0], each[:, -1], style)
    ax.set_xlabel("step")
    ax.set_ylabel(MEASURES[measure].label)
    _legend(ax, beside=True)
    return ax


def performance_profile(steps_to_target: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """For each optimizer the share of the runs that it solves within τ times the steps of the best.

    With t(r, o) the steps that optimizer o needs for run r, a problem or a seed,

        ρ(o, τ) = share of the runs r with t(r, o) <= τ min_o t(r, o)

    At τ = 1 it is the share of runs where the optimizer is the fastest, at the right the share that it
    solves at all. A run that none solves counts as unsolved by all. Profiles compare with the best of
    the optimizers shown: leaving one out may change the order of the others.

    Dolan & Moré 2002, https://arxiv.org/abs/cs/0102001.

    Args:
      steps_to_target: from names to the steps to the target, of shape (runs,): 0 or more, inf for
        never. The same place stands for the same run in each.
      ax: a matplotlib Axes; None for that of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for no optimizers, other shapes, and steps that are negative or NaN.
      TypeError: for what is no mapping, and no Axes.
      ImportError: without matplotlib.

    Example:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from adaptive_jax import plotting
      >>> steps = {"SGD": [100, 400, np.inf], "Adam": [200, 100, 300]}
      >>> ax = plotting.performance_profile(steps, ax=Figure().subplots())
      >>> print({line.get_label(): f"{line.get_ydata()[0]:.2f}" for line in ax.lines})
      {'SGD': '0.33', 'Adam': '0.67'}
    """
    taken = {
        name: _numbers(f"steps_to_target[{name!r}]", steps, "(runs,)")
        for name, steps in _named("steps_to_target", steps_to_target, "steps").items()
    }
    (first, one), *others = taken.items()
    for name, steps in others:
        if len(steps) != len(one):
            raise ValueError(
                f"steps_to_target[{name!r}] has shape {steps.shape}, steps_to_target[{first!r}] has "
                f"shape {one.shape}: all must have one shape, (runs,), with the same runs in it."
            )
    for name, steps in taken.items():
        if not (steps >= 0).all():
            raise ValueError(
                f"steps_to_target[{name!r}] has {steps[~(steps >= 0)][0]:g} in it: steps must be 0 or "
                "more, and inf where the target was never reached."
            )
    best = np.min(list(taken.values()), axis=0)
    ratios = {}
    for name, steps in taken.items():
        fastest = np.isfinite(steps) & (steps == best)
        slower = np.isfinite(steps) & (steps > best) & (best > 0)
        ratios[name] = np.append(np.ones(fastest.sum()), steps[slower] / best[slower])
    end = max(2.0, 1.1 * np.concatenate(list(ratios.values())).max(initial=1.0))
    ax = _axes(ax)
    for name, each in ratios.items():
        jumps, counts = np.unique(each, return_counts=True)
        share = np.cumsum(counts) / len(one)
        if not len(jumps) or jumps[0] > 1:
            jumps, share = np.append(1.0, jumps), np.append(0.0, share)
        line = _line(
            ax, np.append(jumps, end), np.append(share, share[-1]), _next_style(ax), str(name)
        )
        line.set_drawstyle("steps-post")
        line.set_markevery(list(range(len(jumps))))  # not where the axis ends
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlim(1, end)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("τ (steps to the target relative to the fastest)")
    ax.set_ylabel("share of runs solved")
    _legend(ax, beside=True)
    return ax


def _axes(ax: Any) -> Axes:
    """The Axes to draw into."""
    try:
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError('Drawing needs matplotlib: pip install "adaptive_jax[plot]"') from error
    if ax is None:
        from matplotlib import pyplot

        return pyplot.subplots(figsize=(6, 4), layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise TypeError(
            f"ax is a {type(ax).__name__}: it must be one matplotlib Axes, such as axes[0, 1] of "
            "figure, axes = pyplot.subplots(2, 2), or None for a new figure."
        )
    return ax


def _named(argument: str, mapping: Any, what: str) -> Mapping[str, Any]:
    """The mapping, if it is one and not empty."""
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"{argument} is a {type(mapping).__name__}: it must be a dict from the names of the "
            f'optimizers to {what}, such as {{"Adam": {what}}}.'
        )
    if not mapping:
        raise ValueError(f"{argument} is empty: there is nothing to draw.")
    return mapping


def _numbers(argument: str, value: Any, *shapes: str) -> np.ndarray:
    """The value as float64, if it has the rank of one of the shapes and holds anything."""
    allowed = f"it must be an array of numbers of shape {' or '.join(shapes)}"
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"{argument} is a {type(value).__name__} that makes no array: {allowed}."
        ) from None
    # As many dimensions as names between the brackets.
    ranks = [len(shape.strip("(),").split(",")) for shape in shapes]
    if array.ndim not in ranks or not array.size:
        raise ValueError(f"{argument} has shape {array.shape}: {allowed}, and not empty.")
    return array


def _pairs(argument: str, points: np.ndarray) -> np.ndarray:
    if points.shape[1] != 2:
        raise ValueError(
            f"{argument} has shape {points.shape}: it must have two columns, one for each parameter of "
            "the function."
        )
    return points


def _steps(steps: Any, points: int, argument: str, first: int = 0) -> np.ndarray:
    """Where the points of a curve are on the x axis."""
    if steps is None:
        return np.arange(first, first + points)
    array = _numbers("steps", steps, "(points,)")
    if len(array) != points:
        raise ValueError(
            f"steps has shape {array.shape}, but {argument} has {points} points: steps must have one "
            "number for each point."
        )
    return array


def _scale(ax: Axes, axis: str, values: np.ndarray) -> bool:
    """Makes an axis logarithmic if that suits these values and the curves before; whether it is."""
    get = "get_xdata" if axis == "x" else "get_ydata"
    drawn = [np.asarray(getattr(line, get)()) for line in ax.lines if line.get_gid() == _CURVE]
    together = np.concatenate([values.ravel(), *drawn])
    together = together[np.isfinite(together)]
    set_scale = ax.set_xscale if axis == "x" else ax.set_yscale
    if together.size and together.min() > 0:
        if together.max() > 10 * together.min():
            set_scale("log")
    elif together.size and getattr(ax, f"get_{axis}scale")() == "log":
        set_scale("linear")
    return getattr(ax, f"get_{axis}scale")() == "log"


def _curves(ax: Axes) -> int:
    """How many curves there are."""
    return sum(line.get_gid() == _CURVE for line in ax.lines)


def _next_style(ax: Axes) -> dict[str, Any]:
    """Color, dashes and marker of the next curve."""
    index = _curves(ax)
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def _line(
    ax: Axes, x: np.ndarray, y: np.ndarray, style: dict[str, Any], label: str | None
) -> Line2D:
    """A curve, with some eight markers."""
    every = max(1, len(x) // 8)
    # Where curves lie on one another, their markers stand side by side.
    first = _curves(ax) * every // 5 % every
    (line,) = ax.plot(
        x, y, label=label, gid=_CURVE, markevery=(first, every), markersize=5, **style
    )
    return line


def _band(
    ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, style: dict[str, Any]
) -> PolyCollection:
    """The band of a curve, its edges thin, in the dashes of the curve."""
    return ax.fill_between(
        x,
        low,
        high,
        color=style["color"],
        linestyle=style["linestyle"],
        linewidth=0.6,
        alpha=0.2,
    )


def _center_and_band(runs: np.ndarray, spread: str) -> Any:
    """The line through the middle of the runs, and the lower and upper edge of their band."""
    if spread == "deviation":
        mean = runs.mean(axis=0)
        deviation = runs.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros_like(mean)
        return mean, mean - deviation, mean + deviation
    if spread == "range":
        return np.median(runs, axis=0), runs.min(axis=0), runs.max(axis=0)
    low, median, high = np.quantile(runs, (0.25, 0.5, 0.75), axis=0)
    return median, low, high


def _while_finite(runs: np.ndarray) -> np.ndarray:
    """The runs as far as all of them are finite, NaN after that."""
    finite = np.logical_and.accumulate(np.isfinite(runs).all(axis=0))
    return np.where(finite, runs, np.nan)


def _diverged(diverged: int, runs: int) -> str:
    """What the legend says after the name."""
    if not diverged:
        return ""
    if diverged < runs:
        return f" ({diverged} of {runs} diverged)"
    return " (diverged)" if runs == 1 else f" (all {runs} diverged)"


def _crosses(ax: Axes, places: np.ndarray, finite: np.ndarray, style: dict[str, Any]) -> None:
    """Marks where seeds diverged, at the top, in a row below those of the optimizers before."""
    rows = len({np.asarray(each.get_ydata())[0] for each in ax.lines if each.get_gid() in _CROSSES})
    rows += not finite.all()
    height = 1 - _ROW * (rows - 0.4)
    some, every = finite.any(axis=1), finite.all(axis=1)
    all_diverged = "diverged" if finite.shape[1] == 1 else "all seeds diverged"
    for gid, marked in ((all_diverged, ~some), ("some seeds diverged", some & ~every)):
        if marked.any():
            cross = _cross(gid, style["color"], places[marked], np.full(marked.sum(), height))
            cross.set_transform(ax.get_xaxis_transform())  # y in shares of the height of the Axes
            ax.add_line(cross)
    low, high = ax.dataLim.intervaly
    if rows and np.isfinite([low, high]).all():
        # No line reaches the rows of crosses. With auto=True later lines move the limits again.
        scale = ax.yaxis.get_transform()
        low, high = scale.transform(np.array([low, high]))
        margin = 0.05 * (high - low) or 0.05
        bottom = low - margin
        top = bottom + (high + margin - bottom) / (1 - _ROW * rows)
        ax.set_ylim(*scale.inverted().transform(np.array([bottom, top])), auto=True)


def _cross(gid: str, color: Any, x: Any = (), y: Any = ()) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D(
        x,
        y,
        linestyle="none",
        marker="X",
        markersize=7,
        markeredgewidth=1.2,
        color=color,
        markerfacecolor=_CROSSES[gid],
        gid=gid,
    )


def _legend(ax: Axes, beside: bool = False) -> None:
    """What each line and mark is: within the Axes, or beside them if it is long or asked for.

    Beside them there is room only in a figure with a layout engine, such as layout="constrained".
    """
    handles = ax.get_legend_handles_labels()[0]
    there = {line.get_gid() for line in ax.lines}
    for gid in _CROSSES:
        if gid in there:
            cross = _cross(gid, "0.2")
            cross.set_label(gid)
            handles.append(cross)
    figure = ax.get_figure(root=True)
    layout = None if figure is None else figure.get_layout_engine()
    # Long enough handles to tell the dashes apart; "best" by name, or matplotlib warns when it is slow.
    legend = ax.legend(handles=handles, loc="best", fontsize="small", handlelength=3.5)
    if layout is not None and (beside or len(handles) > 6):
        legend.set_loc("upper left")
        legend.set_bbox_to_anchor((1, 1), ax.transAxes)


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
    corners = _numbers("box", box, "(2, 2)")
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


def _measured(history: Any, measure: str) -> dict[str, np.ndarray]:
    """From groups to what was measured of them, of shape (steps, quantiles)."""
    stacked = isinstance(history, Mapping)
    entries = [history] if stacked else history
    if (
        not isinstance(entries, Sequence)
        or not entries
        or not all(isinstance(entry, Mapping) for entry in entries)
    ):
        empty = isinstance(history, Sequence) and not history
        raise ValueError(
            f"history is a {type(history).__name__} {'without entries' if empty else 'of other things'}: "
            "it must be a list of `state.measured`, one for each step, or one such dict with arrays over "
            "the steps."
        )
    for place, entry in enumerate(entries):
        if measure not in entry:
            raise ValueError(
                f"measure={measure!r} is not in history, which has {_names(entry)}: give its name to "
                "aj.diagnose, in measures."
            )
        if set(entry[measure]) != set(entries[0][measure]):
            raise ValueError(
                f"history[{place}] has the groups {_names(entry[measure])}, history[0] has "
                f"{_names(entries[0][measure])}: they must be of one optimizer."
            )
    values = {}
    for group in entries[0][measure]:
        steps = jax.device_get([entry[measure][group] for entry in entries])
        argument = f"the {measure} of {group!r} in history"
        if measure != "effective_learning_rate":
            values[group] = _numbers(argument, steps[0] if stacked else steps, "(steps,)")[:, None]
            continue
        values[group] = _numbers(argument, steps[0] if stacked else steps, "(steps, quantiles)")
        if values[group].shape[1] not in (1, 3):
            raise ValueError(
                f"{argument} has shape {values[group].shape}: it must be (steps, 3), for a line in a "
                "band, or (steps, 1). Give aj.diagnose three quantiles."
            )
        # Ascending, in whatever order the quantiles were asked for.
        values[group] = np.sort(values[group], axis=1)
    return values


def _names(names: Any) -> str:
    return ", ".join(map(repr, names))
