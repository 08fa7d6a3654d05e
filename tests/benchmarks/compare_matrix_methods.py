"""Matrix methods and AdamW on three problems at equal budgets: the page "Matrix methods" of the site.

    python tests/benchmarks/compare_matrix_methods.py              # goes on where it was stopped
    python tests/benchmarks/compare_matrix_methods.py --page       # writes the page from the JSON alone

Each method has as many settings tried on each problem, learning rates drawn from four decades, and runs
the best of them with ten other seeds. The learning rate falls linearly to zero over the steps, for all.
A method that this version does not have is left out. Results are written to
`compare_matrix_methods.json` after each one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import adaptive_jax as aj

RESULTS = Path(__file__).with_suffix(".json")
DOCS = Path(__file__).parents[2] / ".docs"
PAGE, PICTURE = DOCS / "matrix_methods.md", DOCS / "_static" / "matrix_methods.png"
BUDGET, SEEDS, TUNING_SEEDS, EVALUATIONS = 8, 10, 2, 50

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW": ("adamw", {"weight_decay": 0.0}),
    "Muon": ("muon", {"scale": "rms"}),
    "NorMuon": ("muon", {"scale": "rms", "normuon": True}),
    "Shampoo": ("shampoo", {}),
    "SOAP": ("soap", {}),
    "PSGD-Kron": ("psgd_kron", {}),
}
"""From what is compared to the name of a function of `aj` and its settings."""

CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "Muon, no momentum": ("muon", {"scale": "rms", "b1": 0.0}),
    "Muon, weight decay 0.1": ("muon", {"scale": "rms", "weight_decay": 0.1}),
    "SOAP, refreshed in each step": ("soap", {"refresh_every": 1}),
    "Shampoo, refreshed in each step": ("shampoo", {"refresh_every": 1}),
    "PSGD-Kron, a fit in 10 steps": ("psgd_kron", {"preconditioner_update_probability": 0.1}),
}
"""The same with one setting changed: momentum, decay, and how often factors are refreshed."""


def problems() -> dict[str, tuple[aj.problems.Problem, list[str]]]:
    """The problems, small enough for a CPU, each with what is compared on it."""
    text = aj.problems.language_model(layers=1, width=32, length=16, batch=8)
    every = [*METHODS, *CHANGES]
    return {
        "matrix regression": (aj.problems.matrix_regression(noise=0.03), every),
        "digits": (dataclasses.replace(aj.problems.digits(), steps=150), list(METHODS)),
        "language model": (dataclasses.replace(text, steps=150, target=None), every),
    }


def factory(name: str, steps: int) -> Callable[..., Any]:
    """A function of the learning rate at first, which falls to zero."""
    function, settings = (METHODS | CHANGES)[name]

    def make(learning_rate: Any) -> Any:
        schedule = aj.schedules.linear_schedule(learning_rate, 0.0, steps)
        return getattr(aj, function)(schedule, **settings)

    return make


def measured(problem: aj.problems.Problem, name: str) -> dict[str, Any]:
    """The curves of the best setting of one method."""
    start = time.process_time()
    space = {"learning_rate": aj.LogUniform(1e-4, 1.0)}
    found = aj.compare(
        {name: (factory(name, problem.steps), space)},
        problem,
        BUDGET,
        seeds=SEEDS,
        tuning_seeds=TUNING_SEEDS,
        evaluations=EVALUATIONS,
        target=0.0,  # It is set later, by all of them.
        progress=False,
    )
    finalist = found.finalists[problem.name][name]
    curves = [[float(f"{x:.6g}") for x in curve] for curve in finalist.curves]
    return {
        "learning_rate": finalist.setting and float(f"{finalist.setting['learning_rate']:.3g}"),
        "curves": curves,
        "seconds": round(time.process_time() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--page", action="store_true", help="write the page, run nothing")
    parser.add_argument("--only", nargs="+", default=[], help="problems to run")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for title, (problem, names) in problems().items() if not arguments.page else ():
        if arguments.only and title not in arguments.only:
            continue
        of_problem = results.setdefault(
            title, {"steps": problem.steps, "measure": problem.measure, "methods": {}}
        )
        for name in names:
            if name in of_problem["methods"] or not hasattr(aj, (METHODS | CHANGES)[name][0]):
                continue
            of_problem["methods"][name] = measured(problem, name)
            RESULTS.write_text(json.dumps(results) + "\n")
            final = np.mean([curve[-1] for curve in of_problem["methods"][name]["curves"]])
            print(f"{title}: {name}: {final:.5g}, {of_problem['methods'][name]['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
