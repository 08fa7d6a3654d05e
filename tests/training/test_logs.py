"""The lines of a run: printed, in files, for TensorBoard; and that no step is waited for."""

from __future__ import annotations

import csv
import json
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptive_jax as aj

ONE = jnp.ones(2)
STEP = aj.train_step(lambda params, batch: jnp.mean(jnp.square(params - batch)))


def create():
    return aj.TrainState.create(jnp.zeros(()), aj.sgd(0.25))


def distance(params):
    return {"loss": jnp.abs(params - 1)}


def fit(state, count, **options):
    return aj.fit(
        state, STEP, [ONE] * count, evaluate=distance, evaluate_every=4, log_every=2, **options
    )


def test_lines(capsys):
    state, _ = fit(create(), 5)
    fit(state, 3)
    lines = capsys.readouterr().out.splitlines()
    patterns = [
        "step 2  loss 0.25  learning_rate 0.25  skipped 0  [0-9.e+]+ steps/s",
        "step 4  loss 0.015625  learning_rate 0.25  skipped 0  [0-9.e+]+ steps/s",
        "step 4  eval_loss 0.0625",
        "step 5  eval_loss 0.03125",  # The last state.
        "step 6  loss 0.00097656  learning_rate 0.25  skipped 0",
        "step 8  loss 6.1035e-05  learning_rate 0.25  skipped 0  [0-9.e+]+ steps/s",
        "step 8  eval_loss 0.0039062",
    ]
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line
    fit(create(), 4, progress=True)  # Above a bar.
    assert "step 4  eval_loss 0.0625\n" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_files_that_are_appended_to(kind, tmp_path):
    path = tmp_path / "run" / f"log.{kind}"
    state, first = fit(create(), 5, log_to=path)
    with path.open("a") as file:
        file.write('{"step": 6, "lo' if kind == "jsonl" else "6,0.0")  # Killed while it wrote.
    _, second = fit(state, 3, log_to=str(path))
    lines = path.read_text().splitlines()
    if kind == "jsonl":
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        assert len(rows) == len(lines) - 1
    else:
        rows = [{k: float(x) for k, x in row.items() if x} for row in csv.DictReader(lines)]
        assert rows.pop(4) == {"step": 6.0, "loss": 0.0}
        assert list(rows[0])[:2] == ["step", "loss"]
        assert lines[0].endswith("eval_loss")
    losses = np.concatenate([first["loss"], second["loss"]])
    evaluations = np.concatenate([first["eval_loss"], second["eval_loss"]])
    found = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert found == {step: losses[step - 1] for step in (2, 4, 6, 8)}
    found = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    assert found == dict(zip((4, 5, 8), evaluations, strict=True))
    assert "steps_per_second" in rows[1]
    assert not list(path.parent.glob("*.new"))


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fit(create(), 2, log_to="~/run/log.csv")
    assert (tmp_path / "run" / "log.csv").is_file()


def test_metrics_of_all_kinds_and_numbers_that_are_none(tmp_path, capsys):
    def step(state, batch):
        inner = {"accuracy": jnp.float16(0.5), "rows": jnp.zeros(3), "deep": [1, None, "text"]}
        return state + 1, {"loss": jnp.float32(batch), "aux": inner, "measured": {"norm": 2.0}}

    path = tmp_path / "log.jsonl"
    aj.fit(0, step, [jnp.nan, -jnp.inf], log_every=1, log_to=path)
    strict = json.JSONDecoder(parse_constant=pytest.fail)  # NaN is no JSON.
    first, second = map(strict.decode, path.read_text().splitlines())
    assert first["loss"] is second["loss"] is None
    assert (first["aux/accuracy"], first["aux/deep/0"], first["measured/norm"]) == (0.5, 1, 2.0)
    assert "aux/rows" not in first
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("step 1  loss nan  aux/accuracy 0.5  aux/deep/0 1")
    assert "measured" not in line


def test_a_folder_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    _, history = fit(create(), 4, log_to=tmp_path / "board")
    (file,) = (tmp_path / "board").iterdir()
    data, found = file.read_bytes(), {}
    while data:  # A record is its length, a checksum, its bytes, and a checksum.
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found |= {(each.tag, event.step): each.simple_value for each in event.summary.value}
        data = data[16 + length :]
    assert found["loss", 2] == history["loss"][1]
    assert found["eval_loss", 4] == history["eval_loss"][0]
    assert ("steps_per_second", 4) in found


