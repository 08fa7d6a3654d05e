"""Axes to draw into, of a figure that is drawn at the end."""

from __future__ import annotations

import matplotlib
import pytest
from matplotlib import pyplot

matplotlib.use("Agg")


@pytest.fixture
def ax():
    figure, ax = pyplot.subplots(figsize=(6, 4), layout="constrained")
    yield ax
    try:
        figure.canvas.draw()  # what cannot be drawn fails here
        assert len(pyplot.get_fignums()) == 1
    finally:
        pyplot.close("all")
