"""Writes tests/data/trajectories.npz: how parameters went under PyTorch's and Keras's optimizers.

    python -m pip install -e ".[test,interop]"
    python tests/record_trajectories.py
    python tests/record_trajectories.py keras.lion torch.rprop  # These alone: the others stay.

The tests replay it where neither library is installed. It holds the settings, and the parameters
after a few of the steps.
"""

import json
import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import numpy as np
import trajectories

DATA = Path(__file__).parent / "data" / "trajectories.npz"
STEPS = [0, 1, 2, 9, 19, 49, 99, 199]


def main():
    arrays, settings, only = {}, {}, sys.argv[1:]
    if only:
        arrays = dict(np.load(DATA))
        settings = json.loads(str(arrays.pop("settings")))
        arrays.pop("steps")
    for library, (draw, names) in trajectories.LIBRARIES.items():
        for name in names:
            if only and f"{library}.{name}" not in only:
                continue
            drawn = [draw(name, index) for index in trajectories.recorded(name)]
            settings[f"{library} {name}"] = drawn
            for dtype in trajectories.TOLERANCE:
                if library == "torch":
                    every = [trajectories.theirs_in_torch(name, each, dtype) for each in drawn]
                else:
                    every = trajectories.theirs_in_keras(name, drawn, dtype)
                arrays[f"{library} {name} {dtype}"] = np.stack(every)[:, STEPS]
    DATA.parent.mkdir(exist_ok=True)
    np.savez_compressed(DATA, settings=json.dumps(settings), steps=STEPS, **arrays)
    print(f"{DATA}: {DATA.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
