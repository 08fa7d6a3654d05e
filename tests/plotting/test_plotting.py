"""What all pictures promise: their Axes, and errors before anything is drawn."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from plotting.drawn import LOSSES, RATE, START, bowl, legend

import adaptive_jax as aj
from adaptive_jax import plotting

DRAWINGS = {
    "loss_curves": lambda ax: plotting.loss_curves({"Adam": LOSSES, "SGD": LOSSES[0]}, ax=ax),
    "sensitivity": lambda ax: plotting.sensitivity([0.1, 1.0, 3.0], [1.0, 0.1, np.nan], ax=ax),
    "paths": lambda ax: plotting.paths(bowl, {"SGD": [[2.0, 1.0], [1.0, 0.1]]}, ax=ax),
    "measurements": lambda ax: plotting.measurements(
        {"cosine": {"w": [0.1, 1.0]}}, "cosine", ax=ax
    ),
    "performance_profile": lambda ax: plotting.performance_profile({"SGD": [3, np.inf]}, ax=ax),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_axes(draw, ax):
    assert draw(ax) is ax
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert legend(ax)
    assert not ax.get_title()


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_new_figure(draw):
    assert not pyplot.get_fignums()
    ax = draw(None)
    assert isinstance(ax, Axes)
    assert len(pyplot.get_fignums()) == 1
    ax.figure.canvas.draw()
    pyplot.close(ax.figure)


MEASURED = {"cosine": {"w": [0.1, 0.2], "b": [0.1, 0.2]}}
MANY = {"cosine": {f"layer {i}": [0.1] for i in range(9)}}
ERRORS = [
    # The function, its arguments, and what the error says.
    ("loss_curves", ({},), {}, "curves is empty"),
    (
        "loss_curves",
        ({"Adam": np.ones((2, 3, 4))},),
        {},
        r"curves\['Adam'\] has shape \(2, 3, 4\).*\(seeds, points\) or \(points,\)",
    ),
    ("loss_curves", ({"Adam": np.ones((2, 0))},), {}, r"shape \(2, 0\).*not empty"),
    ("loss_curves", ({"Adam": [[1.0], [1.0, 2.0]]},), {}, r"curves\['Adam'\] is a list"),
    ("loss_curves", ({"Adam": LOSSES},), {"spread": "std"}, "spread='std'.*'deviation'"),
    (
        "loss_curves",
        ({"Adam": LOSSES},),
        {"steps": [1, 2]},
        r"steps has shape \(2,\), but curves\['Adam'\] has 30 points",
    ),
    (
        "sensitivity",
        ([1, 2, 3], LOSSES),
        {},
        r"losses has shape \(7, 30\), values has shape \(3,\).*\(3, seeds\)",
    ),
    ("sensitivity", ([1, np.nan], [1, 2]), {}, "values has nan"),
    ("paths", (bowl, {}), {}, "paths is empty"),
    ("paths", (bowl, {"SGD": np.ones((4, 3))}), {}, r"paths\['SGD'\] has shape \(4, 3\)"),
    ("paths", (bowl, {"SGD": [START]}), {"minima": [1, 2, 3]}, r"minima has shape \(1, 3\)"),
    ("paths", (bowl, {"SGD": [START]}), {"box": ((1, -1), (0, 1))}, "box=.*lowest θ₁"),
    ("paths", (bowl, {"SGD": [START]}), {"box": (-1, 1)}, r"box has shape \(2,\)"),
    ("paths", (bowl, {"SGD": [[np.nan, 0]]}), {}, "give the box"),
    ("paths", (lambda params: params, {"SGD": [START]}), {}, r"float32\[2\].*one number"),
    ("measurements", (MEASURED, "sine"), {}, "measure='sine'.*'cosine'"),
    ("measurements", ([MEASURED], "moving"), {}, "'moving' is not in history, which has 'cosine'"),
    ("measurements", (MEASURED, "cosine"), {"groups": ["v"]}, r"groups=\['v'\].*'w', 'b'"),
    ("measurements", (MEASURED, "cosine"), {"groups": "w"}, "groups='w' must be a list"),
    ("measurements", (MEASURED, "cosine"), {"groups": []}, r"groups=\[\]"),
    ("measurements", (MANY, "cosine"), {}, "9 groups.*8 or fewer.*'layer 0'.*'layer 8'"),
    ("measurements", ([], "cosine"), {}, "history is a list without entries"),
    ("measurements", ([1.0], "cosine"), {}, "history is a list of other things"),
    (
        "measurements",
        ({"cosine": {"w": 0.1}}, "cosine"),
        {},
        r"the cosine of 'w' in history has shape \(\).*\(steps,\)",
    ),
    (
        "measurements",
        ([MEASURED, {"cosine": {"v": 1.0}}], "cosine"),
        {},
        r"history\[1\] has the groups 'v'",
    ),
    ("measurements", ({RATE: {"w": np.ones((5, 2))}}, RATE), {}, r"\(5, 2\).*three quantiles"),
    ("performance_profile", ({},), {}, "steps_to_target is empty"),
    (
        "performance_profile",
        ({"SGD": [1, 2], "Adam": [1]},),
        {},
        r"steps_to_target\['Adam'\] has shape \(1,\), steps_to_target\['SGD'\] has shape \(2,\)",
    ),
    ("performance_profile", ({"SGD": [1, np.nan]},), {}, r"\['SGD'\] has nan in it.*inf where"),
    ("performance_profile", ({"SGD": [-1, 2]},), {}, "has -1 in it"),
]


@pytest.mark.parametrize(("name", "arguments", "options", "message"), ERRORS)
def test_errors_come_before_anything_is_drawn(name, arguments, options, message, ax):
    draw = getattr(plotting, name)
    before = len(ax.get_children())
    with pytest.raises(ValueError, match=message):
        draw(*arguments, **options, ax=ax)
    assert len(ax.get_children()) == before
    with pytest.raises(ValueError, match=message):
        draw(*arguments, **options)
    assert len(pyplot.get_fignums()) == 1  # that of the fixture


def test_an_array_without_a_name(ax):
    with pytest.raises(TypeError, match=r'curves is a ndarray: .*\{"Adam": losses\}'):
        plotting.loss_curves(LOSSES, ax=ax)


def test_many_axes_are_no_axes():
    figure, axes = pyplot.subplots(1, 2)
    pyplot.close(figure)
    with pytest.raises(TypeError, match=r"ax is a ndarray: it must be one matplotlib Axes"):
        plotting.loss_curves({"Adam": LOSSES}, ax=axes)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(ImportError, match=r'pip install "adaptive_jax\[plot\]"'):
        plotting.loss_curves({"Adam": LOSSES})


def test_importing_the_library_needs_no_matplotlib():
    program = "import sys, adaptive_jax.plotting; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_problem_is_no_function(ax):
    with pytest.raises(TypeError, match=r"function is TestFunction.* give .* problem.evaluate"):
        plotting.paths(aj.problems.booth(), {"SGD": [START]}, ax=ax)
