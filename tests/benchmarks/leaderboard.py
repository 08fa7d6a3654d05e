"""Which optimizer to take: all of them at equal budgets, the page "Which optimizer" of the site.

    python tests/benchmarks/leaderboard.py                    # 3 hours; goes on where it was stopped
    python tests/benchmarks/leaderboard.py --minutes 20       # a piece of it
    python tests/benchmarks/leaderboard.py --quick            # 10 minutes: a small table, written nowhere
    python tests/benchmarks/leaderboard.py --page             # writes the page from the JSON alone

Every optimizer of the library runs on the cheap problems, and the twelve that people ask for on all. Each
has the same number of learning rates, from four decades around those of its kind, in each of five studies
(`aj.compare`); what has no learning rate runs as it is. Rates fall linearly to zero, but where the method
says that they do not. The best are by the final value; steps are counted to the problem's own target.
`leaderboard.json` is written after each optimizer on each problem.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# A sweep has its own threads: those of OpenBLAS would wait for each other, busily.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # Read when SciPy is imported.

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import adaptive_jax as aj
from adaptive_jax.rules._factory import CATALOGUE

RESULTS = Path(__file__).with_suffix(".json")
DOCS = Path(__file__).parents[2] / ".docs"
PAGE, PICTURE = DOCS / "which_optimizer.md", DOCS / "_static" / "leaderboard.png"
FULL = {"studies": 5, "budget": 12, "tuning_seeds": 1, "seeds": 10}
QUICK = {"studies": 2, "budget": 4, "tuning_seeds": 1, "seeds": 3}

ASKED_FOR = (
    "sgd, momentum", "adamw", "nadamw", "lion", "adafactor", "ademamix", "muon", "shampoo", "soap",
    "psgd_kron", "schedule_free_adamw", "prodigy",
)  # fmt: skip
"""The twelve that run on all problems."""

LEFT_OUT = {
    "sophia": "needs a diagonal of the Hessian, which `aj.compare` does not estimate",
    "adahessian": "needs a diagonal of the Hessian, which `aj.compare` does not estimate",
}

# Four decades, in which a paper's own learning rate lies; (1e-4, 1) where nothing is said.
RANGES = {
    "sgd, momentum": (1e-3, 10), "sgd": (1e-3, 10), "optimistic_gradient_descent": (1e-3, 10),
    "lars": (1e-2, 100), "ftrl": (1e-3, 10), "adagrad": (1e-3, 10), "fromage": (1e-4, 1),
    "lion": (1e-5, 0.1), "sign_sgd": (1e-5, 0.1), "signum": (1e-5, 0.1), "rprop": (1e-5, 0.1),
    "sm3": (1e-3, 10), "muon": (1e-4, 1), "schedule_free_sgd": (1e-2, 100),
}  # fmt: skip
FREE = (
    "cocob",
    "dog",
    "l_dog",
    "dowg",
    "prodigy",
    "dadapt_adamw",
    "adadelta",
    "polyak_sgd",
    "sps",
    "momo",
)
"""What runs as it is, its learning rate a factor of 1."""
CONSTANT = ("rprop", "schedule_free_sgd", "schedule_free_adamw", "sgd_hd", "adam_hd", "momo_adam")
"""What has a learning rate that does not fall: the method has it so, or keeps it in its state."""
SETTINGS: dict[str, dict[str, Any]] = {
    "muon": {"scale": "rms"},
    "polyak_sgd": {"max_learning_rate": 1.0},
}


def names() -> list[str]:
    """All optimizers, one of them in two forms."""
    every = [name for name, each in CATALOGUE.items() if each.whole and name not in LEFT_OUT]
    return ["sgd, momentum", *every]


def entry(name: str, steps: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function that makes an optimizer, and its search space."""
    function, settings = (
        (aj.sgd, {"momentum": 0.9})
        if name == "sgd, momentum"
        else (getattr(aj, name), SETTINGS.get(name, {}))
    )
    parameters = CATALOGUE["sgd" if name == "sgd, momentum" else name].parameters
    if "weight_decay" in parameters:
        settings = {**settings, "weight_decay": 0.0}
    if name in ("dog", "l_dog", "dowg"):

        def averaged() -> Any:
            return aj.chain(function(**settings), aj.polynomial_average())

        return averaged, {}
    if name in FREE:
        return lambda: function(**settings), {}

    def make(learning_rate: Any) -> Any:
        rate = learning_rate
        if name not in CONSTANT:
            rate = aj.schedules.linear_schedule(rate, 0.0, steps)
        return function(rate, **settings)

    return make, {"learning_rate": aj.LogUniform(*RANGES.get(name, (1e-4, 1.0)))}


