"""Which optimizer to take: all of them at equal budgets, the page "Which optimizer" of the site.

    python tests/benchmarks/leaderboard.py                    # 3 hours of a core; goes on where it stopped
    python tests/benchmarks/leaderboard.py --minutes 20       # a piece of it
    python tests/benchmarks/leaderboard.py --quick            # 10 minutes: a small table, written nowhere
    python tests/benchmarks/leaderboard.py --page             # writes the page from the JSON alone

Every optimizer of the library runs on the cheap problems, and the twelve that people ask for on all. Each
has the same number of learning rates, from five decades around those of its kind, in each of five studies
(`aj.compare`); what has no learning rate has one setting. Rates fall linearly to zero, but where the method
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
from adaptive_jax.training.search.intervals import holm

RESULTS = Path(__file__).with_suffix(".json")
DOCS = Path(__file__).parents[2] / ".docs"
PAGE, PICTURE = DOCS / "which_optimizer.md", DOCS / "_static" / "leaderboard.png"
PICTURE_OF_RATES = DOCS / "_static" / "leaderboard_rates.png"
FULL = {"studies": 5, "budget": 15, "tuning_seeds": 1, "seeds": 10}
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

DECADES = 5
LOWEST = {
    "sgd, momentum": 1e-3, "sgd": 1e-3, "optimistic_gradient_descent": 1e-3, "ftrl": 1e-3, "adagrad": 1e-3,
    "sm3": 1e-3, "lars": 1e-2, "schedule_free_sgd": 1e-2, "lion": 1e-5, "sign_sgd": 1e-5, "signum": 1e-5,
    "rprop": 1e-5, "simplified_ademamix": 1e-7,
}  # fmt: skip
"""The learning rates are as many decades from here on, with the paper's own inside; 1e-4 for the rest."""
WITH_RATES = ("sgd, momentum", "adamw", "lion", "muon", "soap", "schedule_free_adamw")
"""Whose learning rates the second picture shows."""
FREE = (
    "cocob", "dog", "l_dog", "dowg", "prodigy", "dadapt_adamw", "adadelta", "polyak_sgd", "sps", "momo",
)  # fmt: skip
"""What has no learning rate to set."""
FALLING = ("prodigy", "dadapt_adamw")
"""Those of them whose factor falls from 1 to 0, as their authors advise; that of the rest stays 1."""
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
    if name in FALLING:
        return lambda: function(aj.schedules.linear_schedule(1.0, 0.0, steps), **settings), {}
    if name in FREE:
        return lambda: function(**settings), {}

    def make(learning_rate: Any) -> Any:
        rate = learning_rate
        if name not in CONSTANT:
            rate = aj.schedules.linear_schedule(rate, 0.0, steps)
        return function(rate, **settings)

    lowest = LOWEST.get(name, 1e-4)
    return make, {"learning_rate": aj.LogUniform(lowest, lowest * 10**DECADES)}


def problems() -> dict[str, aj.problems.Problem]:
    """The problems by their names, from the cheapest to the dearest."""
    every = [
        aj.problems.quadratic(noise=0.1),
        aj.problems.matrix_regression(noise=0.03),
        aj.problems.logistic_regression(),
        aj.problems.digits(),
        aj.problems.autoencoder(),
        aj.problems.policy_gradient(),
        aj.problems.language_model(layers=1, width=32, length=32, batch=8),
        aj.problems.convolutional_network(),
        aj.problems.residual_network(channels=4, blocks=2, batch=16),
    ]
    return {each.name: each for each in every}


CHEAP = 4
"""How many of these are for all optimizers."""
EVALUATIONS = {"residual network": 20}
"""How often it is evaluated, where 100 times would take longer than the training."""


def pieces(chosen: list[str] | None = None) -> Iterator[tuple[str, str]]:
    """(problem, optimizer), in the order in which they are run: what tells most comes first."""
    every = [*problems()]
    cheap, dear = every[:CHEAP], every[CHEAP:]
    yield from ((problem, name) for problem in cheap for name in chosen or ASKED_FOR)
    if chosen is None:
        rest = [name for name in names() if name not in ASKED_FOR]
        yield from ((problem, name) for problem in dear[:2] for name in ASKED_FOR)
        yield from ((problem, name) for problem in cheap for name in rest)
        yield from ((problem, name) for problem in dear[2:] for name in ASKED_FOR)


