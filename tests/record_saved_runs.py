"""Writes tests/data/checkpoints/<version>.zip: checkpoints of this version, and how the runs went on.

    python -m pip install -e ".[test]"
    python tests/record_saved_runs.py

Later versions restore them and go on. Each run has the files of `save_checkpoint`, the optimizer's
state as pickled then, and the parameters and the loss of its end. Run it once for each version whose
states are laid out in another way than those of the version before, and then never again.
"""

import importlib.metadata
import io
import pickle
import tempfile
import zipfile
from pathlib import Path

import jax
import numpy as np
import saved_runs

import adaptive_jax as aj

DATA = Path(__file__).parent / "data" / "checkpoints"


def main():
    file = DATA / f"{importlib.metadata.version('adaptive_jax')}.zip"
    if file.exists():
        raise SystemExit(f"{file} is there already: it is what that version wrote.")
    DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        for name in saved_runs.RUNS:
            folder = Path(directory) / name
            folder.mkdir()
            state, _ = saved_runs.go_on(saved_runs.create(name), saved_runs.SAVED_AT)
            aj.save_checkpoint(folder / "checkpoint", state)
            (folder / "opt_state.pickle").write_bytes(pickle.dumps(jax.device_get(state.opt_state)))
            end, loss = saved_runs.go_on(state, saved_runs.ENDS_AT)
            leaves = [np.asarray(x, np.float32) for x in jax.tree.leaves(end.params)]
            np.savez(folder / "end.npz", *leaves, loss=loss)
        # Zipped twice: most of a checkpoint is the same in all of them.
        pack(Path(directory), file)
    print(f"{file}: {file.stat().st_size / 1e3:.0f} kB")


def pack(directory, file):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(directory.rglob("*")):
            archive.write(path, path.relative_to(directory))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("runs.zip", inner.getvalue())


if __name__ == "__main__":
    main()
