"""How a rule becomes functions that people call: checked, documented and listed from the rule itself.

The decorators `optimizer` (in `_descent`), `preconditioner` and `composed` take the rule; the paper, where
that is not the rule's; and by their names the defaults that are not those of the rule.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .._core.documentation import documented, equation_of, meanings_of, paragraphs
from .._core.rule import Rule
from .._core.rule import fields as kinds_of_fields
from .._core.storage import named
from .._core.transform import build
from .._core.transformation import Transformation
from ._calls import refuse_unknown, warn_of_large

Factory = TypeVar("Factory", bound=Callable[..., Any])


@dataclass(frozen=True)
class Paper:
    """Who published a rule and when, where it can be read, and which part of it this is."""

    authors: str
    link: str
    part: str = ""

    def __post_init__(self) -> None:
        if not (re.search(r" \d{4}$", self.authors) and re.match("https?://", self.link)):
            raise ValueError(
                f"{self!r}: authors end in the year, as in 'Kingma & Ba 2015', and link is an address."
            )

    @property
    def year(self) -> int:
        """The end of `authors`."""
        return int(self.authors[-4:])

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.authors, self.link, self.part)))


@dataclass(frozen=True)
class Algorithm:
    """A row of the catalogue: what documentation and tests know of a function that makes an optimizer.

    rule: its direction, unless it is one of the variants.
    papers: whose work it is.
    variants: from the arguments that choose another rule, as in "centered=True", to that rule.
    also: rules that stand behind the first one.
    """

    name: str
    factory: Callable[..., Any]
    rule: type[Rule]
    papers: tuple[Paper, ...]
    variants: Mapping[str, type[Rule]]
    also: tuple[type[Rule], ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it is a whole optimizer, and no piece for a chain.

        All decay weights, but for those with Polyak's step, which have none.
        """
        is_piece = self.name.startswith("scale_by_")
        decays = {"learning_rate", "weight_decay", "mask", "storage"} <= {*self.parameters}
        return decays or ("max_learning_rate" in self.parameters and not is_piece)

    @property
    def year(self) -> int:
        """When it was published: it is listed by that, and behind all others without a paper."""
        return self.papers[0].year if self.papers else 10_000

    @functools.cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Its arguments."""
        return inspect.signature(self.factory).parameters

    @functools.cached_property
    def meanings(self) -> dict[str, str]:
        """What its arguments mean: by its own docstring, or its rules', or everywhere."""
        rules = [*self.also, *self.variants.values(), self.rule]
        own = meanings_of(inspect.unwrap(self.factory))
        return {**SHARED, **{k: v for rule in rules for k, v in meanings(rule).items()}, **own}


CATALOGUE: dict[str, Algorithm] = {}
"""Every optimizer and every piece for a chain by its name: what README, documentation and tests walk.

`python tests/write_catalogue.py` writes down what is derived from it.
"""

SHARED = {
    "learning_rate": "the step size η, >= 0: a number, an array of shape (), or a schedule.",
    "weight_decay": "the decoupled weight decay λ, >= 0: θ ← θ - ηλθ; None or 0 for none. With one, "
    "`update` needs the parameters.",
    "mask": "which arrays decay: a tree of bools, a prefix of one, or a function of the parameters.",
    "mu_dtype": "the dtype of the first moment, float32 at least if None.",
    "accumulator_dtype": "the dtype of the trace, float32 at least if None.",
    "state_dtype": "the dtype of z, float32 at least if None.",
    "storage": 'how the slots are kept: None or "float32" for float32 at least, "bfloat16", "int8", '
    '"int16", "factored" (for slots that are never negative), a `Storage`, or a mapping from names of '
    "slots to these.",
}
"""The arguments that mean the same everywhere. All others are described in their rule."""

_DTYPES = {"mu_dtype": "mu", "accumulator_dtype": "trace", "state_dtype": "z"}
"""The arguments that are the dtype of one slot."""

OF_THE_RULE = object()
"""A paper that is the one of the rule."""


def preconditioner(
    rule: type[Rule], *, paper: Any = OF_THE_RULE, **differences: Any
) -> Callable[[Factory], Factory]:
    """The rule alone, for a chain, under the signature of the stub below it."""

    def make(factory: Factory, values: Mapping[str, Any]) -> Transformation:
        return build(factory, instance(rule, values), storage=storage_of(values))

    check_rule("preconditioner", rule)
    return lambda stub: listed(stub, rule, make, paper=paper, differences=differences)


