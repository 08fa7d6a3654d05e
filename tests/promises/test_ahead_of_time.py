"""What compilers for devices that are not here make of a step: bytes, temporaries and collectives."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "ahead_of_time.py"
NEEDED = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}


def run(*arguments):
    """The benchmark in a process of its own: a compiler reads its settings when it is loaded."""
    kept = ("XLA_FLAGS", "JAX_PLATFORMS")
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    environment["PYTHONPATH"] = str(PROGRAM.parents[2])
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def compiled_for(target, path, *options):
    """The figures of each storage for a target."""
    return {
        (each["tree"], each["storage"]): each for each in all_compiled_for(target, path, *options)
    }


def all_compiled_for(target, path, *options):
    """All figures for a target."""
    if importlib.util.find_spec(NEEDED[target.partition(":")[0]]) is None:
        pytest.skip(f"the compiler for {target} is not installed")
    done = run(target, *options, "--json", path)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())["figures"]


def check(figures, most):
    """Bytes over the floor and temporaries per parameter are at most so many."""
    found = {key: (each["over_floor"], each["temporaries"]) for key, each in figures.items()}
    over = {
        key: (found[key], (floor, temporaries))
        for key, (floor, temporaries) in most.items()
        if found[key][0] > floor or found[key][1] > temporaries
    }
    assert not over
    assert not any(each["collectives"] for each in figures.values())


@pytest.mark.slow
def test_on_a_tpu(tmp_path):
    options = ["--trees", "wide", "head", "--storages", "float32", "bfloat16", "int8_tiles"]
    figures = compiled_for("tpu:v5e:2x2", tmp_path / "one.json", *options)
    most = {(tree, "float32"): (1.01, 0.15) for tree in ("wide", "head")}
    most |= {(tree, "bfloat16"): (1.01, 0.15) for tree in ("wide", "head")}
    most |= {(tree, "int8_tiles"): (1.45, 0.15) for tree in ("wide", "head")}
    check(figures, most)
    options = ["--trees", "wide", "--storages", "bfloat16+factored"]
    check(
        compiled_for("tpu:v5e:2x2", tmp_path / "factored.json", *options),
        {("wide", "bfloat16+factored"): (1.6, 0.15)},
    )


@pytest.mark.slow
def test_on_a_gpu(tmp_path):
    storages = ["float32", "bfloat16", "int8", "int8+int16", "bfloat16+factored"]
    options = ["--trees", "wide", "deep", "odd", "--storages", *storages]
    figures = compiled_for("cuda:h100", tmp_path / "one.json", *options)
    most = {"float32": 1.01, "bfloat16": 1.01, "bfloat16+factored": 1.6}
    check(figures, {(tree, s): (most.get(s, 1.45), 0.15) for tree, s in figures})
    # The count and the corrections. Keys for random bits are made in the kernels that round with them.
    options = ["--trees", "some", "--storages", "bfloat16"]
    (each,) = compiled_for("cuda:h100", tmp_path / "some.json", *options).values()
    assert each["scalars"] <= 4


@pytest.mark.slow  # The compiler for TPUs takes minutes for each.
@pytest.mark.parametrize("optimizer", ["muon", "shampoo", "soap", "psgd_kron"])
def test_matrix_methods_stay_on_the_device_in_float32(optimizer, tmp_path):
    options = ["--trees", "layer", "--storages", "float32", "--optimizers", optimizer]
    (each,) = compiled_for("cuda:h100", tmp_path / "figures.json", *options).values()
    assert each["float64"] == each["host_calls"] == 0
    # Factors, their squares and what is between them: none of it is there for all matrices at once.
    assert each["temporaries"] < 25


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tpu:v5e:2x2", "cuda:h100:4"])
def test_a_sharded_step_exchanges_nothing(target, tmp_path):
    storages = ["float32", "bfloat16", "int8_tiles" if target.startswith("tpu") else "int8"]
    options = ["--trees", "wide", "--split", "--storages", *storages]
    figures = compiled_for(target, tmp_path / "split.json", *options)
    check(figures, dict.fromkeys(figures, (1.45, 0.15)))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tpu:v5e:2x2", "cuda:h100:4"])
def test_with_a_divided_state_devices_send_no_more(target, tmp_path):
    """Sums of gradients to where the state is, and parameters from there: as much as all sums to all."""
    steps = ["data_parallel", "data_parallel_in_parts", "zero", "zero_in_parts"]
    options = ["--trees", "layer", "--storages", "float32", "--steps", *steps]
    figures = all_compiled_for(target, tmp_path / "zero.json", *options)
    found = {each["step"]: each for each in figures}
    whole, whole_in_parts, zero, zero_in_parts = (found[step] for step in steps)
    gradients = whole["collectives"]["all-reduce"][1]
    assert whole["collectives"].keys() == {"all-reduce"}
    for each in (zero, zero_in_parts):
        # For vectors, which are few numbers, a compiler may take an all-reduce.
        assert each["collectives"]["reduce-scatter"][1] >= 0.99 * gradients
        assert each["collectives"]["all-gather"][1] <= gradients
        assert each["wire"] <= 1.002 * whole["wire"]
    assert whole_in_parts["wire"] <= whole["wire"]
    assert zero_in_parts["wire"] <= zero["wire"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tpu:v5e:2x2", "cuda:h100:4"])
def test_sums_over_all_arrays_are_exchanged_at_once(target, tmp_path):
    options = ["--trees", "layer", "--split", "--storages", "float32", "--optimizers", "prodigy"]
    (each,) = all_compiled_for(target, tmp_path / "sums.json", *options)
    assert each["collectives"].keys() == {"all-reduce"}
    count, size = each["collectives"]["all-reduce"]
    assert (count, size <= 64) == (1, True)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "cuda:h99",
            r"the topology 'h99' of the target 'cuda:h99' is not known: it is one of h100",
        ),
        ("npu", r"the target 'npu' begins with 'npu': it must be cpu, or begin with tpu: or cuda:"),
        ("cpu --options fast", "--options fast: give it a value, fast=…"),
    ],
)
def test_targets_that_are_not_known(target, message):
    done = run(*target.split())
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")


@pytest.mark.parametrize("target", ["tpu:v5e:2x2", "cuda:h100"])
def test_a_compiler_that_is_not_installed(target):
    backend = target.partition(":")[0]
    if importlib.util.find_spec(NEEDED[backend]) is not None:
        pytest.skip("it is installed")
    done = run(target)
    assert done.returncode == 2
    assert f"pip install 'adaptive_jax[{backend}]'" in done.stderr
