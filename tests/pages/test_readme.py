"""The Python of README and documentation runs as it stands, and the README names every wrapper."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from catalogue import WRAPPERS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def run(text, blocks):
    """Runs the Python of a page, one block after the other, and returns its names."""
    found = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(found) == blocks
    names: dict = {}
    for block in found:
        exec(block, names)
    return names


def run_page(name, blocks):
    return run((ROOT / ".docs" / f"{name}.md").read_text(), blocks)


def test_the_readme_runs():
    names = run(README, blocks=5)
    for params in (names["params"], names["state"].params, names["averaged"]):
        np.testing.assert_allclose(params["w"], [1.0, 2.0, 3.0], atol=0.05)
    assert names["step"]._cache_size() == 1
    assert names["history"]["eval_loss"].shape == (10,)
    params, tx = {"w": jnp.ones(3)}, names["signum"]
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -1e-4 * (1 + 0.01), rtol=1e-5)
    assert 1e-3 < names["result"].best()["learning_rate"] < 0.3
    assert names["axes"].get_xlabel()
    plt.close("all")


@pytest.mark.parametrize(
    ("page", "blocks"), {"hyperparameters": 3, "algorithms": 1, "write_your_own": 3}.items()
)
def test_a_page_runs(page, blocks):
    run_page(page, blocks)


def test_the_page_on_memory_runs():
    names = run_page("memory", blocks=1)
    assert names["state"][0].mu["w"].codes.dtype == jnp.int8


def test_the_page_on_training_runs():
    names = run_page("training", blocks=3)
    np.testing.assert_allclose(names["state"].params["w"], [1.0, 2.0, 3.0], atol=0.01)


def test_the_page_on_sweeps_runs():
    names = run_page("sweeps", blocks=2)
    assert 1e-3 < names["result"].best()["learning_rate"] < 0.3
    assert names["axes"].get_legend() is not None
    finalists = names["fair"].finalists["noisy quadratic"]
    assert all(np.isfinite(finalists[name].steps_to_target).all() for name in ("SGD", "Adam"))
    plt.close("all")


def test_the_page_on_porting_runs():
    names = run_page("porting", blocks=1)
    params = {"w": jnp.ones(3)}
    for name, rate in (("as_in_torch", 1.1e-3), ("as_in_keras", 1e-3)):
        tx = names[name]
        updates, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(updates["w"], -rate, rtol=1e-3)


def test_the_first_two_shell_blocks_are_the_two_commands():
    first, second = re.findall(r"```(?:sh|bash|shell)\n(.*?)```", README, flags=re.DOTALL)[:2]
    assert "examples/train_digits.py" in first
    assert "pytest" in second


def test_it_names_every_wrapper():
    for name in WRAPPERS:
        assert name in README, name