def composed(
    rule: type[Rule],
    *,
    variants: Mapping[str, type[Rule]] | None = None,
    also: tuple[type[Rule], ...] = (),
    renamed: Mapping[str, str] | None = None,
    paper: Any = OF_THE_RULE,
    **differences: Any,
) -> Callable[[Factory], Factory]:
    """A function that puts its rules together itself: checked, documented and listed like the others.

    Arguments that no rule has are described in its docstring, in lines `name: meaning`.

    variants: from the arguments that choose another rule, as in "centered=True", to that rule.
    also: rules that stand behind the first one, whose fields are arguments too.
    renamed: from arguments to the fields that they are, "b1" or "Rule.b1", where these have other names.
    """
    check_rule("composed", rule)
    return lambda function: listed(
        function,
        rule,
        None,
        variants=variants or {},
        also=also,
        renamed=renamed or {},
        paper=paper,
        differences=differences,
    )


def listed(
    function: Factory,
    rule: type[Rule],
    make: Callable[[Any, Mapping[str, Any]], Transformation] | None,
    *,
    variants: Mapping[str, type[Rule]] = {},  # It is only read.
    also: tuple[type[Rule], ...] = (),
    renamed: Mapping[str, str] = {},
    paper: Any = OF_THE_RULE,
    differences: Mapping[str, Any],
    uses: tuple[str, ...] = (),
) -> Factory:
    """The function that people call, in the catalogue.

    It is refused, by name, for a default that differs from the rule's and is not named among the
    differences, for a field or an argument without a meaning, for an argument that nothing would use,
    for a name that is taken, and where there is no paper.

    make: what makes the transformation, of that function and the values of all its arguments; None if
      the function below the decorator does.
    uses: what make takes beside the rule's fields and the storage.
    """
    name, parameters = function.__name__, inspect.signature(function).parameters
    names = list(parameters)
    defaults = {each.name: each.default for each in parameters.values()}
    takes_any_rate = getattr(rule, "takes_any_rate", False)

    @functools.wraps(function)
    def factory(*args: Any, **kwargs: Any) -> Any:
        refuse_unknown(name, names, kwargs)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        warn_of_large(name, given, takes_any_rate)
        made = function(*args, **kwargs)  # Of a stub, Python's own words for what does not fit.
        return made if make is None else make(factory, {**defaults, **given})

    if renamed:
        factory.fields = renamed  # type: ignore[attr-defined]  # `Lifted.arguments` asks for it.
    rules = (rule, *variants.values(), *also)
    papers = _papers(name, rule, paper)
    algorithm = Algorithm(name, factory, rule, papers, variants, also)
    if name in CATALOGUE and CATALOGUE[name].factory.__module__ != function.__module__:
        raise TypeError(
            f"{name}: both {CATALOGUE[name].factory.__module__} and {function.__module__} define it. "
            "Rename one."
        )
    for other in CATALOGUE.values():
        if other.rule.__name__ == rule.__name__ and other.rule.__module__ != rule.__module__:
            raise TypeError(
                f"{name}: both {other.rule.__module__} and {rule.__module__} define a rule "
                f"{rule.__name__}, and aj.rules has room for one. Rename one."
            )
    if make is not None:
        _check_stub(name, names, rule, (*fields(rule), "storage", *_DTYPES, *uses))
    _check_defaults(name, defaults, rules, differences)
    if sys.flags.optimize < 2:  # Without docstrings there are no meanings.
        _check_meanings(algorithm, rules)
        for each in rules:
            _name_the_paper(each)
        factory.__doc__ = _docstring(algorithm, function, rules)
        documented(algorithm.meanings)(factory)
    CATALOGUE[name] = algorithm
    return factory  # type: ignore[return-value]


@functools.cache
def fields(rule: type[Rule]) -> Mapping[str, Any]:
    """The fields of a rule with their defaults."""
    kinds_of_fields(rule)  # Raises for what is not a frozen dataclass.
    return {each.name: each.default for each in dataclasses.fields(rule)}  # type: ignore[arg-type]


def meanings(rule: type[Rule]) -> dict[str, str]:
    """What a rule's docstring, or those of the rules that it is derived from, say of its fields."""
    known = {k: v for base in reversed(rule.__mro__) for k, v in meanings_of(base).items()}
    return {name: known[name] for name in fields(rule) if name in known}


def option(meaning: str) -> tuple[str, str] | None:
    """Of a meaning such as "True for d = γv + g, one step ahead.": the value, and what it stands for."""
    found = re.match(r'(True|False|"\w+") for (.+?)(?:[.:;](?: .*)?)?$', meaning)
    return (found[1], found[2]) if found else None


def instance(rule: type[Rule], values: Mapping[str, Any]) -> Rule:
    """The rule with these values of its fields."""
    return rule(**{name: values[name] for name in fields(rule) if name in values})


