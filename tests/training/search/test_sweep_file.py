"""Sweeps written to a file and read back."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import adaptive_jax as aj


def train(rate, kind, seed):
    return {
        "loss": jnp.where(seed > 1, jnp.nan, rate),
        "params": [{"w": jnp.full((2, 3), rate, jnp.bfloat16)}, (jnp.arange(2), None)],
        "ok": rate > 0,
    }


@pytest.fixture
def result():
    return aj.sweep(train, rate=[0.5, 1.0], kind=["a", None, True], seeds=3, maximize=True)


def test_what_is_read_is_what_was_written(result, tmp_path):
    path = tmp_path / "a sweep"  # Nothing is added to the name.
    result.save(path)
    read = aj.Sweep.load(str(path))
    assert [each.name for each in tmp_path.iterdir()] == ["a sweep"]
    assert read.settings.keys() == result.settings.keys()
    np.testing.assert_array_equal(read.settings["rate"], result.settings["rate"])
    assert read.settings["kind"] == result.settings["kind"]
    assert read.outputs["params"][1][1] is None
    assert type(read.outputs["params"][1]) is tuple
    for one, other in [
        (read.objective, result.objective),
        (read.seeds, result.seeds),
        (read.outputs["loss"], result.outputs["loss"]),
        (read.outputs["ok"], result.outputs["ok"]),
        (read.outputs["params"][0]["w"], result.outputs["params"][0]["w"]),
        (read.outputs["params"][1][0], result.outputs["params"][1][0]),
    ]:
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()
    assert read.maximize
    assert read.name == "loss"
    assert repr(read.table().rows) == repr(result.table().rows)
    result.save(path)  # Over the one that is there.
    assert aj.Sweep.load(path).setting(3) == result.setting(3)


def test_what_no_file_can_hold_is_named_and_the_advice_works(tmp_path):
    path = tmp_path / "sweep.npz"
    result = aj.Sweep(
        {"make": [aj.adam, aj.sgd]}, np.arange(1), np.ones((2, 1)), {3: np.ones((2, 1))}
    )
    with pytest.raises(ValueError, match=r"settings\['make'\] holds <function adam") as error:
        result.save(path)
    advice = str(error.value).partition("dataclasses.replace(result, ")[2].partition(").save")[0]
    result = eval(
        f"dataclasses.replace(result, {advice})", {"dataclasses": dataclasses, "result": result}
    )
    with pytest.raises(
        ValueError, match="outputs holds a dict whose names are no strings"
    ) as error:
        result.save(path)
    assert "dataclasses.replace(result, outputs=None).save(path)" in str(error.value)
    assert not list(tmp_path.iterdir())
    dataclasses.replace(result, outputs=None).save(path)
    assert "function adam" in aj.Sweep.load(path).best()["make"]


def test_other_files_and_folders_are_refused(result, tmp_path):
    for path, message in [
        (tmp_path, "is a folder: give the name of a file"),
        (tmp_path / "none" / "sweep.npz", "is no folder: give the name of a file"),
    ]:
        with pytest.raises(ValueError, match=message):
            result.save(path)
    with pytest.raises(ValueError, match=r"is a folder: give the file that Sweep\.save wrote"):
        aj.Sweep.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        aj.Sweep.load(tmp_path / "none.npz")
    text, single, arrays, other = (tmp_path / name for name in ("text", "a.npy", "a.npz", "b.npz"))
    text.write_text("learning_rate,loss")
    np.save(single, np.ones(3))
    np.savez(arrays, loss=np.ones(3))
    np.savez(other, **{"adaptive_jax.sweep": np.array(json.dumps({"format": 7}))})
    for path in (text, single, arrays):
        with pytest.raises(ValueError, match=r"is no file that Sweep\.save wrote"):
            aj.Sweep.load(path)
    with pytest.raises(ValueError, match="is of format 7, and this version reads format 1"):
        aj.Sweep.load(other)


def test_a_tilde_is_the_home(result, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    result.save("~/sweep.npz")
    assert (tmp_path / "sweep.npz").is_file()
    np.testing.assert_array_equal(aj.Sweep.load("~/sweep.npz").objective, result.objective)