def problems() -> dict[str, aj.problems.Problem]:
    """The problems by their names, from the cheapest to the dearest."""
    every = [
        aj.problems.quadratic(noise=0.1),
        aj.problems.matrix_regression(noise=0.03),
        aj.problems.logistic_regression(),
        aj.problems.digits(),
        aj.problems.autoencoder(),
        aj.problems.policy_gradient(),
        aj.problems.convolutional_network(),
        aj.problems.residual_network(),
        aj.problems.language_model(layers=1, width=32, length=32, batch=8),
    ]
    return {each.name: each for each in every}


CHEAP = 4
"""How many of these are for all optimizers."""


def pieces(chosen: list[str] | None = None) -> Iterator[tuple[str, str]]:
    """(problem, optimizer), in the order in which they are run: what tells most comes first."""
    every = [*problems()]
    for problem in every[:CHEAP]:
        yield from ((problem, name) for name in chosen or ASKED_FOR)
    if chosen is None:
        for problem in every[CHEAP:]:
            yield from ((problem, name) for name in ASKED_FOR)
        for problem in every[:CHEAP]:
            yield from ((problem, name) for name in names() if name not in ASKED_FOR)


def numbers(values: Any) -> Any:
    """Arrays as lists of numbers with four digits; what is not finite as a string."""
    if np.ndim(values):
        return [numbers(each) for each in values]
    return float(f"{values:.4g}") if np.isfinite(values) else str(float(values))


def measured(problem: aj.problems.Problem, name: str, settings: dict[str, int]) -> dict[str, Any]:
    """One optimizer on one problem: what was tried, and the runs of the best."""
    start = time.process_time()
    options = {"tune_for": "final", "progress": False}
    found = aj.compare({name: entry(name, problem.steps)}, problem, **options, **settings)
    finalist = found.finalists[problem.name][name]
    tried = [
        {
            "rates": numbers(each.settings.get("learning_rate", [])),
            "finals": numbers(np.median(each.objective, axis=1)),
        }
        for each in finalist.tunings
    ]
    return {
        "finals": numbers(finalist.finals),
        "steps": numbers(finalist.steps_to_target),
        "rates": numbers([each.get("learning_rate", np.nan) for each in finalist.settings]),
        "tried": tried,
        "seconds": round(time.process_time() - start, 1),
    }


def run(settings: dict[str, int], results: dict[str, Any], minutes: float, save: bool) -> None:
    """Everything that is not there yet, until the time is over."""
    end = time.monotonic() + 60 * minutes
    every = problems()
    for name, optimizer in pieces(results.get("optimizers")):
        if time.monotonic() > end:
            print("The time is over; the next call goes on here.")
            break
        problem = every[name]
        facts = {"measure": problem.measure, "target": problem.target, "steps": problem.steps}
        found = results.setdefault("problems", {}).setdefault(name, {**facts, "runs": {}})
        if optimizer in found["runs"]:
            continue
        found["runs"][optimizer] = measured(problem, optimizer, settings)
        taken = found["runs"][optimizer]["seconds"]
        print(f"{name}: {optimizer}, {taken:.0f} s", flush=True)
        if save:
            RESULTS.write_text(json.dumps(results) + "\n")


# What follows reads the results alone.


def as_array(values: Any) -> np.ndarray:
    """Numbers that are to be low; infinite where a run diverged."""
    found = np.array(values, dtype=np.float64)
    return np.where(np.isnan(found), np.inf, found)


def by_study(found: dict[str, Any], of: str = "finals") -> np.ndarray:
    """The median of the runs of each study; infinite for what diverged or never got there."""
    return np.median(as_array(found[of]), axis=1)


def ranks(problem: dict[str, Any], among: list[str]) -> np.ndarray:
    """Optimizers x studies: the rank by the final value, equal ones sharing theirs."""
    values = np.stack([by_study(problem["runs"][name]) for name in among])
    less = (values[:, None] > values[None]).sum(1)
    same = (values[:, None] == values[None]).sum(1)
    return less + (same + 1) / 2