def storage_of(values: Mapping[str, Any]) -> Any:
    """The storage among the values of arguments, and the dtype of a slot in it."""
    storage = values.get("storage")
    for argument, slot in _DTYPES.items():
        if argument in values:
            storage = named.with_dtype(storage, slot, values[argument])
    return storage


def _papers(name: str, rule: type[Rule], paper: Any) -> tuple[Paper, ...]:
    if paper is OF_THE_RULE:
        if "paper" not in vars(rule):
            raise TypeError(
                f"{name}: {rule.__name__} has no paper. Say whose work it is, paper = Paper(authors, "
                "link, part), or paper = None, in the class itself."
            )
        paper = vars(rule)["paper"]
    papers = () if paper is None else paper if isinstance(paper, tuple) else (paper,)
    if not all(isinstance(each, Paper) for each in papers):
        raise TypeError(
            f"{name}: paper={paper!r:.80} must be a Paper(authors, link, part), a tuple of them, or None."
        )
    return papers


def _check_defaults(
    name: str,
    defaults: Mapping[str, Any],
    rules: tuple[type[Rule], ...],
    differences: Mapping[str, Any],
) -> None:
    """Raises a TypeError unless all defaults are the rule's, but for those that are named as others."""
    owners = {field: rule for rule in reversed(rules) for field in fields(rule)}
    for argument, value in differences.items():
        if argument not in defaults or argument not in owners:
            raise TypeError(
                f"{name}: {argument}={value!r} stands above it, and is no argument of it that is a "
                f"field of {rules[0].__name__}: these are "
                f"{', '.join(each for each in owners if each in defaults)}."
            )
    for argument, owner in owners.items():
        if argument not in defaults:
            continue
        here, there = _default(defaults[argument]), _default(fields(owner)[argument])
        if argument not in differences:
            if here != there:
                raise TypeError(
                    f"{name}: the default of {argument} is {here} here and {there} in its rule, "
                    f"{owner.__name__}. If it is meant, name it in the decorator above: "
                    f"{argument}={here}. If not, make it {there}."
                )
        elif here != repr(differences[argument]) or here == there:
            raise TypeError(
                f"{name}: {argument}={differences[argument]!r} stands above it, but its default is "
                f"{here} here and {there} in its rule, {owner.__name__}. What stands above is the "
                "default here, to the letter, and only where the rule has another one."
            )


def _default(value: Any) -> str:
    """A default as it is written."""
    return "none" if value in (inspect.Parameter.empty, dataclasses.MISSING) else repr(value)


def check_rule(decorator: str, rule: Any) -> None:
    """Raises a TypeError for a decorator without its rule."""
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise TypeError(
            f"@{decorator} takes a rule, got {rule!r:.80}: write @{decorator}(YourRule) above the "
            "function, where YourRule is derived from Rule."
        )


def _check_stub(name: str, names: Sequence[str], rule: type[Rule], used: Sequence[str]) -> None:
    """Raises a TypeError for an argument that nothing would use, and for a storage left out."""
    for argument in names:
        if argument not in used:
            close = difflib.get_close_matches(argument, used, 1)
            raise TypeError(
                f"{name}: nothing would use its argument {argument}, which is no field of "
                f"{rule.__name__} ({', '.join(fields(rule))}; a field has an annotation)."
                + (f" Is {close[0]} meant?" if close else "")
            )
    if rule.slots and "storage" not in names:
        raise TypeError(
            f"{name}: {rule.__name__} has slots: add `storage: Any = None`, behind `*`."
        )


def _check_meanings(algorithm: Algorithm, rules: tuple[type[Rule], ...]) -> None:
    """Raises a TypeError unless every argument and every field of the rules has a meaning."""
    for rule in rules:
        numbers = [k for k in kinds_of_fields(rule).static if isinstance(fields(rule)[k], float)]
        if numbers:
            raise TypeError(
                f"{algorithm.name}: {numbers[0]} of {rule.__name__} is a number, but static, so that "
                "each new value compiles again: annotate it Decay, Fraction, NonNegative or Hyper."
            )
        said = {*SHARED, *meanings(rule)}
        if unknown := [each for each in fields(rule) if each not in said]:
            raise TypeError(
                f"{algorithm.name}: the docstring of {rule.__name__} does not say what its field "
                f"{unknown[0]} is, in a line `{unknown[0]}: meaning`."
            )
        if not equation_of(rule):
            raise TypeError(
                f"{algorithm.name}: the docstring of {rule.__name__} has no equation, a paragraph "
                "indented by four spaces."
            )
    said = {*algorithm.meanings}
    if unknown := [each for each in algorithm.parameters if each not in said]:
        raise TypeError(
            f"{algorithm.name}: its argument {unknown[0]} is no field of {algorithm.rule.__name__}, and "
            f"no argument of all optimizers. Say what it is in a line `{unknown[0]}: meaning`."
        )


