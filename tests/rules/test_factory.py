"""A rule becomes functions that people call: derived from it, and refused where they do not fit it."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax
import pytest

import adaptive_jax as aj
from adaptive_jax.rules import _factory
from adaptive_jax.rules._descent import optimizer
from adaptive_jax.rules._factory import Paper, composed, preconditioner
from adaptive_jax.testing import PROMISES


@dataclass(frozen=True)
class Halved(aj.Rule):
    """The gradient, halved or divided by another number.

        d = g/c

    divisor: c > 0.
    twice: True for d = g/c²: the same once more.
    """

    paper = Paper("Nobody 1999", "https://example.org", "page 7")
    divisor: aj.NonNegative = 2.0
    twice: bool = False

    def update(self, grad, slots, param, ctx):
        return grad / self.divisor, {}


@pytest.fixture(autouse=True)
def own_catalogue(monkeypatch):
    """What the tests list is forgotten after them."""
    monkeypatch.setattr(_factory, "CATALOGUE", dict(_factory.CATALOGUE))


def halved(
    learning_rate: Any,
    divisor: Any = 2.0,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    storage: Any = None,
) -> Any:
    """Half a descent."""
    ...


def test_a_function_is_derived_from_its_rule():
    made = optimizer(Halved)(halved)
    assert inspect.signature(made) == inspect.signature(halved)
    assert made.__doc__ == (
        "Half a descent.\n\n    d = g/c\n    θ ← θ - η(d + λθ)\n\n"
        "Nobody 1999, https://example.org, page 7. State: none.\n\nArgs:\n"
        f"  learning_rate: {_factory.SHARED['learning_rate']}\n  divisor: c > 0.\n"
        + made.__doc__.partition("divisor: c > 0.\n")[2]
    )
    assert made.__doc__.endswith(
        "  >>> aj.halved(0.001)\n  halved(learning_rate=0.001, divisor=2.0)"
    )
    assert "Nobody 1999, https://example.org, page 7.\n" in Halved.__doc__
    tx = made(0.1, weight_decay=0.5)
    assert repr(tx) == "halved(learning_rate=0.1, divisor=2.0, weight_decay=0.5)"
    params = jnp.array([2.0])
    updates, state = tx.update(jnp.array([4.0]), tx.init(params), params)
    assert updates == pytest.approx(-0.1 * (4.0 / 2.0 + 0.5 * 2.0))
    assert state == (optax.EmptyState(),) * 3
    assert len(made(0.1).init(params)) == 3  # The default is a number: the decay keeps its place.
    algorithm = _factory.CATALOGUE["halved"]
    assert (algorithm.rule, algorithm.factory, algorithm.whole) == (Halved, made, True)
    assert (algorithm.papers[0].year, algorithm.meanings["divisor"]) == (1999, "c > 0.")


def test_a_difference_that_is_named_is_taken_and_said():
    @preconditioner(Halved, twice=True, paper=None)
    def quartered(divisor: Any = 2.0, twice: bool = True) -> Any:
        """A quarter."""

    assert "    d = g/c\n    twice=True: d = g/c²\n\nState: none." in quartered.__doc__
    assert repr(quartered()) == "quartered(divisor=2.0)"
    assert not _factory.CATALOGUE["quartered"].whole


def test_what_does_not_fit_a_call_is_said_in_the_words_of_python_or_of_the_library():
    made = optimizer(Halved)(halved)
    with pytest.raises(TypeError, match=r"halved\(\) missing 1 required positional argument"):
        made()
    with pytest.raises(TypeError, match=r"halved\(\) takes from 1 to 4 positional arguments"):
        made(1, 1, 1, 1, 1)
    with pytest.raises(TypeError, match="halved takes no argument 'lr': here it is learning_rate"):
        made(lr=1)
    with pytest.warns(
        UserWarning, match="learning_rate=3.0 in halved: whatever the size"
    ) as warned:
        made(3.0)
    assert warned[0].filename == __file__


def rule(docstring: str, **attributes: Any) -> Any:
    return dataclass(frozen=True)(type("Other", (Halved,), {"__doc__": docstring, **attributes}))


NOT_SAID = "Nothing.\n\n    d = g\n\nbias: b."


@pytest.mark.parametrize(
    ("decorator", "message"),
    [
        (
            optimizer(Halved, divisor=3.0),
            "halved: divisor=3.0 stands above it, but its default is 2.0 here and 2.0 in its rule, Halved. "
            "What stands above is the default here, to the letter, and only where the rule has "
            "another one.",
        ),
        (
            optimizer(Halved, twice=True),
            "halved: twice=True stands above it, and is no argument of it that is a field of Halved: "
            "these are divisor.",
        ),
        (
            optimizer(rule("Its own.\n\n    d = g\n\nEnd.", divisor=4.0, paper=None,
                           __annotations__={"divisor": aj.NonNegative})),
            "halved: the default of divisor is 2.0 here and 4.0 in its rule, Other. If it is meant, "
            "name it in the decorator above: divisor=2.0. If not, make it 4.0.",
        ),
        (
            optimizer(rule(NOT_SAID)),
            "halved: Other has no paper. Say whose work it is, paper = Paper(authors, link, part), or "
            "paper = None, in the class itself.",
        ),
        (
            optimizer(rule(NOT_SAID, paper=None, bias=1.0, scale=1.0,
                           __annotations__={"bias": aj.Hyper, "scale": aj.Hyper})),
            "halved: the docstring of Other does not say what its field scale is, in a line "
            "`scale: meaning`.",
        ),
        (
            optimizer(rule("Nothing.", paper=None)),
            "halved: the docstring of Other has no equation, a paragraph indented by four spaces.",
        ),
        (
            optimizer(rule(NOT_SAID, paper="a book")),
            "halved: paper='a book' must be a Paper(authors, link, part), a tuple of them, or None.",
        ),
        (
            optimizer(rule(NOT_SAID, paper=None, bias=1.0, __annotations__={"bias": float})),
            "halved: bias of Other is a number, but static, so that each new value compiles again: "
            "annotate it Decay, Fraction, NonNegative or Hyper.",
        ),
        (
            preconditioner(Halved),
            "halved: nothing would use its argument learning_rate, which is no field of Halved (divisor, "
            "twice; a field has an annotation).",
        ),
        (
            composed(rule(NOT_SAID, paper=None)),
            "odd: its argument strange is no field of Other, and no argument of all optimizers. Say "
            "what it is in a line `strange: meaning`.",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_when_the_module_is_imported(decorator, message):
    def odd(strange: Any) -> Any:
        """What takes an argument of its own."""

    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        decorator(odd if message.startswith("odd") else halved)
    assert {"halved", "odd"}.isdisjoint(_factory.CATALOGUE)


def test_a_whole_optimizer_takes_what_all_take_and_a_name_is_taken_once():
    def new(learning_rate: Any) -> Any:
        """Without weight decay."""

    def adam(divisor: Any = 2.0) -> Any:
        """Another one."""

    needed = "learning_rate, weight_decay, mask, storage: add weight_decay"
    with pytest.raises(TypeError, match=rf"^new: a whole optimizer takes {needed}\.$"):
        optimizer(Halved)(new)
    both = rf"^adam: both adaptive_jax\.rules\.adam and {re.escape(__name__)} define it\. Rename"
    with pytest.raises(TypeError, match=both):
        preconditioner(Halved)(adam)
    lion = dataclass(frozen=True)(type("Lion", (Halved,), {"__doc__": NOT_SAID, "paper": None}))
    both = rf"^halved: both adaptive_jax\.rules\.sign and {re.escape(__name__)} define a rule Lion"
    with pytest.raises(TypeError, match=both):
        optimizer(lion)(halved)


def test_a_decorator_needs_its_rule_and_a_function_what_the_rule_needs():
    def kept(divisor: Any = 2.0) -> Any:
        """Without a storage."""

    slots = rule(NOT_SAID, paper=None, slots={"mu": aj.Slot()})
    with pytest.raises(TypeError, match="Other has slots: add `storage: Any = None`"):
        preconditioner(slots)(kept)
    for decorator in (optimizer, preconditioner, composed):
        with pytest.raises(TypeError, match=rf"write @{decorator.__name__}\(YourRule\)"):
            decorator(kept)


@pytest.mark.parametrize(
    "entries",
    [("Nobody", "https://example.org"), ("https://example.org/1999", "Nobody 1999")],
)
def test_a_paper_has_a_year_and_an_address(entries):
    with pytest.raises(ValueError, match="authors end in the year"):
        Paper(*entries)


def test_a_rule_of_ones_own_needs_none_of_it():
    @dataclass(frozen=True)
    class Mine(aj.Rule):
        factor: aj.Hyper = 0.5

        def update(self, grad, slots, param, ctx):
            return self.factor * grad, {}

    tx = aj.transform(Mine(), aj.LearningRate(0.1))
    PROMISES["its hyperparameters are data"](tx)


def test_the_catalogue_is_all_that_is_exported():
    for name, algorithm in _factory.CATALOGUE.items():
        assert getattr(aj, name) is algorithm.factory
        assert getattr(aj.rules, algorithm.rule.__name__) is algorithm.rule
        is_composed = algorithm.name in ("sgd", "lars", "lamb")  # Of rules of other families.
        assert algorithm.factory.__module__ == algorithm.rule.__module__ or is_composed
