"""optax's own tests pass with adaptive_jax in optax's place.

They run in processes of their own, with the plugin `optax_substitution`: what passes with optax's
functions has to pass with ours. Deliberate differences are named here, and have to be real ones.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optax
import pytest
from catalogue import WHOLE_OPTIMIZERS

import adaptive_jax
from tests.rules.optax_substitution import COMPARED_BY_THEMSELVES

SITE = Path(optax.__file__).parents[1]

# The deliberate differences: part of the tests, case of a test, why it fails with ours.
WIDE_STATE = "state is kept in float32 at least: a second moment in bfloat16 does not decay"
BFLOAT16_STATE = "params_dtype='bfloat16', state_dtype=None"
NO_INTEGERS = "integer parameters are refused by name: an optimizer cannot move them"
AT_ONCE = "an unknown option or label is refused when an optimizer is made, not when it is used"
ALL_USED = "a tree of labels that leaves a transformation without parameters is refused"
DIFFERENCES = {
    "optimizers": {
        **{
            f"AliasTest::test_explicit_dtype({BFLOAT16_STATE}, opt_name='{name}')": WIDE_STATE
            for name in ("sgd_mom", "adam", "adamw")
        },
        "ExtraArgsTest::test_extra_args": NO_INTEGERS,
        "PartitionTest::test_labels_mismatch(False, False)": ALL_USED,
        "PartitionTest::test_labels_mismatch(True, False)": AT_ONCE,
        "TransformTest::test_lion_invalid_mode_raises": AT_ONCE,
    },
    "long": {"GaLoreTest::test_mu_dtype_controls_moment_dtype": WIDE_STATE},
}

# Nothing that could be ours is called in these.
WITHOUT_OPTIMIZERS = (
    "_src/base_test.py",
    "_src/factorized_test.py",
    "_src/linear_algebra_test.py",
    "_src/lookahead_test.py",
    "_src/numerics_test.py",
    "_src/update_test.py",
    "_src/utils_test.py",
    "assignment/",
    "contrib/_mechanic_test.py",
    "contrib/_privacy_test.py",
    "contrib/_reduce_on_plateau_test.py",
    "losses/",
    "microbatching/",
    "optax_test.py",
    "perturbations/",
    "projections/",
    "schedules/_join_test.py",
    "tree_utils/_casting_test.py",
    "tree_utils/_random_test.py",
    "tree_utils/_tree_math_test.py",
)
ALIASES = "_src/alias_test.py"  # One table of optimizers, through every test.
SHARDING = "_src/sharding_test.py"  # Eight devices, which a process has from the start or never.
ACCUMULATION = "transforms/_accumulation_test.py"  # Needs flax.
LONG = (
    f"{ALIASES}::LBFGSTest",  # Of ours, it has only a chain that hands extra arguments on.
    "_src/linesearch_test.py",
    "contrib/_common_test.py",
    "contrib/_galore_test.py",
    "contrib/_muon_test.py",
)

OPTIMIZERS_OF_BOTH = frozenset(WHOLE_OPTIMIZERS) & set(dir(optax)) - COMPARED_BY_THEMSELVES


def rest() -> list[str]:
    """What optax ships besides, new modules included."""
    elsewhere = (*WITHOUT_OPTIMIZERS, ALIASES, SHARDING, ACCUMULATION, *LONG)
    package = SITE / "optax"
    modules = sorted(path.relative_to(package).as_posix() for path in package.rglob("*_test.py"))
    return [module for module in modules if not module.startswith(elsewhere)]


@dataclass(frozen=True)
class Part:
    """Tests of optax that run together.

    at_least: so many have to pass, each with a call of ours in it, for the run to mean something.
    calls: of ours, what they have to call between them.
    """

    modules: tuple[str, ...]
    at_least: int
    calls: frozenset[str]
    options: tuple[str, ...] = ()


PARTS = {
    "optimizers": Part(
        (ALIASES, *rest()),
        at_least=350,
        calls=OPTIMIZERS_OF_BOTH | {"chain", "clip_by_global_norm", "add_decayed_weights", "trace"},
        options=("--optimizers=replaced", "-k", "not LBFGSTest"),
    ),
    "sharding": Part(
        (SHARDING,), at_least=75, calls=OPTIMIZERS_OF_BOTH, options=("--compare-versions",)
    ),
    # Optimizers of optax's own, with ours as their pieces: lamb scales by adam.
    "pieces": Part(
        (ALIASES,),
        at_least=250,  # Fewer with each that comes to be here, and is replaced as a whole.
        calls=frozenset({"chain", "scale_by_adam", "scale_by_learning_rate", "trace"}),
        options=("--optimizers=others",),
    ),
    "long": Part(
        LONG, at_least=740, calls=frozenset({"adam", "adamw", "amsgrad", "rmsprop", "sgd"})
    ),
    "accumulation": Part((ACCUMULATION,), at_least=5, calls=frozenset({"adam", "sgd"})),
}

MOST = ("optimizers", "sharding")
"""The parts that call all that is ours; the others call a few of it, and are run seldom."""


def run_tests(tests: Iterable[str], *options: str, outcomes: Path) -> dict[str, Any]:
    """Runs tests of the installed optax, and returns the plugin's report."""
    own = ("JAX_", "PYTEST_", "XLA_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    paths = [Path(adaptive_jax.__file__).parents[1], Path(__file__).parent]
    python_path = os.pathsep.join([*map(str, paths), *sys.path])
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": python_path}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # They compile more than they compute.
    process = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"),
            *("-p", "optax_substitution", f"--outcomes={outcomes}"),
            *("-c", os.devnull, f"--rootdir={SITE}"),  # Our settings are not meant for these tests.
            *options,
            *tests,
        ],
        cwd=SITE,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert outcomes.exists(), process.stdout
    report = json.loads(outcomes.read_text())
    assert not report["errors"], "cannot be imported:\n" + "\n".join(report["errors"])
    # 1 says that tests failed; any other code, that they did not run as they should.
    assert process.returncode in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), process.stdout
    assert report["library"] == adaptive_jax.__file__
    return report


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in MOST else pytest.mark.seldom)
        for name in PARTS
    ],
)
def test_what_passes_with_optax_passes_with_ours(name, tmp_path):
    if name == "accumulation":
        pytest.importorskip("flax", reason="optax's tests of accumulation need flax")
    part = PARTS[name]
    in_two = ("-n", "2") if importlib.util.find_spec("xdist") else ()
    modules = [f"optax/{module}" for module in part.modules]
    ours = run_tests(modules, *part.options, *in_two, outcomes=tmp_path / "ours.json")

    tests = ours["tests"]
    not_passed = [key for key, test in tests.items() if test["outcome"] != "passed"]
    lost = {}
    if not_passed:
        own = run_tests(
            not_passed, "--own-functions", *part.options, outcomes=tmp_path / "own.json"
        )
        lost = {
            tests[key].get("label", key): f"{key}\n{tests[key]['why']}"
            for key in not_passed
            if own["tests"][key]["outcome"] == "passed"
        }
    differences = DIFFERENCES.get(name, {})
    unexpected = [why for label, why in lost.items() if label not in differences]
    assert not unexpected, "pass with optax's functions, not with ours:\n" + "\n".join(unexpected)
    assert differences.keys() == lost.keys(), "no longer a difference"

    passed = [test for test in tests.values() if test["outcome"] == "passed"]
    called = {function for test in passed for function in test["called"]}
    assert part.calls <= called, f"not called by any test: {sorted(part.calls - called)}"
    assert sum(bool(test["called"]) for test in passed) >= part.at_least