def numbers(values: Any) -> Any:
    """Arrays as lists of numbers with four digits; what is not finite as a string."""
    if np.ndim(values):
        return [numbers(each) for each in values]
    return float(f"{values:.4g}") if np.isfinite(values) else str(float(values))


def measured(problem: aj.problems.Problem, name: str, settings: dict[str, int]) -> dict[str, Any]:
    """One optimizer on one problem: what was tried, and the runs of the best."""
    start = time.process_time()
    evaluations = EVALUATIONS.get(problem.name, 100)
    options = {"tune_for": "final", "evaluations": evaluations, "progress": False}
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
        jax.clear_caches()  # Hundreds of programs take more pieces of memory than Linux allows.
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


def as_good_as_the_first(results: dict[str, Any], among: list[str], on: list[str]) -> list[str]:
    """Whose mean rank is not told apart from the lowest one: paired by study, at 5 % for all together."""
    every = np.mean([ranks(results["problems"][name], among) for name in on], axis=0)
    first = np.argmin(every.mean(1))
    others = [place for place in range(len(among)) if place != first]
    p = [stats.ttest_rel(every[place], every[first]).pvalue for place in others]
    apart = holm(np.array(p)) < 0.05
    return [among[place] for place, known in zip(others, apart, strict=True) if not known]


def complete(results: dict[str, Any], among: list[str]) -> list[str]:
    """The problems on which all of these have been run."""
    return [
        name
        for name, each in results["problems"].items()
        if all(optimizer in each.get("runs", {}) for optimizer in among)
    ]


def decades(found: dict[str, Any], target: float) -> float | None:
    """How many decades of learning rates end as low as the target: by the share of those drawn."""
    if not found["tried"][0]["rates"]:
        return None
    finals = as_array([each["finals"] for each in found["tried"]])
    return float(np.mean(finals <= target) * DECADES)


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
    runs = {problem: results["problems"][problem]["runs"] for problem in on}
    reached = {
        problem
        for problem, each in runs.items()
        if np.isfinite([by_study(each[name], "steps") for name in among]).any()
    }
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
            if problem in reached:
                widths.append(decades(found, each["target"]))
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


