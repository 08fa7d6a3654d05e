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
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A sweep has its own threads: those of OpenBLAS would wait for each other, busily.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # Read when SciPy is imported.

import numpy as np
from scipy import stats

import adaptive_jax as aj

RESULTS = Path(__file__).with_suffix(".json")
DOCS = Path(__file__).parents[2] / ".docs"
PAGE, PICTURE = DOCS / "matrix_methods.md", DOCS / "_static" / "matrix_methods.png"
COMPILED = Path(__file__).with_name("ahead_of_time_matrices.json")
TIMED = Path(__file__).with_name("matrix_methods.json")
BESIDE_OPTAX = Path(__file__).with_name("muon.json")
BUDGET, SEEDS, TUNING_SEEDS, EVALUATIONS = 8, 10, 2, 50

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW": ("adamw", {"weight_decay": 0.0}),
    "Muon": ("muon", {"scale": "rms"}),
    "Shampoo": ("shampoo", {}),
    "SOAP": ("soap", {"weight_decay": 0.0}),
    "PSGD-Kron": ("psgd_kron", {}),
    "KL-SOAP": ("soap", {"kl": True, "weight_decay": 0.0}),
}
"""From what is compared to the name of a function of `aj` and its settings."""

CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "Muon, no momentum": ("muon", {"scale": "rms", "b1": 0.0}),
    "Muon, weight decay 0.1": ("muon", {"scale": "rms", "weight_decay": 0.1}),
    "SOAP, refreshed in each step": ("soap", {"refresh_every": 1, "weight_decay": 0.0}),
    "PSGD-Kron, a fit in 10 steps": ("psgd_kron", {"preconditioner_update_probability": 0.1}),
}
"""The same with one setting changed: momentum, decay, and how often factors are refreshed."""


def problems() -> dict[str, tuple[aj.problems.Problem, list[str]]]:
    """The problems, small enough for a CPU, each with what is compared on it."""
    text = aj.problems.language_model(layers=1, width=32, length=16, batch=8)
    common = [name for name in METHODS if name != "KL-SOAP"]
    return {
        "matrix regression": (aj.problems.matrix_regression(noise=0.03), [*common, *CHANGES]),
        "digits": (dataclasses.replace(aj.problems.digits(), steps=120), common),
        # With what is published of a language model.
        "language model": (dataclasses.replace(text, steps=120, target=None), [*METHODS, *CHANGES]),
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
        studies=1,
        tune_for="final",
        target=0.0,  # It is set later, by all of them.
        progress=False,
    )
    finalist = found.finalists[problem.name][name]
    curves = [[float(f"{x:.6g}") for x in curve] for curve in finalist.curves[0]]
    return {
        "learning_rate": float(f"{finalist.settings[0]['learning_rate']:.3g}"),
        "curves": curves,
        "seconds": round(time.process_time() - start, 1),
    }


