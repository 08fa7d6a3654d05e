"""The best so far, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from plotting.drawn import edges, legend, line

from adaptive_jax import plotting


def test_best_so_far(ax):
    found = {
        "SGD": [[5.0, 7.0, 3.0], [np.nan, 4.0, 9.0], [6.0, 2.0, 1.0]],
        "Adam": [[8.0, 9.0, np.inf], [7.0, 7.0, 7.0], [6.0, 3.0, 3.0]],
    }
    plotting.best_so_far(found, name="loss", ax=ax)
    assert line(ax, "SGD").get_xdata().tolist() == [1, 2, 3]
    assert line(ax, "SGD").get_ydata().tolist() == [6, 4, 3]
    assert line(ax, "Adam").get_ydata().tolist() == [7, 7, 7]
    assert line(ax, "SGD").get_drawstyle() == "steps-post"
    sgd, adam = ax.collections
    # The band begins where all studies have found something.
    assert [each.tolist() for each in edges(sgd, [2])] == [[2], [5]]
    assert np.concatenate([path.vertices for path in sgd.get_paths()]).min(axis=0).tolist() == [
        2,
        1,
    ]
    assert [each.tolist() for each in edges(adam, [1, 3])] == [[6, 3], [8, 8]]
    assert legend(ax) == ["SGD", "Adam"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("settings tried", "loss, best so far")


def test_what_never_works_has_no_line(ax):
    plotting.best_so_far({"lost": [np.inf, np.nan], "kept": [2.0, 1.0]}, ax=ax)
    assert np.isnan(line(ax, "lost").get_ydata()).all()
    assert line(ax, "kept").get_ydata().tolist() == [2, 1]


def test_wrong_shapes_are_refused(ax):
    with pytest.raises(
        ValueError, match=r"values\['SGD'\] has shape \(\): it must be an array of num"
    ):
        plotting.best_so_far({"SGD": 3.0}, ax=ax)
    with pytest.raises(ValueError, match="values is empty"):
        plotting.best_so_far({}, ax=ax)
