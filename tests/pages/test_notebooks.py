"""The notebooks run from top to bottom, and are committed with what they show."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NAMES = (
    "adaptive_methods_from_the_papers",
    "from_pytorch",
    "less_to_tune",
    "matrix_methods",
    "sweeps",
    "tour",
    "when_training_goes_wrong",
    "which_optimizer",
    "write_your_own_optimizer",
)

LONG = ("adaptive_methods_from_the_papers",)
"""Some minutes."""


def read(name):
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_every_notebook_is_here():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_shows_is_committed(name):
    notebook = read(name)
    pytest.importorskip("nbformat").validate(notebook)
    assert notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output.output_type != "error" or "raises-exception" in str(notebook.cells)
        assert output.get("name") != "stderr", output.text
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 2_000_000


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.seldom if name in LONG else pytest.mark.slow)
        for name in NAMES
    ],
)
def test_it_runs(name):
    nbclient = pytest.importorskip("nbclient")
    if name == "from_pytorch":
        pytest.importorskip("torch")
    notebook = read(name)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    lines = [
        x for output in shown if output.get("name") == "stderr" for x in output.text.split("\n")
    ]
    # What XLA's runtime says beside the error that the notebook shows, if the kernel still hears it.
    assert not [line for line in lines if line and "Buffer has been deleted or donated" not in line]