def interval(values: np.ndarray) -> tuple[float, float]:
    """The mean of the studies, and half of Student's 95 % interval of it."""
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(half)


def standing(
    results: dict[str, Any], among: list[str], on: list[str]
) -> dict[str, tuple[float, float]]:
    """The mean rank over the problems, with its interval over the studies, the lowest first."""
    every = np.mean([ranks(results["problems"][name], among) for name in on], axis=0)
    found = {name: interval(row) for name, row in zip(among, every, strict=True)}
    return dict(sorted(found.items(), key=lambda item: item[1][0]))


def complete(results: dict[str, Any], among: list[str]) -> list[str]:
    """The problems on which all of these have been run."""
    return [
        name
        for name, each in results["problems"].items()
        if all(optimizer in each.get("runs", {}) for optimizer in among)
    ]


def decades(found: dict[str, Any], target: float, name: str) -> float | None:
    """How many decades of learning rates end as low as the target: the share of those drawn, times four."""
    if not found["tried"][0]["rates"]:
        return None
    finals = as_array([each["finals"] for each in found["tried"]])
    low, high = RANGES.get(name, (1e-4, 1.0))
    return float(np.mean(finals <= target) * np.log10(high / low))


def worth_of_tuning(found: dict[str, Any]) -> np.ndarray:
    """The lowest final value of the first 1, 2, … settings, the mean of the studies."""
    finals = as_array([each["finals"] for each in found["tried"]])
    return np.minimum.accumulate(finals, axis=1).mean(0)


def bytes_of(name: str) -> float:
    """The state of an optimizer, in bytes per parameter of a (1024, 1024) matrix."""
    factory, space = entry(name, 1)
    tx = factory(**dict.fromkeys(space, 0.1))
    params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    return aj.state_bytes(tx, params).per_parameter