def _name_the_paper(rule: type[Rule]) -> None:
    """Puts the paper of a rule into its docstring, behind the equation."""
    papers = _papers(rule.__name__, rule, OF_THE_RULE)
    said = "; ".join(map(str, papers)) + "."
    texts = paragraphs(rule)
    if papers and said not in texts:
        texts.insert(texts.index(equation_of(rule)) + 1, said)
        rule.__doc__ = "\n\n".join(texts)


def _docstring(algorithm: Algorithm, function: Any, rules: tuple[type[Rule], ...]) -> str:
    """All of it but for the arguments: what the function says itself, and what its rules say."""
    (head, *texts), (rule, *others) = paragraphs(function), rules
    example = [text for text in texts if text.startswith("Example:\n")]
    elsewhere = (*(f"{name}: " for name in algorithm.parameters), "    ", "Example:\n")
    said = [text for text in texts if not text.startswith(elsewhere)]
    papers = [*algorithm.papers, *(p for r in others for p in _papers("", r, OF_THE_RULE))]
    source = "; ".join(dict.fromkeys(map(str, papers))) + ". " if papers else ""
    states = [f"State: {_state(rule, *algorithm.also)}"] + [
        f"with {which} {_state(variant)}"
        for which, variant in algorithm.variants.items()
        if numbers_kept(variant) != numbers_kept(rule)
    ]
    source = textwrap.fill(f"{source}{'; '.join(states)}.", 96, break_on_hyphens=False)
    equation = equation_of(function) or _equation(algorithm)
    return "\n\n".join([head, equation, source, *said, *(example or [_example(algorithm)])])


def _state(*rules: type[Rule]) -> str:
    """What rules keep."""
    kept = sum(map(numbers_kept, rules))
    if not kept and sum(map(_elements_kept, rules)) >= _SIDE:
        return "one float32 per row and per column"
    number = ("none", "one", "two", "three", "four", "five", "six")[kept]
    return f"{number} float32 per parameter" if kept else number


def numbers_kept(rule: type[Rule]) -> int:
    """How many numbers a rule keeps for each of a large square matrix."""
    return round(_elements_kept(rule) / _SIDE**2)


_SIDE = 4096


def _elements_kept(rule: type[Rule]) -> int:
    slots: Any = rule.slots
    if not isinstance(slots, Mapping):  # A property.
        needed = [k for k, default in fields(rule).items() if default is dataclasses.MISSING]
        slots = rule(**{name: _example_value(rule, name) for name in needed}).slots
    shapes = [slot.shape_for((_SIDE, _SIDE)) for slot in slots.values()]
    return sum(math.prod(shape) for shape in shapes if shape is not None)


def _equation(algorithm: Algorithm) -> str:
    """That of the rule with the options that are the default here, and the step of the parameters."""
    lines = [equation_of(algorithm.rule)]
    for name, meaning in meanings(algorithm.rule).items():
        chosen = option(meaning)
        if chosen and name in algorithm.parameters:
            value = repr(algorithm.parameters[name].default).replace("'", '"')
            if chosen[0] == value:
                lines.append(f"    {name}={value}: {chosen[1]}")
    if algorithm.whole:
        lines.append("    θ ← θ - η(d + λθ)")
    return "\n".join(lines)


def _example(algorithm: Algorithm) -> str:
    """The shortest call, and how it is shown."""
    call, shown = [], []
    for name, parameter in algorithm.parameters.items():
        value = parameter.default
        if value is parameter.empty:
            value = _example_value(algorithm.rule, name)
            call.append(f"{value!r}")
        is_off = name == "weight_decay" and value == 0
        if value is not None and not isinstance(value, (bool, str)) and not is_off:
            is_static = name in kinds_of_fields(algorithm.rule).static
            shown.append(f"{name}={value if is_static else float(value)!r}")
    name = algorithm.name
    return (
        f"Example:\n  >>> import adaptive_jax as aj\n  >>> aj.{name}({', '.join(call)})\n"
        f"  {name}({', '.join(shown)})"
    )


def _example_value(rule: type[Rule], name: str) -> float:
    """A value of an argument that has no default."""
    if name == "learning_rate":
        return 0.1 if getattr(rule, "takes_any_rate", False) else 1e-3
    interval = kinds_of_fields(rule)[1].get(name)
    return 0.9 if interval and interval.high == 1 else 1.0
