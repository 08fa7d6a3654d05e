"""The recipes run, learn, and are shorter than the same with optax, whose losses they have."""

import io
import runpy
import tokenize
from pathlib import Path

import jax
import numpy as np
import pytest

import adaptive_jax as aj

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "recipes"
BESIDE_OPTAX = {  # How far losses may be apart: rounding grows with the steps, and with the rate.
    "ema": 1e-2,
    "frozen_backbone": 1e-4,
    "from_optax": 1e-4,
    "gan": 0.1,
    "large_batch": 1e-3,
    "layerwise_rates": 1e-3,
    "lora": 1e-3,
    "meta_learning": 1e-2,
    "mup": 2e-2,
    "policy_gradient": 1e-2,
    "zero": 1e-3,
}
NOT_THE_SAME = ("bfloat16", "pinn")  # optax has no stochastic rounding; L-BFGS stops at rounding.
ALONE = {"low_memory": None, "neural_ode": "diffrax", "svi": "numpyro"}
QUICK = ("frozen_backbone", "large_batch")
PAIRS = [*BESIDE_OPTAX, *NOT_THE_SAME]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a recipe as a script, where promotion is as for users; what it leaves behind."""
    monkeypatch.syspath_prepend(FOLDER)

    def run(name):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            found = runpy.run_path(str(FOLDER / f"{name}.py"))
        assert capsys.readouterr().out
        assert np.all(np.isfinite(found["losses"]))
        return found

    return run


def lines_of_code(name):
    """How many lines have code on them: no docstrings, comments or empty lines."""
    lines, is_new = set(), True
    text = (FOLDER / f"{name}.py").read_text()
    passed = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in passed and not (token.type == tokenize.STRING and is_new):
            lines.update(range(token.start[0], token.end[0] + 1))
        is_new = token.type in passed
    return len(lines) - 1  # The end of the file is a token.


def test_every_recipe_is_tested_and_on_the_page():
    files = {path.stem for path in FOLDER.glob("*.py")} - {"small_model"}
    assert files == {*PAIRS, *(f"{name}_in_optax" for name in PAIRS), *ALONE}
    page = (ROOT / ".docs" / "recipes.md").read_text()
    for name in (*PAIRS, *ALONE):
        lines = f"({lines_of_code(name)} lines"
        if name in PAIRS:
            other = f"{name}_in_optax"
            lines += f"; {lines_of_code(other)} in `examples/recipes/{other}.py`"
        included = f"```{{literalinclude}} ../examples/recipes/{name}.py\n"
        assert page.count(f"{lines}.)\n\n{included}") == 1, name


@pytest.mark.parametrize("name", PAIRS)
def test_it_is_shorter_than_with_optax(name):
    assert lines_of_code(name) < lines_of_code(f"{name}_in_optax")


def test_lines_are_counted_without_what_is_no_code():
    assert lines_of_code("from_optax") == 9


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in BESIDE_OPTAX],
)
def test_it_has_the_losses_of_optax(run, name):
    ours, theirs = run(name), run(f"{name}_in_optax")
    one, other = np.asarray(ours["losses"]), np.asarray(theirs["losses"])
    assert one.shape == other.shape
    np.testing.assert_allclose(one, other, rtol=BESIDE_OPTAX[name])
    CHECKS.get(name, learns)(ours, theirs)


def learns(ours, theirs):
    losses = ours["losses"]
    assert losses[-10:].mean() < 0.4 * losses[:10].mean()


def the_average_is_better(ours, theirs):
    assert ours["losses"] < 0.7 * ours["last"]


def stays_on_the_circle(ours, theirs):
    assert 0.8 < ours["found"].mean() < 1.2
    assert ours["found"].std() < 0.3


def one_rate_is_the_best_at_both_widths(ours, theirs):
    best = ours["losses"].reshape(2, 3).argmin(axis=1)
    assert (best == 1).all()
    assert ours["losses"][3:].min() < ours["losses"][:3].min()


def walks_right(ours, theirs):
    assert ours["losses"][0] < 1 < 11 < ours["losses"][-1]


def holds_an_eighth(ours, theirs):
    learns(ours, theirs)
    whole = aj.state_bytes(aj.adam(1.0), ours["params"]).total
    assert ours["own"] == theirs["own"] < whole / 7


CHECKS = {
    "ema": the_average_is_better,
    "gan": stays_on_the_circle,
    "meta_learning": lambda ours, theirs: None,
    "mup": one_rate_is_the_best_at_both_widths,
    "policy_gradient": walks_right,
    "zero": holds_an_eighth,
}


@pytest.mark.slow
def test_bfloat16_learns_as_float32_in_less(run):
    ours, theirs = run("bfloat16"), run("bfloat16_in_optax")
    learns(ours, theirs)
    assert ours["losses"][-10:].mean() < 1.2 * theirs["losses"][-10:].mean()
    assert ours["nbytes"] < 0.6 * theirs["nbytes"]


@pytest.mark.slow
def test_l_bfgs_behind_adam_solves_the_equation(run):
    for found in (run("pinn"), run("pinn_in_optax")):
        assert found["losses"][-1] < 0.01 * found["losses"][199]
        assert found["error"] < 3e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_it_runs(run, name):
    if ALONE[name] is not None:
        pytest.importorskip(ALONE[name])
    found = run(name)
    if name == "low_memory":
        learns(found, found)
        memory = found["memory"]
        assert memory["int8"].state < 0.27 * memory["float32"].state
    elif name == "neural_ode":
        assert found["losses"][-1] < 0.05 * found["losses"][0]
    else:
        assert found["medians"]["slope"] == pytest.approx(2.0, abs=0.1)
        assert found["medians"]["intercept"] == pytest.approx(-1.0, abs=0.1)
        assert found["medians"]["noise"] == pytest.approx(0.3, abs=0.1)
