"""Several processes that train together as one does, save together, and end together."""

import time

import jax
import numpy as np
import one_of_many
import pytest
from one_of_many import WAYS
from started_together import killed_runs, run_together, started

import adaptive_jax as aj


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    printed = run_together(2, 2, "train", tmp_path)
    first, second = (dict(np.load(tmp_path / f"{index}.npz")) for index in range(2))
    assert first.keys() == second.keys()
    for name, x in first.items():  # Also the step at which Ctrl-C in one of them stopped both.
        np.testing.assert_array_equal(x, second[name], err_msg=name)
    assert first["stopped_at"] > 6
    stopped = [int(each.name) for each in (tmp_path / "stopped").iterdir()]
    assert len(stopped) == 2  # By the clock, and at the end.
    assert max(stopped) == first["stopped_at"]
    assert first["replicated/errors"].shape == (6, 16)
    assert ["step 2  eval_loss" in text for text in printed] == [True, False]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 5
    for name in ("fsdp", "zero"):
        for key in ("hidden", "out", "loss"):
            np.testing.assert_allclose(
                first[f"{name}/{key}"], first[f"replicated/{key}"], rtol=1e-5, atol=1e-6
            )
    np.testing.assert_allclose(first["zero-int8/loss"], first["replicated/loss"], rtol=0.02)
    assert "step" in printed[0]  # One progress bar, of the first process.
    assert "step" not in printed[1]


@pytest.mark.slow
def test_four_processes_save_and_one_and_two_restore(tmp_path):
    run_together(4, 1, "save", tmp_path)
    for name in WAYS:
        state = aj.restore_checkpoint(tmp_path / name, one_of_many.created(name, scale=0.0))
        assert int(state.step) == 6
        leaves = jax.tree.leaves((state.params, state.opt_state, state.rng))
        leaves[-1] = jax.random.key_data(leaves[-1])
        numbered = {f"{number}": np.asarray(x) for number, x in enumerate(leaves)}
        np.savez(tmp_path / f"{name}.npz", **numbered)
        assert np.any(numbered["0"])
    run_together(2, 1, "restore", tmp_path)


@pytest.mark.slow
def test_killed_and_started_again_they_end_as_undisturbed(tmp_path):
    disturbed, alone, began_at, _ = killed_runs(tmp_path, kills=2, seed=0)
    np.testing.assert_array_equal(disturbed, alone)
    assert began_at[1] > began_at[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "how", "message"),
    [
        (1, "raises", "OSError: the disk of this machine is full"),
        (0, "raises", "OSError: the disk of this machine is full"),
        (1, "ends", "process 1 ended after 5 steps, and process 0 goes on"),
    ],
)
def test_what_happens_to_one_ends_all_with_its_reason_last(which, how, message, tmp_path):
    with started(2, 1, "fail", tmp_path, which, how) as processes:
        assert "now\n" in iter(processes[which].stdout.readline, "")
        began = time.monotonic()
        printed = [each.communicate(timeout=120)[0] for each in processes]
    assert time.monotonic() - began < 60
    for each, text in zip(processes, printed, strict=True):
        assert each.returncode == 1, text
        assert message in "\n".join(text.splitlines()[-6:]), text


@pytest.mark.slow
def test_evaluations_that_are_not_the_same_end_all(tmp_path):
    with started(2, 1, "fail", tmp_path, 0, "evaluates") as processes:
        printed = [each.communicate(timeout=120)[0] for each in processes]
    for each, text in zip(processes, printed, strict=True):
        assert each.returncode != 0
        assert "eval_loss is 0.0 in process 0, and 1.0 in process 1" in text


@pytest.mark.slow
def test_two_processes_search_as_one(tmp_path):
    printed = run_together(2, 1, "search", tmp_path)
    alone = one_of_many.found(one_of_many.BATCHES[0])
    for index in range(2):
        together = dict(np.load(tmp_path / f"{index}.npz"))
        assert together.keys() == alone.keys()
        for name, x in alone.items():
            np.testing.assert_allclose(together[name], x, rtol=2e-5, atol=1e-6, err_msg=name)
            first = np.load(tmp_path / "0.npz")[name]
            np.testing.assert_array_equal(together[name], first, err_msg=name)
    assert "2/2" in printed[0]  # One progress bar, of the share of the first process.
    assert "run/s" not in printed[1]
