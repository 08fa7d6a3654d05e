"""One script with this library and with optax: the same losses, in fewer lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def lines_of(name):
    """How many lines are neither blank nor a comment."""
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)


def test_the_script_is_shorter():
    assert lines_of("a_day") <= 0.6 * lines_of("a_day_in_optax")


# Two runs of each, one of which is ended after two epochs and goes on.
BOTH = """
import sys
from pathlib import Path
import jax
import numpy as np
import a_day, a_day_in_optax

folder, found = Path(sys.argv[1]), {}
for script in (a_day, a_day_in_optax):
    name = script.__name__
    for kind, epochs in (("half", 2), ("half", 4), ("whole", 4)):
        state, best, losses, evaluations = script.run(folder / name / kind, epochs=epochs)
        found |= {f"{name}/{kind}{epochs}/losses": losses, f"{name}/{kind}{epochs}/eval": evaluations}
    found |= {f"{name}/{kind}{epochs}/{i}": x for i, x in enumerate(jax.tree.leaves(best))}

# An error in the middle of the second epoch; then it goes on to its end, and has no more to do.
usual = a_day.batches
def failing(epoch):
    for place, batch in enumerate(usual(epoch)):
        if epoch == 1 and place == 5:
            raise OSError
        yield batch
a_day.batches = failing
try:
    a_day.run(folder / "broken", epochs=2)
except OSError as error:
    assert error.state.step == a_day.STEPS + 5
a_day.batches = usual
for kind in ("rest", "nothing"):
    state, best, losses, evaluations = a_day.run(folder / "broken", epochs=2)
    found |= {f"{kind}/losses": losses, f"{kind}/eval": evaluations}
    found |= {f"{kind}/{i}": x for i, x in enumerate(jax.tree.leaves(best))}
np.savez(folder / "found.npz", steps=a_day.STEPS, **found)
"""


@pytest.mark.slow
def test_the_scripts_come_to_the_same_and_go_on(tmp_path):
    for library in ("flax", "orbax.checkpoint", "sklearn"):
        pytest.importorskip(library)
    # As users run it: with the options of these tests, XLA's convolutions in a loop are slow.
    unlike = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {name: x for name, x in os.environ.items() if name not in unlike}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(EXAMPLES)])
    subprocess.run([sys.executable, "-c", BOTH, tmp_path], env=environment, check=True)
    found = dict(np.load(tmp_path / "found.npz"))
    for name, tolerance in (("losses", 2e-3), ("eval", 1e-3)):
        for script in ("a_day", "a_day_in_optax"):
            halves = [found[f"{script}/half{epochs}/{name}"] for epochs in (2, 4)]
            np.testing.assert_array_equal(np.concatenate(halves), found[f"{script}/whole4/{name}"])
        ours, theirs = (found[f"{script}/whole4/{name}"] for script in ("a_day", "a_day_in_optax"))
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=1e-4)
    assert ours[-1] < ours[0] / 4
    for index in range(6):  # The best parameters.
        ours, theirs = (found[f"{script}/whole4/{index}"] for script in ("a_day", "a_day_in_optax"))
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=2e-4)
    whole = found["a_day/half2/losses"]
    np.testing.assert_array_equal(found["rest/losses"], whole[found["steps"] + 5 :])
    np.testing.assert_array_equal(found["rest/eval"], found["a_day/half2/eval"][1:])
    assert found["nothing/losses"].size == 0
    for index in range(6):
        np.testing.assert_array_equal(found[f"nothing/{index}"], found[f"rest/{index}"])
    for script in ("a_day", "a_day_in_optax"):
        rows = [
            json.loads(line)
            for line in (tmp_path / script / "half" / "log.jsonl").read_text().splitlines()
        ]
        steps = [row["step"] for row in rows if "eval_loss" in row]
        assert steps == [found["steps"] * epoch for epoch in (1, 2, 3, 4)]
