"""What `aj.diagnose` measured against the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .._core import arguments
from ..transforms.measures import MEASURES
from .axes import axes_for, legend
from .checks import listed, numbers, places_of
from .lines import COLORS, band_around, curve, next_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
      history: that of `aj.fit` with a step that has the metric "measured"; or `state.measured` of each step
        in a list; or the same stacked, as `jax.lax.scan` gives it: from measures to groups to arrays of
        shape (steps,), for "effective_learning_rate" (steps, quantiles), with one quantile or three.
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
            f"{listed(measured)}."
        )
    if len(names) > len(COLORS):
        raise ValueError(
            f"{len(names)} groups are too many for one picture: name {len(COLORS)} or fewer of them, "
            f"groups=[...], of {listed(names)}. `aj.diagnose` can also put arrays together, with "
            "group_by."
        )
    values = {name: measured[name] for name in names}
    places = {
        name: places_of(steps, len(each), f"the {measure} of {name!r} in history", first=1)
        for name, each in values.items()
    }
    ax = axes_for(ax)
    if (limits := MEASURES[measure].limits) is not None:
        ax.set_ylim(*limits)
    elif any((each > 0).any() for each in values.values()):
        ax.set_yscale("log")
        values = {name: np.where(each > 0, each, np.nan) for name, each in values.items()}
    for name, each in values.items():
        style = next_style(ax)
        each = np.where(np.isfinite(each), each, np.nan)
        curve(ax, places[name], each[:, each.shape[1] // 2], style, name)
        if each.shape[1] > 1:
            band_around(ax, places[name], each[:, 0], each[:, -1], style)
    ax.set_xlabel("step")
    ax.set_ylabel(MEASURES[measure].label)
    legend(ax, beside=True)
    return ax


def _measured(history: Any, measure: str) -> dict[str, np.ndarray]:
    """From groups to what was measured of them, of shape (steps, quantiles)."""
    stacked = isinstance(history, Mapping)
    if stacked and isinstance(history.get("measured"), Mapping):  # That of a run.
        history = history["measured"]
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
                f"measure={measure!r} is not in history, which has {listed(entry)}: give its name to "
                "aj.diagnose, in measures."
            )
        if set(entry[measure]) != set(entries[0][measure]):
            raise ValueError(
                f"history[{place}] has the groups {listed(entry[measure])}, history[0] has "
                f"{listed(entries[0][measure])}: they must be of one optimizer."
            )
    values = {}
    for group in entries[0][measure]:
        steps = jax.device_get([entry[measure][group] for entry in entries])
        argument = f"the {measure} of {group!r} in history"
        if measure != "effective_learning_rate":
            values[group] = numbers(argument, steps[0] if stacked else steps, "(steps,)")[:, None]
            continue
        values[group] = numbers(argument, steps[0] if stacked else steps, "(steps, quantiles)")
        if values[group].shape[1] not in (1, 3):
            raise ValueError(
                f"{argument} has shape {values[group].shape}: it must be (steps, 3), for a line in a "
                "band, or (steps, 1). Give aj.diagnose three quantiles."
            )
        # Ascending, in whatever order the quantiles were asked for.
        values[group] = np.sort(values[group], axis=1)
    return values
