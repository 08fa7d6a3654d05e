"""What `benchmarks/problems.py` says of the problems, from numbers of known truth and from its file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchmarks import problems as benchmark


def optimizers(means, random, noise=0.1, tuning=0.2):
    """Six optimizers: what their fresh seeds come to in three studies."""
    return {
        str(i): {
            "finals": np.exp(
                mean + tuning * random.normal(size=(3, 1)) + noise * random.normal(size=(3, 5))
            ).tolist(),
            "start": 10.0,
        }
        for i, mean in enumerate(means)
    }


def test_optimizers_that_are_alike_are_told_apart_as_often_as_chance_does():
    """Of four of four: to take the best four of more would tell the others apart from nothing."""
    random = np.random.default_rng(0)
    alike = [benchmark.judged(optimizers([0.0] * 4, random), None)["p"] for _ in range(400)]
    assert 0.02 < np.mean(np.array(alike) < 0.05) < 0.08
    apart = [benchmark.judged(optimizers([0, 1, 2, 3, 9, 9], random), None) for _ in range(20)]
    assert all(each["p"] < 0.01 for each in apart)
    assert all(list(each["four"]) == ["0", "1", "2", "3"] for each in apart)


def test_what_diverges_is_not_among_the_best():
    found = optimizers([0, 1, 2, 3, 4], np.random.default_rng(0))
    found["0"]["finals"][1][2] = float("nan")
    judged = benchmark.judged(found, None)
    assert list(judged["four"]) == ["1", "2", "3", "4"]
    assert judged["diverged"] == ["0"]


def test_the_file_is_what_the_table_is_made_of():
    results = json.loads(benchmark.FILE.read_text())["problems"]
    assert set(results) <= set(benchmark.ALL)
    for each in results.values():
        stored = each["judged"]
        again = benchmark.judged(each["optimizers"], stored["known"])
        assert again["four"] == pytest.approx(stored["four"])
        assert again["p"] == pytest.approx(stored["p"])
        assert stored["known"] is None or stored["known"] <= stored["lowest"] + 1e-2
        assert stored["lowest"] < stored["start"]
    assert "tell the best four apart" in benchmark.table(results)
