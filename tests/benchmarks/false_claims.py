"""How often `aj.compare` claims what is not so: the page "How to compare optimizers" of the site.

    python tests/benchmarks/false_claims.py              # simulates, and runs Adam against Adam
    python tests/benchmarks/false_claims.py --page       # writes the page's tables and figure from the JSON
    python tests/benchmarks/false_claims.py --quick      # a small run, elsewhere

In worlds whose truth is known, numbers are drawn, and the library's own functions judge them: how often
an interval holds the truth, how often an optimizer differs from itself, and how often a difference that is
there is found. Then Adam is really trained against Adam, with its axes in the other order. Results are
written to `false_claims.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import adaptive_jax as aj
from adaptive_jax.training.search.differences import final_difference, steps_ratio
from adaptive_jax.training.search.intervals import medians, order_statistic, over_studies

RESULTS = Path(__file__).with_suffix(".json")
DOCS = Path(__file__).parents[2] / ".docs"
PAGE, PICTURE = DOCS / "comparing.md", DOCS / "_static" / "adam_against_adam.png"
SEEDS, BETWEEN, LEVEL, LENGTH = 10, 2 / 3, 0.05, 200
"""Runs of a study, the share of the variance that lies between studies, what counts as different, and the
steps of a run of Adam."""
STUDIES = (3, 5, 6, 10, 20)
MARKS = np.linspace(0, 1000, 101)


# Worlds of which the middle is known: a function from a generator and a shape, (…, studies, seeds).


def hierarchical(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers of variance 1, of which so much is common to a study."""
    common = rng.normal(size=(*shape[:-1], 1)) * BETWEEN**0.5
    return common + rng.normal(size=shape) * (1 - BETWEEN) ** 0.5


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return 10 + hierarchical(rng, shape)


def signed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Some of them negative: on no logarithms."""
    return hierarchical(rng, shape)


def lognormal(sigma: float) -> Callable[..., np.ndarray]:
    return lambda rng, shape: np.exp(sigma * hierarchical(rng, shape))


def two_kinds_of_seeds(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Three runs of ten end three times as high."""
    return np.where(rng.random(shape) < 0.3, 3.0, 1.0) * np.exp(0.1 * hierarchical(rng, shape))


