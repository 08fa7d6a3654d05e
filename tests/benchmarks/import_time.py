"""How long `import adaptive_jax` takes, beside `import optax`, which it imports.

    python tests/benchmarks/import_time.py              # some minutes
    python tests/benchmarks/import_time.py --rounds 30

Each import is in a process of its own. A round times each once, in another order than the last one, after
one that nobody counts, which writes the compiled files. Printed are the medians, by the clock on the wall
and by the processor's, which a busy machine disturbs less; and the median of the ratios of the rounds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

IMPORTS = "import jax", "import optax", "import adaptive_jax"


def timed(program):
    """The seconds on the wall and of the processor, of a new Python that runs a program."""
    wall, before = time.perf_counter(), os.times()
    # Nothing is timed that is compiled anew each time.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    wall, after = time.perf_counter() - wall, os.times()
    cpu = [each.children_user + each.children_system for each in (before, after)]
    return wall, cpu[1] - cpu[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    times = {program: [] for program in IMPORTS}
    for index in range(rounds + 1):
        for program in IMPORTS if index % 2 else reversed(IMPORTS):
            found = timed(program)
            if index:
                times[program].append(found)
    print(f"| {rounds} rounds | wall | processor |\n|---|---|---|")
    for program, found in times.items():
        wall, cpu = map(statistics.median, zip(*found, strict=True))
        print(f"| `{program}` | {wall:.2f} s | {cpu:.2f} s |")
    ratios = [
        [ours / theirs for ours, theirs in zip(our, their, strict=True)]
        for our, their in zip(times[IMPORTS[2]], times[IMPORTS[1]], strict=True)
    ]
    wall, cpu = map(statistics.median, zip(*ratios, strict=True))
    print(f"| adaptive_jax / optax | {wall:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