def results() -> dict[str, Any]:
    """What is written already."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def figures() -> list[Any]:
    """What other scripts have written: None where one has not."""
    paths = COMPILED, TIMED, BESIDE_OPTAX
    return [json.loads(path.read_text()) if path.exists() else None for path in paths]


def finals(found: dict[str, Any]) -> np.ndarray:
    """The last value of each seed; infinite where it diverged."""
    last = np.array([curve[-1] for curve in found["curves"]], np.float64)
    return np.where(np.isfinite(last), last, np.inf)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The mean, and half of its 95 % interval, of Student's t."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(half)


def difference(found: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """How much higher one ends than another with the same seed, and half of the interval."""
    return interval(finals(found) - finals(other))


def steps_to(target: float, found: dict[str, Any], steps: int) -> np.ndarray:
    """The step at which each seed is as low as that; infinite for never."""
    curves = np.array(found["curves"], np.float64)
    reached = curves <= target
    marks = np.unique(np.linspace(0, steps, EVALUATIONS + 1).round())
    return np.where(reached.any(1), marks[np.argmax(reached, 1)], np.inf)


def targets(every: dict[str, Any]) -> dict[str, float]:
    """What six of ten seeds of AdamW reach in the end, on each problem."""
    return {
        title: float(np.sort(finals(of["methods"]["AdamW"]))[SEEDS // 2])
        for title, of in every.items()
    }


def number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "never"


def with_interval(value: float, half: float, sign: str = "") -> str:
    """A mean with its interval, both to the second digit of the interval."""
    if not np.isfinite(value) or not half > 0:
        return f"{value:{sign}.3g}"
    places = max(0, 1 - int(np.floor(np.log10(half))))
    return f"{value:{sign}.{places}f} ± {half:.{places}f}"


def verdict(value: float, half: float) -> str:
    return "within noise" if abs(value) <= half else "worse" if value > 0 else "better"


def table(titles: list[str], rows: list[list[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def picture(every: dict[str, Any]) -> Any:
    """The performance profile of all problems together."""
    from matplotlib.figure import Figure

    goals = targets(every)
    names = [name for name in METHODS if all(name in of["methods"] for of in every.values())]
    steps = {
        name: np.concatenate(
            [
                steps_to(goals[title], of["methods"][name], of["steps"])
                for title, of in every.items()
            ]
        )
        for name in names
    }
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    aj.plotting.performance_profile(steps, ax=figure.subplots())
    return figure


def page(
    every: dict[str, Any],
    compiled: dict[str, Any],
    timed: dict[str, Any] | None,
    beside_optax: dict[str, Any],
) -> str:
    """The page, of what was measured alone."""
    lines = [
        "# Matrix methods",
        "",
        "<!-- Written by tests/benchmarks/compare_matrix_methods.py --page -->",
        "",
        f"Muon, Shampoo, SOAP and PSGD-Kron beside AdamW, with equal budgets: {BUDGET} learning rates "
        f"tried on each problem with {TUNING_SEEDS} seeds each, from 10⁻⁴ to 1, and {SEEDS} other seeds of "
        "the best. The learning rate falls linearly to zero; there is no weight decay; all else is the "
        'default, with Muon\'s scale that of Adam (`scale="rms"`). The problems are small enough for a '
        "CPU: "
        "what they say of large models is little, and what they do not tell apart is called so.",
        "",
        "Final values are means over the seeds with 95 % intervals. Seeds are the same for all, so the "
        "difference to the best is taken seed by seed: where its interval has 0 in it, both are *within "
        "noise*. Steps are those till a run is as low as six of AdamW's ten seeds are at the end. This is "
        "one study: other draws of learning rates move a method by more than its interval, and [which "
        "optimizer](which_optimizer.md) has five.",
        "",
    ]
    goals = targets(every)
    for title, of in every.items():
        lines += [f"## {title.capitalize()}", "", f"{of['steps']} steps; {of['measure']}.", ""]
        known = {name: of["methods"][name] for name in METHODS if name in of["methods"]}
        best = min(known, key=lambda name: np.mean(finals(known[name])))
        rows = []
        for name in sorted(known, key=lambda name: np.mean(finals(known[name]))):
            found, (value, half) = known[name], difference(known[name], known[best])
            rows.append(
                [
                    name, number(found["learning_rate"] or np.nan),
                    with_interval(*interval(finals(found))),
                    "the best" if name == best
                    else f"{with_interval(value, half, '+')}: {verdict(value, half)}",
                    number(np.sort(steps_to(goals[title], found, of["steps"]))[SEEDS // 2]),
                ]
            )  # fmt: skip
        lines += table(["method", "learning rate", "final value", "to the best", "steps"], rows)
    lines += [
        "![Performance profile](_static/matrix_methods.png)",
        "",
        "All problems together, and the methods measured on all of them: the share of runs as low as "
        "six of AdamW's ten seeds are at the end, within τ times the steps of the quickest method for that "
        "run.",
        "",
        "## Momentum, decay and refreshes",
        "",
        "The same method with one setting changed, and again the best of as many learning rates.",
        "",
    ]
    rows = []
    for title, of in every.items():
        for name in CHANGES:
            method, _, change = name.partition(", ")
            if name in of["methods"] and method in of["methods"]:
                found = difference(of["methods"][name], of["methods"][method])
                rows.append(
                    [
                        title, method, change, with_interval(*interval(finals(of["methods"][name]))),
                        f"{with_interval(*found, '+')}: {verdict(*found)}",
                    ]
                )  # fmt: skip
    lines += table(["problem", "method", "change", "final value", "than without"], rows)
    lines += ["## Beside what is published", "", *published(every), ""]
    missing = [
        f"{name} on the {title}"
        for title, (_, names) in problems().items()
        for name in names
        if name not in every.get(title, {"methods": {}})["methods"]
    ]
    if missing:
        lines += [f"Not measured yet: {'; '.join(missing)}.", ""]
    lines += on_processors(timed, beside_optax)
    lines += on_accelerators(compiled)
    return "\n".join(lines)


PUBLISHED = {"KL-SOAP": 3040, "Muon": 3250, "PSGD-Kron": 3375, "Shampoo": 4100, "AdamW": 5625}
"""The steps that a GPT of 124 million parameters takes to one loss: modded-nanogpt, track 3, July 2026."""


def published(every: dict[str, Any]) -> list[str]:
    """Whether the published order holds here, said of the language model."""
    of = every.get("language model", {"methods": {}})
    known = [name for name in PUBLISHED if name in of["methods"]]
    found = sorted(known, key=lambda name: np.mean(finals(of["methods"][name])))
    holds = [
        f"{first} before {second}"
        for first, second in itertools.combinations(known, 2)
        if (d := difference(of["methods"][first], of["methods"][second]))[0] < -d[1]
    ]
    fails = [
        f"{second} before {first}"
        for first, second in itertools.combinations(known, 2)
        if (d := difference(of["methods"][first], of["methods"][second]))[0] > d[1]
    ]
    count, pairs = (len(names) * (len(names) - 1) // 2 for names in (known, PUBLISHED))
    steps = [str(each) for each in PUBLISHED.values()]
    return [
        "On a GPT of 124 million parameters, with a batch of half a million tokens, the order by steps to "
        f"one loss is {', '.join(PUBLISHED)} "
        "([modded-nanogpt, track 3](https://github.com/KellerJordan/modded-nanogpt)), with "
        f"{', '.join(steps[:-1])} and {steps[-1]} steps. KL-SOAP is `aj.soap(kl=True)`. "
        f"Here, on the small language model, it is {', '.join(found)} by the "
        f"final value. Of the {pairs} pairs, {count} are measured: {len(holds)} in the published order "
        f"beyond noise ({'; '.join(holds) or 'none'}), {len(fails)} in the reverse order "
        f"({'; '.join(fails) or 'none'}), "
        f"and {count - len(holds) - len(fails)} within noise. "
        + (
            "So the published order holds as far as that tells."
            if not fails
            else "So the published order does not hold here as a whole: the model is thousands of times "
            "smaller, the batch holds 128 characters, and the run is short."
        )
    ]


def busy(measured: dict[str, Any]) -> str:
    """How busy the machine was."""
    before, after = measured["load"]
    return (
        f"{measured['cores']} cores, which {before:g} processes wanted before and {after:g} after"
    )


def on_processors(timed: dict[str, Any] | None, beside_optax: dict[str, Any]) -> list[str]:
    """What a step takes on a CPU, and what a refresh adds, as a section."""
    beside = [
        [title, f"{each['ours']:.3g} {unit}", f"{each['optax']:.3g} {unit}", f"{each['ratio']:.2f}"]
        for title, each in beside_optax.items()
        if isinstance(each, dict) and "ratio" in each
        for unit in ("MB" if title == "temporaries" else "s",)
    ]
    lines = [
        "## On a CPU",
        "",
        f"`aj.muon` and `optax.contrib.muon` on a GPT of {beside_optax['layers']} layers of width "
        f"{beside_optax['width']}, of which both orthogonalize the same matrices: *build* is to trace, "
        f"lower and compile a step. Medians, and the median of the rounds' ratios ({busy(beside_optax)}; "
        f"with jax {beside_optax['versions']['jax']}, optax {beside_optax['versions']['optax']}).",
        "",
        *table(["", "aj.muon", "optax", "ratio"], beside),
    ]
    if timed is None:
        return lines
    rows = [
        [
            name, f"{each['temporaries'] / 1e6:.1f} MB", f"{each['state'] / 1e6:.1f} MB",
            f"{1e3 * each['processor']['median']:.0f} ms",
            *(
                f"{each[clock][key] / each[clock]['median']:.2f}"
                for clock in ("processor", "wall")
                for key in ("mean", "max")
            ),
        ]
        for name, each in timed["methods"].items()
    ]  # fmt: skip
    titles = [
        "method", "temporaries", "state", "median", "mean", "maximum", "mean, wall", "maximum, wall",
    ]  # fmt: skip
    return [
        *lines,
        f"A step of {timed['layers']} layers of a GPT of width {timed['width']}, factors refreshed every "
        f"{timed['period']} steps, over {timed['steps']} steps after the first {timed['period']}. Most "
        "steps refresh nothing, and the median is one of these; mean and maximum, those with a refresh in "
        "them, are multiples of it. *Spread* refreshes some arrays in each step. By processors' time and, "
        f"in the last columns, by the clock on the wall ({busy(timed)}), with "
        f"OPENBLAS_NUM_THREADS={timed['openblas_threads']}. Where others want the cores, several threads "
        "of LAPACK wait for each other, and work while they wait: a refresh then takes many times as long.",
        "",
        *table(titles, rows),
    ]


def pieces(target: str, compiled: dict[str, Any]) -> str:
    """Why it takes long to compile a matrix method for a target: what each piece of it takes alone."""
    said = [
        f"For one matrix of {each['size']} rows and columns alone, the compiler for it takes "
        + ", ".join(f"{seconds:.0f} s for {name}" for name, seconds in each["seconds"].items())
        + ", and a layer has eight such factors."
        for each in compiled.get("alone", ())
        if each["target"] == target
    ]
    return " ".join(said)


WIDTHS = {"layer": "768", "thin": "256"}


def on_accelerators(compiled: dict[str, Any]) -> list[str]:
    """What compilers make of a step, as a section."""
    lines = [
        "## On accelerators",
        "",
        "What compilers for accelerators make of an update of one layer of a GPT, of width 768 or 256: "
        "compiled ahead of time, not run. Bytes are per parameter, and the floor is to read and write "
        "everything once; FLOP are counted before optimization, those of eigenvalues and triangular "
        "solves left out, and those of a refresh as if it were in each step. Of a branch, what goes in "
        "and comes out counts as traffic, though most of it stays where it is, and what is moved "
        "inside does not. "
        f"{sum(each['float64'] for each in compiled['figures'])} arrays are of float64, and the host is "
        f"called {sum(each['host_calls'] for each in compiled['figures'])} times.",
        "",
    ]
    rows = [
        [
            each["optimizer"], each["target"] + ("*" if each.get("options") else ""),
            WIDTHS[each["tree"]], f"{each['temporaries']:.1f}",
            f"{each['bytes_per_parameter']:.0f}", f"{each['floor']:.0f}", f"{each['flop']:,.0f}",
            str(each["kernels"]), f"{each['compile_seconds']:.0f} s",
        ]
        for each in compiled["figures"]
    ]  # fmt: skip
    titles = [
        "optimizer",
        "target",
        "width",
        "temporaries",
        "traffic",
        "floor",
        "FLOP",
        "kernels",
        "compiled in",
    ]
    said = ", ".join(f"{name} {version}" for name, version in compiled["versions"].items())
    lines += [*table(titles, rows), f"With {said}.", ""]
    if options := {" ".join(each.get("options", ())) for each in compiled["figures"]} - {""}:
        lines += [f"\\* without XLA's fetching ahead: `{'`, `'.join(options)}` is 0.", ""]
    targets = {each["target"] for each in compiled["figures"]}
    optimizers = {each["optimizer"] for each in compiled["figures"]}
    known = {(each["optimizer"], each["target"]) for each in compiled["figures"]}
    for target in sorted(targets):
        if missing := sorted(name for name in optimizers if (name, target) not in known):
            lines += [
                f"Not compiled yet for {target}: {', '.join(missing)}. " + pieces(target, compiled),
                "",
            ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--page", action="store_true", help="write the page, run nothing")
    parser.add_argument("--only", nargs="+", default=[], help="problems to run")
    parser.add_argument("--methods", nargs="+", default=[], help="methods to run")
    arguments = parser.parse_args()
    for title, (problem, names) in problems().items() if not arguments.page else ():
        if arguments.only and title not in arguments.only:
            continue
        for name in names:
            is_asked = not arguments.methods or name in arguments.methods
            if not is_asked or not hasattr(aj, (METHODS | CHANGES)[name][0]):
                continue
            if name in results().get(title, {}).get("methods", ()):
                continue
            found = measured(problem, name)
            every = results()  # Another process may have written others.
            of_problem = every.setdefault(
                title, {"steps": problem.steps, "measure": problem.measure, "methods": {}}
            )
            of_problem["methods"][name] = found
            RESULTS.write_text(json.dumps(every) + "\n")
            final = np.mean([curve[-1] for curve in found["curves"]])
            print(f"{title}: {name}: {final:.5g}, {found['seconds']} s", flush=True)
    if arguments.page:
        PAGE.write_text(page(results(), *figures()), encoding="utf-8")
        picture(results()).savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    main()