def test_tensorboard_without_its_writer(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'adaptive_jax\[tensorboard\]'"):
        fit(create(), 4, log_to=tmp_path / "board")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"log_to": "log.jsonl"}, ValueError, "needs to know how often: log_every=100"),
        ({"log_every": 0}, ValueError, "log_every=0 must be a whole number, 1 or more"),
        ({"log_every": 1, "log_to": "log.txt"}, ValueError, r"ends in '.txt': .jsonl is for"),
        ({"log_every": 1, "log_to": 3}, TypeError, "log_to=3 must be a path"),
        (
            {"log_every": 1, "log_to": "/dev/null/log.csv"},
            OSError,
            "cannot be written, and no step",
        ),
        ({"log_every": 1, "log_to": "/proc/log.jsonl"}, OSError, "log_to='/proc/log.jsonl' cannot"),
        ({"log_every": 1, "log_to": "/dev/null/board"}, (OSError, ImportError), "log_to="),
    ],
    ids=range(7),
)
def test_what_is_refused_before_the_first_step(options, error, message):
    state = create()
    with pytest.raises(error, match=message):
        aj.fit(state, STEP, [ONE] * 3, **options)
    assert STEP(state, ONE)[0].step == 1


class Late:
    """A number on a device that is busy: whoever asks for it before it has arrived waits in vain."""

    shape, dtype = (), np.dtype(np.float32)
    waited_for = 0
    arrived = False

    def is_ready(self):
        return Late.arrived

    def __array__(self, dtype=None, copy=None):
        Late.waited_for += not Late.arrived
        return np.zeros((), np.float32)


@pytest.fixture
def late(monkeypatch):
    """All numbers that a step returns are late, for `_numbers` of a log as well."""
    monkeypatch.setattr(Late, "waited_for", 0)
    monkeypatch.setattr(Late, "arrived", False)
    numbers = {"loss": Late()}
    monkeypatch.setattr("adaptive_jax.training.logs._numbers", lambda values: dict(numbers))
    return numbers


def test_no_step_is_waited_for(late, tmp_path, capsys):
    """Nor does a log, or a callback that looks at evaluations, ask for what has not been computed."""
    asked = []

    def step(state, batch):
        return state + 1, late

    def callback(state, metrics):
        asked.append(Late.waited_for)
        if state == 40:
            Late.arrived = True
            assert not capsys.readouterr().out

    options = {"log_every": 1, "log_to": tmp_path / "log.csv"}
    plain = [(), ()]
    for index, more in enumerate(({}, options)):
        Late.waited_for, Late.arrived = 0, False
        asked.clear()
        _, history = aj.fit(0, step, [None] * 50, callback=callback, **more)
        plain[index] = tuple(asked)
        assert len(history["loss"]) == 50
    assert plain[0] == plain[1] == (0,) * 50
    assert capsys.readouterr().out.count("step ") == 50


def test_with_a_log_a_loop_fetches_as_often_as_without(monkeypatch, tmp_path):
    """And evaluations are fetched one by one, the last one when the next is there."""
    fetched, usual = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: (fetched.append(1), usual(x))[1])
    counts = []
    for options in ({}, {"log_every": 1, "log_to": tmp_path / "log.jsonl"}):
        fetched.clear()
        aj.fit(create(), STEP, [ONE] * 100, **options)
        counts.append(len(fetched))
    assert counts == [4, 4]


def test_a_log_that_cannot_be_written_leaves_the_state(monkeypatch, tmp_path):
    """A disk that is full fails in the line at hand, and once more where the file is closed."""

    class Full:
        def __init__(self, path):
            pass

        def add_scalar(self, name, value, step):
            if step == 3:
                self.close()

        def close(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Full))
    for steps in (6, 2):  # In the loop, and at its end.
        with pytest.raises(OSError, match="No space left") as caught:
            aj.fit(create(), STEP, [ONE] * steps, log_every=1, log_to=tmp_path / "board")
        assert int(caught.value.state.step) >= 2
        assert len(caught.value.history["loss"]) == int(caught.value.state.step)


def test_the_step_of_a_line_is_that_of_the_loop(tmp_path):
    def step(state, batch):
        new, metrics = STEP(state, batch)
        return new, metrics | {"step": jnp.int32(0)}  # Of an epoch, say.

    path = tmp_path / "log.csv"
    aj.fit(create(), step, [ONE] * 4, log_every=2, log_to=path)
    with path.open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4"]
