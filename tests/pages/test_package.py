"""What is in the package beside its code: licence, citation, types, and the versions that it needs."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_licence_and_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["license"] == citation["license"] == "Apache-2.0"
    assert PROJECT["version"] == citation["version"]
    assert [each["name"] for each in PROJECT["authors"]] == [
        each["name"] for each in citation["authors"]
    ]
    licence = " ".join((ROOT / "LICENSE").read_text().split())
    assert licence.startswith("Apache License Version 2.0, January 2004")
    assert "END OF TERMS AND CONDITIONS" in licence


def test_the_oldest_versions_that_are_tested_are_the_oldest_that_are_allowed():
    pinned = re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / ".ci" / "oldest.txt").read_text(), re.M)
    allowed = dict(each.split(">=") for each in PROJECT["dependencies"])
    shortened = {name: re.sub(r"(\.0)+$", "", version) for name, version in pinned}
    assert {name: shortened.get(name) for name in allowed} == allowed


IMPORTED = """
import sys
import optax
before = set(sys.modules)
import adaptive_jax
print(*set(sys.modules) - before)
"""


def test_the_import_brings_nothing_that_optax_does_not():
    """No optional library, and not JAX's compilers of kernels, which a run without them never needs."""
    run = subprocess.run(
        [sys.executable, "-c", IMPORTED], check=True, capture_output=True, text=True
    )
    names = run.stdout.split()
    packages = {name.partition(".")[0] for name in names} - {"jax", *sys.stdlib_module_names}
    assert packages == {"adaptive_jax"}
    assert not [name for name in names if "pallas" in name or name.startswith("jax.extend")]


USER = """
import adaptive_jax as aj
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]

tx: optax.GradientTransformationExtraArgs = aj.adam(1e-3, storage="int8")
state = aj.TrainState.create({"w": jnp.zeros(3)}, tx)
reveal_type(aj.adam(1e-3))
reveal_type(state)
aj.adam(learning_rte=1)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The Python of an environment with the built wheel in it, beside the libraries of this one."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(*folder.glob("*.whl")) as wheel:
        wheel.extractall(packages)
    # Behind the wheel, and without the package that an editable install points to.
    (packages / "libraries.pth").write_text(str(Path(yaml.__file__).parent.parent))
    return folder / "env" / "bin" / "python"


@pytest.mark.slow
def test_the_wheel_has_types_and_licence(environment):
    (packages,) = environment.parent.parent.glob("lib/python*/site-packages")
    assert (packages / "adaptive_jax" / "py.typed").exists()
    (metadata,) = packages.glob("adaptive_jax-*.dist-info/METADATA")
    assert "License-Expression: Apache-2.0" in metadata.read_text()
    assert (metadata.parent / "licenses" / "LICENSE").exists()


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["pyright", "mypy"])
def test_a_user_sees_the_types(checker, environment, tmp_path):
    pytest.importorskip(checker)
    (tmp_path / "user.py").write_text(USER)
    python = "--pythonpath" if checker == "pyright" else "--python-executable"
    cache = ["--cache-dir", "cache"] if checker == "mypy" else []
    command = [sys.executable, "-m", checker, python, str(environment), *cache, "user.py"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    revealed = re.findall(r'[Tt]ype (?:is|of .* is) "(?:\w+\.)*(\w+)"', found.stdout)
    assert revealed == ["Transformation", "TrainState"], found.stdout + found.stderr
    errors = re.findall(r"error: (.*)", found.stdout)
    assert any("learning_rte" in each for each in errors)
    assert all("learning_r" in each for each in errors), found.stdout