def two_kinds_of_studies(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """In three studies of ten tuning finds nothing good, and all ends three times as high."""
    bad = rng.random((*shape[:-1], 1)) < 0.3
    return np.where(bad, 3.0, 1.0) * np.exp(0.1 * hierarchical(rng, shape))


WORLDS: dict[str, Callable[..., np.ndarray]] = {
    "normal": normal,
    "normal around 0": signed,
    "lognormal, σ = 0.5": lognormal(0.5),
    "lognormal, σ = 1": lognormal(1.0),
    "lognormal, σ = 1.5": lognormal(1.5),
    "two kinds of seeds": two_kinds_of_seeds,
    "two kinds of studies": two_kinds_of_studies,
}


def coverage(world: str, studies: int, draws: int, seed: int = 0) -> float:
    """How often the interval holds the median of all studies."""
    rng = np.random.default_rng(seed)
    truth = float(np.median(medians(WORLDS[world](rng, (200_000, SEEDS)))))
    runs = WORLDS[world](rng, (draws, studies, SEEDS))
    found = [over_studies(medians(each), logarithmic=bool((each > 0).all())) for each in runs]
    return float(np.mean([each.low <= truth <= each.high for each in found]))


# A world of tuning: settings of which the best are chosen by the median of three seeds, and run on.


def tuned(
    rng: np.random.Generator, shape: tuple[int, ...], slower: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Steps to the target and final values of the best settings, (…, studies, seeds).

    Sixteen learning rates are tried, and another axis; each costs by its distance from the best, and of
    steps are counted ten.

    slower: how many times as many steps it takes as the first one.
    """
    x, y = rng.uniform(-2, 2, (2, *shape, 16))
    quality = 1.5 * (x - 0.3) ** 2 + 0.5 * (y + 0.5) ** 2
    steps = np.log(150 * slower) + quality
    noise = 0.25 * rng.normal(size=(*shape, 16, 3))
    chosen = np.median(steps[..., None] + noise, axis=-1).argmin(-1)[..., None]
    best = np.take_along_axis(quality, chosen, -1)
    runs = (*shape, SEEDS)
    exact = 150 * slower * np.exp(best + 0.25 * rng.normal(size=runs))
    counted = np.searchsorted(MARKS, exact)
    steps = np.where(exact <= MARKS[-1], MARKS[np.minimum(counted, len(MARKS) - 1)], np.inf)
    return steps, np.exp(-3 + 4 * best + 0.8 * rng.normal(size=runs)) * slower**2


def judged(own: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """p of the steps and of the final values."""
    return np.array(
        [steps_ratio(own[0], other[0], MARKS)[0].p, final_difference(own[1], other[1])[0].p]
    )


def are_apart(own: np.ndarray, other: np.ndarray) -> bool:
    """Whether the intervals of two medians are disjoint."""
    low = order_statistic(len(own))
    assert low is not None
    one, two = np.sort(own), np.sort(other)
    return bool(one[-1 - low] < two[low] or two[-1 - low] < one[low])


def false_claims(studies: int, draws: int, seed: int = 1) -> dict[str, float]:
    """How often an optimizer differs from itself: by p, and by one study's intervals over its seeds."""
    rng = np.random.default_rng(seed)
    own, other = (tuned(rng, (draws, studies)) for _ in range(2))
    p = np.array([judged((own[0][i], own[1][i]), (other[0][i], other[1][i])) for i in range(draws)])
    apart = [
        [are_apart(one[i, 0], two[i, 0]) for i in range(draws)]
        for one, two in zip(own, other, strict=True)
    ]
    return {
        "steps": float(np.mean(p[:, 0] < LEVEL)),
        "final": float(np.mean(p[:, 1] < LEVEL)),
        "one study, steps": float(np.mean(apart[0])),
        "one study, final": float(np.mean(apart[1])),
    }


def power(studies: int, slower: float, draws: int, seed: int = 2) -> dict[str, float]:
    """How often one that is slower is found to be: by the library, by SciPy's paired test on the same
    medians of studies, and where the two intervals of the table do not overlap."""
    rng = np.random.default_rng(seed)
    own, other = tuned(rng, (draws, studies), slower)[0], tuned(rng, (draws, studies))[0]
    library = [steps_ratio(*each, MARKS)[0].p < LEVEL for each in zip(own, other, strict=True)]
    middles = [np.minimum(medians(each), MARKS[-1]) for each in (own, other)]
    plain = stats.ttest_rel(*np.log(middles), axis=1).pvalue < LEVEL
    gap = float(MARKS[1])
    intervals = [
        [over_studies(each, logarithmic=True, least=gap) for each in middle] for middle in middles
    ]
    apart = [one.low > two.high or two.low > one.high for one, two in zip(*intervals, strict=True)]
    return {
        "library": float(np.mean(library)),
        "paired": float(np.mean(plain)),
        "no overlap": float(np.mean(apart)),
    }


# Adam against Adam.


def adam_against_adam(seed: int, tune_for: str, studies: int = 5) -> dict[str, Any]:
    """One comparison: what one study alone says by its seeds, and the ratio over all."""
    space = {
        "learning_rate": aj.LogUniform(1e-5, 10.0),
        "b1": aj.Uniform(0.0, 0.99),
        "b2": aj.Uniform(0.9, 0.999),
    }
    found = aj.compare(
        {"Adam": (aj.adam, space), "Adam again": (aj.adam, dict(reversed(space.items())))},
        aj.problems.quadratic(dimension=50, condition=100.0),
        budget=16,
        studies=studies,
        tune_for=tune_for,
        steps=LENGTH,
        target=1e-3,
        seed=seed,
        progress=False,
    )
    (finalists,) = found.finalists.values()
    pair = [
        (each.steps_to_target if tune_for == "steps" else each.finals)[0]
        for each in finalists.values()
    ]
    low = order_statistic(len(pair[0]))
    assert low is not None
    (row,) = found.differences("Adam").rows
    judged = row.steps if tune_for == "steps" else row.final
    return {
        "one study": [
            [_short(np.sort(each)[low]), _short(np.median(each)), _short(np.sort(each)[-1 - low])]
            for each in pair
        ],
        "ratio": [_short(each) for each in (judged.low, judged.middle, judged.high)],
        "p": _short(judged.p),
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def share_apart(runs: list[dict[str, Any]]) -> float:
    """How often the intervals of one study are disjoint."""
    return float(np.mean([one[0] > two[2] or two[0] > one[2] for one, two in pairs(runs)]))


def pairs(runs: list[dict[str, Any]]) -> list[Any]:
    return [each["one study"] for each in runs]


def share_different(runs: list[dict[str, Any]]) -> float:
    """How often they are different by the paired test over studies."""
    return float(np.mean([each["p"] < LEVEL for each in runs]))


def simulated(draws: int) -> dict[str, Any]:
    return {
        "draws": draws,
        "coverage": {
            world: {str(studies): coverage(world, studies, draws) for studies in STUDIES}
            for world in WORLDS
        },
        "false claims": {str(studies): false_claims(studies, draws) for studies in (3, 5, 10)},
        "power": {
            str(studies): {str(slower): power(studies, slower, draws) for slower in (1.1, 1.2, 1.5)}
            for studies in (5, 10)
        },
    }


# The page: its words stand in it, its tables are written between two marks.


def tables(found: dict[str, Any]) -> str:
    simulation, real = found["simulated"], found["real"]
    steps, finals = real["steps"], real["final"]
    lines = [
        f"Adam against Adam, {len(steps)} comparisons each, really trained: of a comparison of one "
        f"study, with {SEEDS} seeds of each finalist, the two intervals over the seeds are disjoint in "
        f"{share_apart(steps):.0%} (steps) and {share_apart(finals):.0%} (final values). Over five "
        f"studies, `differences` has p below 0.05 in {share_different(steps):.1%} and "
        f"{share_different(finals):.1%}.",
        "",
        f"The same in a simulated world of tuning, {simulation['draws']:,} comparisons each:",
        "",
        "| studies | different, steps | different, final | one study's intervals apart, steps | final |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {studies} | {each['steps']:.1%} | {each['final']:.1%} | "
            f"{each['one study, steps']:.0%} | {each['one study, final']:.0%} |"
            for studies, each in simulation["false claims"].items()
        ),
        "",
        "How often the interval of the table holds the median of all studies:",
        "",
        f"| outcomes | {' | '.join(f'{n} studies' for n in STUDIES)} |",
        f"| --- |{' --- |' * len(STUDIES)}",
        *(
            f"| {world} | {' | '.join(f'{each[str(n)]:.1%}' for n in STUDIES)} |"
            for world, each in simulation["coverage"].items()
        ),
        "",
        "How often an optimizer that needs more steps is found to be slower: by `differences`, by SciPy's "
        "paired test on the same medians, and by intervals that do not overlap:",
        "",
        "| studies | steps | `differences` | paired test | no overlap |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {studies} | × {slower} | {each['library']:.0%} | {each['paired']:.0%} | "
            f"{each['no overlap']:.0%} |"
            for studies, of in simulation["power"].items()
            for slower, each in of.items()
        ),
    ]
    return "\n".join(lines)


BEGIN, END = (
    "<!-- Written by tests/benchmarks/false_claims.py --page -->",
    "<!-- The end of what is written -->",
)


def page(text: str, found: dict[str, Any]) -> str:
    """The page with its tables."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tables(found)}\n\n{END}{rest.partition(END)[2]}"


def picture(found: dict[str, Any], count: int = 40) -> Any:
    """The first comparisons: at the left as one study has them, at the right over five."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    runs = found["real"]["steps"][:count]
    figure = Figure(figsize=(9, 6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    wrong, fine = "#D55E00", "0.45"
    for row, ((one, two), each) in enumerate(zip(pairs(runs), runs, strict=True)):
        apart = one[0] > two[2] or two[0] > one[2]
        for offset, (low, middle, high), marker in ((-0.2, one, "o"), (0.2, two, "s")):
            color = wrong if apart else fine
            low, middle, high = np.minimum([low, middle, high], LENGTH)  # "never" is at the edge.
            left.hlines(row + offset, low, high, color=color, linewidth=1.3)
            left.plot(middle, row + offset, marker, color=color, markersize=3)
        low, middle, high = each["ratio"]
        color = wrong if each["p"] < LEVEL else fine
        right.hlines(row, low, high, color=color, linewidth=1.3)
        right.plot(middle, row, "o", color=color, markersize=3)
    right.axvline(1, color="0.15", linewidth=0.8, zorder=0)
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:g}")
    left.set_ylabel("comparison of Adam with Adam")
    left.set_yticks([])
    left.invert_yaxis()
    left.set_xlim(0, LENGTH)
    left.set_xlabel("steps to the target")
    right.set_xlabel("ratio of steps")
    count_left = sum(one[0] > two[2] or two[0] > one[2] for one, two in pairs(runs))
    count_right = sum(each["p"] < LEVEL for each in runs)
    left.set_title(f"one study, intervals over seeds:\n{count_left} of {len(runs)} apart", size=10)
    right.set_title(f"five studies, paired:\n{count_right} of {len(runs)} different", size=10)
    marks = [
        Line2D([], [], color=fine, label="no difference claimed"),
        Line2D([], [], color=wrong, label="a false claim"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def results(path: Path = RESULTS) -> dict[str, Any]:
    """What is written already."""
    return json.loads(path.read_text()) if path.exists() else {}


def _text(found: dict[str, Any]) -> str:
    """JSON, with a line for each comparison."""
    real = {name: [json.dumps(each) for each in runs] for name, runs in found["real"].items()}
    lines = [
        f'"{name}": [\n' + ",\n".join(runs) + "\n]" if runs else f'"{name}": []'
        for name, runs in real.items()
    ]
    parts = ['"real": {\n' + ",\n".join(lines) + "\n}"]
    if "simulated" in found:
        parts.append('"simulated": ' + json.dumps(found["simulated"], indent=1))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def run(path: Path, draws: int, comparisons: int) -> None:
    """Everything, each comparison written as it comes."""
    found = results(path)
    found.setdefault("real", {"steps": [], "final": []})
    for tune_for, runs in found["real"].items():
        while len(runs) < comparisons:
            runs.append(adam_against_adam(len(runs), tune_for))
            path.write_text(_text(found))
            if len(runs) % 20 == 0:
                print(
                    f"{tune_for}: {len(runs)}, {share_apart(runs):.1%} apart, "
                    f"{share_different(runs):.1%} different",
                    flush=True,
                )
    found["simulated"] = simulated(draws)
    path.write_text(_text(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", action="store_true", help="write the page, run nothing")
    parser.add_argument(
        "--quick", action="store_true", help="a small run with a picture, elsewhere"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        folder = Path(tempfile.mkdtemp(prefix="false_claims_"))
        run(folder / RESULTS.name, 100, 4)
        found = results(folder / RESULTS.name)
        (folder / PAGE.name).write_text(page(f"{BEGIN}{END}\n", found), encoding="utf-8")
        picture(found).savefig(folder / PICTURE.name, dpi=120, metadata={"Software": None})
        print(folder)
        return
    if not arguments.page:
        run(RESULTS, 4000, 200)
    found = results()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    PICTURE.parent.mkdir(exist_ok=True)
    picture(found).savefig(PICTURE, dpi=120, metadata={"Software": None})
    print(f"{PAGE}, {PICTURE}")


if __name__ == "__main__":
    main()
