"""A run of two processes that is killed twenty times, and ends bit for bit as one that is not.

    PYTHONPATH=tests python tests/benchmarks/killed_processes.py
    PYTHONPATH=tests python tests/benchmarks/killed_processes.py --kills 100 --seed 1

Every second step is saved in the background, with Adam's state in int8 and split over the processes.
They are killed at random moments, many of them in the middle of a save: now one of them, now both; then
both are started again. Prints from which step each start went on, and for how long a process lived on
whose peer was killed.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from started_together import killed_runs


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        disturbed, alone, began_at, alone_for = killed_runs(
            Path(folder), arguments.kills, arguments.seed, steps=10 * arguments.kills
        )
    print(f"went on from the steps {', '.join(map(str, began_at))}")
    print(f"a process whose peer was killed ended after {max(alone_for):.1f} seconds at most")
    same = np.array_equal(disturbed, alone)
    print(f"bit for bit the undisturbed run: {'yes' if same else 'no'}")
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
