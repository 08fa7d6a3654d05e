"""Programs that run as several processes of one training run, on this machine."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("one_of_many.py")
SECONDS = 400
"""After so many a process that waits for another one is given up."""


@contextlib.contextmanager
def started(count, devices, *arguments):
    """So many processes with so many devices each, which are killed in the end."""
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
    processes = [
        subprocess.Popen(
            [sys.executable, "-u", str(WORKER), *map(str, arguments)],
            env={**common, "INDEX": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]
    try:
        yield processes
    finally:
        for each in processes:
            each.kill()
            each.wait()
            each.stdout.close()


def run_together(count, devices, *arguments):
    """What the processes print."""
    with started(count, devices, *arguments) as processes:
        printed = [each.communicate(timeout=SECONDS)[0] for each in processes]
    assert [each.returncode for each in processes] == [0] * count, "\n".join(printed)
    return printed


def killed_runs(folder, kills, seed, steps=40):
    """A run of two processes that is killed so often, one of them or both, and started again.

    At random moments, many of them while it saves. Returns the parameters at the end, those of an
    undisturbed run, the steps at which it was started, and the seconds that one lived on without the other.
    """
    moments, began_at, alone_for = random.Random(seed), [], []
    disturbed, alone = folder / "disturbed", folder / "alone"
    for kill in range(kills):
        with started(2, 1, "go on", disturbed, steps) as processes:
            lines = iter(processes[0].stdout.readline, "")
            began_at.append(int(next(line for line in lines if line.startswith("from")).split()[1]))
            for _ in range(moments.randrange(2, 12)):
                next(lines)
            time.sleep(moments.uniform(0, 0.1))
            victims = [processes[moments.randrange(2)]] if kill % 2 == 0 else processes
            for each in victims:
                each.send_signal(signal.SIGKILL)
            began = time.monotonic()
            for each in processes:
                each.communicate(timeout=60)
                assert each.returncode != 0
            if len(victims) == 1:
                alone_for.append(time.monotonic() - began)
    assert not (disturbed / "end.npy").exists()
    for directory in (disturbed, alone):
        run_together(2, 1, "go on", directory, steps)
    ends = [np.load(directory / "end.npy") for directory in (disturbed, alone)]
    return *ends, began_at, alone_for
