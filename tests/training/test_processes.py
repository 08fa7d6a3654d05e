"""Two processes with two devices each, that train together as one does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).with_name("many_processes.py")
ROOT = Path(__file__).parents[2]
SECONDS = 400
"""After so many a process that waits for another one is given up."""


def run_together(count, devices, folder):
    """What the processes print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "COUNT": str(count),
        "PORT": str(port),
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder)],
            env={**common, "INDEX": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]
    try:
        printed = [each.communicate(timeout=SECONDS)[0] for each in started]
    finally:
        for each in started:
            each.kill()
    assert [each.returncode for each in started] == [0] * count, "\n".join(printed)
    return printed


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    printed = run_together(2, 2, tmp_path)
    first, second = (dict(np.load(tmp_path / f"{index}.npz")) for index in range(2))
    assert first.keys() == second.keys()
    for name, x in first.items():  # Also the step at which Ctrl-C in one of them stopped both.
        np.testing.assert_array_equal(x, second[name], err_msg=name)
    assert first["stopped_at"] > 6
    assert first["replicated/errors"].shape == (6, 16)
    for name in ("fsdp", "zero"):
        for key in ("hidden", "out", "loss"):
            np.testing.assert_allclose(
                first[f"{name}/{key}"], first[f"replicated/{key}"], rtol=1e-5, atol=1e-6
            )
    np.testing.assert_allclose(first["zero-int8/loss"], first["replicated/loss"], rtol=0.02)
    assert "step" in printed[0]  # One progress bar, of the first process.
    assert "step" not in printed[1]