def table(results: dict[str, Any], among: list[str], on: list[str]) -> list[str]:
    """A row for each optimizer: its rank, its final value and steps on each problem, rates, memory."""
    lines = [
        "| optimizer | mean rank | " + " | ".join(on) + " | decades of rates | bytes |",
        "| --- | --- | " + " | ".join("---" for _ in on) + " | --- | --- |",
    ]
    for name, (middle, half) in standing(results, among, on).items():
        cells = [
            f"`{name}`",
            f"{middle:.1f} ± {half:.1f}" if np.isfinite(half) else f"{middle:.1f}",
        ]
        widths = []
        for problem in on:
            each = results["problems"][problem]
            found = each["runs"][name]
            final, steps = np.median(by_study(found)), np.median(by_study(found, "steps"))
            text = f"{final:.3g}" if np.isfinite(final) else "diverged"
            cells.append(f"{text} ({steps:.0f})" if np.isfinite(steps) else f"{text} (–)")
            widths.append(decades(found, each["target"], name))
        known = [width for width in widths if width is not None]
        cells.append(f"{np.mean(known):.1f}" if known else "none to set")
        cells.append(f"{bytes_of(name):.2g}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(results: dict[str, Any], among: list[str], on: list[str]) -> Any:
    """Ranks with intervals; what tuning is worth; rank against memory."""
    import matplotlib.pyplot as plt

    found = standing(results, among, on)
    figure, axes = plt.subplots(1, 3, figsize=(15, 1.5 + 0.35 * len(among)), layout="constrained")
    places = np.arange(len(found))[::-1]
    middles, halves = np.array(list(found.values())).T
    axes[0].errorbar(middles, places, xerr=np.nan_to_num(halves), fmt="o", color="black", capsize=3)
    axes[0].set_yticks(places, list(found))
    axes[0].set(xlabel="mean rank by the final value, lower is better", title="ranks")
    axes[0].set_xlim(0, len(found) + 1)
    for name in [
        name for name in found if results["problems"][on[0]]["runs"][name]["tried"][0]["rates"]
    ][:6]:
        gains = [worth_of_tuning(results["problems"][problem]["runs"][name]) for problem in on]
        gains = [each / each[-1] for each in gains if np.isfinite(each).all() and each[-1] > 0]
        if gains:
            axes[1].plot(
                1 + np.arange(len(gains[0])), np.exp(np.mean(np.log(gains), 0)), label=name
            )
    axes[1].set(
        xlabel="learning rates tried", ylabel="final value over that of all", title="tuning"
    )
    axes[1].set_yscale("log")
    axes[1].legend(fontsize=8)
    for name, (middle, _) in found.items():
        axes[2].plot(bytes_of(name), middle, "o", color="black")
        axes[2].annotate(
            name, (bytes_of(name), middle), xytext=(4, 3), textcoords="offset points", fontsize=8
        )
    axes[2].set(xlabel="state, bytes per parameter", ylabel="mean rank", title="memory")
    axes[2].invert_yaxis()
    axes[2].set_xlim(-1, 1.25 * max(map(bytes_of, found)))
    return figure


def page(results: dict[str, Any]) -> str:
    """The page, from the results alone."""
    asked = list(ASKED_FOR)
    on = complete(results, asked)
    settings = results["settings"]
    every = list(problems())
    intro = f"""Optimizers at equal budgets: on each problem, in each of {settings["studies"]} studies,
{settings["budget"]} learning rates drawn from four decades, and {settings["seeds"]} other
seeds of the best. Learning rates fall linearly to zero, but where a method has it
otherwise; there is no weight decay; all else is the default, with Muon's scale that of
Adam. The problems are small: what they say of large models is little. [How to
compare](comparing.md) says what the intervals are worth: they are over the studies, each
with other learning rates and other seeds. Ranks that are closer than their intervals are
not told apart. What has no learning rate runs as it is, at a constant factor: Prodigy does better with
a falling one, as [less to tune](less_to_tune.md) has it."""
    columns = """The final value, the median of the studies, and in brackets the steps till a run stays
at or below the problem's own target. *Decades of rates*: how wide the range of learning
rates is that end there, of the four decades that were drawn from, on average over the
problems. Bytes of state are per parameter of a square matrix."""
    caption = """Left: mean ranks with their intervals. Middle: the final value of the best of so many
learning rates, over that of the best of all, the mean of problems and studies. Right: mean
rank against memory."""
    lines = [
        "# Which optimizer",
        "",
        "<!-- Written by tests/benchmarks/leaderboard.py --page -->",
        "",
        intro,
        "",
        "## The twelve that people ask for",
        "",
        columns,
        "",
        *table(results, asked, on),
        "",
        "![Ranks, tuning and memory](_static/leaderboard.png)",
        "",
        caption,
        "",
    ]
    cheap = every[:CHEAP]
    rest = [
        name
        for name in names()
        if all(name in results["problems"].get(each, {}).get("runs", {}) for each in cheap)
    ]
    if len(rest) > len(asked):
        lines += [
            "## Every optimizer, on the cheap problems",
            "",
            *table(results, rest, cheap),
            "",
        ]
    lines += [
        "Left out: " + "; ".join(f"`{name}`, which {why}" for name, why in LEFT_OUT.items()) + ".",
        "",
    ]
    everything = list(pieces())
    done = sum(
        name in results["problems"].get(problem, {}).get("runs", {}) for problem, name in everything
    )
    if done < len(everything):
        lines += [f"Run so far: {done} of {len(everything)} pairs of optimizer and problem.", ""]
    return "\n".join(lines)


def results() -> dict[str, Any]:
    """What is written already."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def write(results: dict[str, Any]) -> None:
    """Writes the page and its picture."""
    asked = list(ASKED_FOR)
    PAGE.write_text(page(results))
    figure = draw(results, asked, complete(results, asked))
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small table, written nowhere")
    parser.add_argument("--page", action="store_true", help="write the page from the JSON alone")
    parser.add_argument("--minutes", type=float, default=np.inf, help="stop after so many")
    options = parser.parse_args()
    if options.page:
        write(results())
        return
    if options.quick:
        quick: dict[str, Any] = {"settings": QUICK, "optimizers": list(ASKED_FOR)}
        run(QUICK, quick, options.minutes, save=False)
        on = complete(quick, list(ASKED_FOR))
        print("\n".join(table(quick, list(ASKED_FOR), on)) if on else "No problem is complete.")
        return
    found = results() or {"settings": FULL}
    if found["settings"] != FULL:
        raise SystemExit(
            f"{RESULTS.name} was made with {found['settings']}: move it away to start anew."
        )
    run(FULL, found, options.minutes, save=True)
    if complete(found, list(ASKED_FOR)):
        write(found)


if __name__ == "__main__":
    main()
