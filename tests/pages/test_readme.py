"""The README's Python runs as it stands, and its table names everything exported."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from catalogue import WRAPPERS

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_python_blocks_run_in_order():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 13
    names: dict = {}
    for block in blocks:
        exec(block, names)
    np.testing.assert_allclose(names["params"]["w"], [1.0, 2.0, 3.0], atol=0.05)
    assert names["step"]._cache_size() == 1
    np.testing.assert_allclose(names["state"].params["w"], [1.0, 2.0, 3.0], atol=0.01)
    params = {"w": jnp.ones(3)}
    tx = names["tx"]
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -1e-4 * (1 + 0.01), rtol=1e-5)

    assert 1e-3 < names["result"].best()["learning_rate"] < 0.3
    assert names["axes"].get_legend() is not None
    finalists = names["fair"].finalists["noisy quadratic"]
    assert all(np.isfinite(finalists[name].steps_to_target).all() for name in ("SGD", "Adam"))
    plt.close("all")


def test_the_first_two_shell_blocks_are_the_two_commands():
    first, second = re.findall(r"```(?:sh|bash|shell)\n(.*?)```", README, flags=re.DOTALL)[:2]
    assert "examples/train_digits.py" in first
    assert "pytest" in second


def test_it_names_every_wrapper():
    for name in WRAPPERS:
        assert name in README, name
