"""What is drawn, and what is read back from the artists."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

LOSSES = 10.0 ** -np.linspace(0, 2, 30) * np.random.default_rng(0).uniform(0.5, 2, (7, 30))


START = np.array([2.0, 1.0])


RATE = "effective_learning_rate"


def bowl(params):
    return jnp.square(params[0]) + 10 * jnp.square(params[1])


def line(ax, start):
    """The line whose label starts so."""
    (found,) = [each for each in ax.lines if str(each.get_label()).startswith(start)]
    return found


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def edges(band, x):
    """The lower and upper edge of a band at each x."""
    places, heights = np.concatenate([path.vertices for path in band.get_paths()]).T
    at = [heights[places == each] for each in x]
    return np.array([each.min() for each in at]), np.array([each.max() for each in at])