def by_rate(found: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The learning rates that were drawn, over the best of them, and what the studies ended at with each.

    The first is the geometric mean of the lowest of each study, and so on.
    """
    rates = np.array([each["rates"] for each in found["tried"]])
    finals = as_array([each["finals"] for each in found["tried"]])
    order = np.argsort(rates, axis=1)
    rates = np.exp(np.log(np.take_along_axis(rates, order, 1)).mean(0))
    finals = np.take_along_axis(finals, order, 1).T
    return rates / rates[np.argmin(np.median(finals, axis=1))], finals


def at_an_end(results: dict[str, Any], among: list[str], on: list[str]) -> list[str]:
    """Where the best learning rate is the lowest or the highest of those drawn, in the middle study."""
    return [
        f"`{name}` ({problem})"
        for problem in on
        for name in among
        if (found := results["problems"][problem]["runs"][name])["tried"][0]["rates"]
        and 1.0 in by_rate(found)[0][[0, -1]]
    ]


def draw_rates(results: dict[str, Any], on: list[str]) -> Any:
    """The final value against the learning rate over the best one, a panel for each problem."""
    import matplotlib.pyplot as plt

    columns = min(3, len(on))
    shape = -(-len(on) // columns), columns
    figure, axes = plt.subplots(
        *shape, figsize=(5 * shape[1], 3.6 * shape[0]), layout="constrained", squeeze=False
    )
    for ax, problem in zip(axes.flat, on, strict=False):
        best = np.inf
        for name in WITH_RATES:
            rates, finals = by_rate(results["problems"][problem]["runs"][name])
            aj.plotting.sensitivity(rates, finals, label=name, ax=ax)
            best = min(best, np.median(finals, axis=1).min())
        measure = results["problems"][problem]["measure"]
        ax.set(
            title=problem, xlabel="learning rate over the best", ylabel=measure, xlim=(1e-3, 1e3)
        )
        if best > 0:
            ax.set(yscale="log", ylim=(best / 1.2, 30 * best))
        ax.get_legend().remove()
    for ax in axes.flat[len(on) :]:
        ax.axis("off")
    handles, _ = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, WITH_RATES, loc="outside lower center", ncols=len(WITH_RATES))
    return figure


def the_first(results: dict[str, Any], among: list[str], on: list[str]) -> list[str]:
    """What the ranks say and what they do not, as a paragraph."""
    first = next(iter(standing(results, among, on)))
    equal = as_good_as_the_first(results, among, on)
    if not equal:
        return [f"`{first}` is first by more than its noise.", ""]
    named = ", ".join(f"`{name}`" for name in equal)
    return [
        f"`{first}` is not told apart from {named}: paired by study, by Student's t with Holm's "
        "correction, at 5 %.",
        "",
    ]


def the_ends(ends: list[str]) -> list[str]:
    """Where a range was not wide enough, as a paragraph."""
    if not ends:
        return []
    text = (
        "The best learning rate is at an end of its range, so that more may be had beyond it, for "
    )
    return [f"{text}{', '.join(ends)}.", ""]


NOTES = [
    "`fromage` divides the parameters by √(1 + η²) in each step, and the quadratic has its minimum at "
    "0: there it shrinks what it starts with, whatever the gradient.",
    "",
]


def page(results: dict[str, Any]) -> str:
    """The page, from the results alone."""
    asked = list(ASKED_FOR)
    on = complete(results, asked)
    settings = results["settings"]
    every = list(problems())
    intro = f"""Optimizers at equal budgets: on each problem, in each of {settings["studies"]} studies,
{settings["budget"]} learning rates drawn from five decades, and {settings["seeds"]} other
seeds of the best. Learning rates fall linearly to zero, but where a method has it
otherwise; there is no weight decay; all else is the default, with Muon's scale that of
Adam. The problems are small: what they say of large models is little. [How to
compare](comparing.md) says what the intervals are worth: they are over the studies, each
with other learning rates and other seeds. Ranks that are closer than their intervals are
not told apart. What has no learning rate runs once, where the others choose the best of
{settings["budget"]}: [less to tune](less_to_tune.md) says what that is worth."""
    columns = """The final value, the median of the studies, and in brackets the steps till a run stays
at or below the problem's own target. *Decades of rates*: how wide the range of learning
rates is that end there, of the five decades that were drawn from, on average over the
problems where any gets there. Bytes of state are per parameter of a square matrix. The
language model (a layer of width 32, 256 characters a step) and the residual network (two
blocks of four channels, 16 images a step) are smaller than those of `aj.problems`, for whose
sizes their targets are."""
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
        *the_first(results, asked, on),
        "![Ranks, tuning and memory](_static/leaderboard.png)",
        "",
        caption,
        "",
        "![The final value by the learning rate](_static/leaderboard_rates.png)",
        "",
        """The final value against the learning rate, over the best one: medians of the studies, from the
lowest to the highest. What is narrow has to be tuned well; a cross at the top diverged.""",
        "",
    ]
    lines += the_ends(at_an_end(results, asked, on))
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
            *the_first(results, rest, cheap),
            *the_ends(at_an_end(results, [name for name in rest if name not in asked], cheap)),
            *NOTES,
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
    on = complete(results, asked)
    PAGE.write_text(page(results))
    draw(results, asked, on).savefig(PICTURE, dpi=110)
    draw_rates(results, on).savefig(PICTURE_OF_RATES, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small table, written nowhere")
    parser.add_argument("--page", action="store_true", help="write the page from the JSON alone")
    parser.add_argument("--minutes", type=float, help="stop after so many; 10 with --quick")
    options = parser.parse_args()
    if options.page:
        write(results())
        return
    if options.quick:
        quick: dict[str, Any] = {"settings": QUICK, "optimizers": list(ASKED_FOR)}
        run(QUICK, quick, options.minutes or 10, save=False)
        on = complete(quick, list(ASKED_FOR))
        print("\n".join(table(quick, list(ASKED_FOR), on)) if on else "No problem is complete.")
        return
    found = results() or {"settings": FULL}
    if found["settings"] != FULL:
        raise SystemExit(
            f"{RESULTS.name} was made with {found['settings']}: move it away to start anew."
        )
    run(FULL, found, options.minutes or np.inf, save=True)
    if complete(found, list(ASKED_FOR)):
        write(found)


if __name__ == "__main__":
    main()
