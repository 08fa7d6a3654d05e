"""The documentation builds without a warning, shows all that is exported, and has no dead link."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

import adaptive_jax as aj

pytest.importorskip("sphinx")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / ".docs"
NAMESPACES = (
    "rules", "schedules", "problems", "plotting", "interop.torch", "interop.optax", "interop.keras",
    "maths", "testing",
)  # fmt: skip
# One white pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP6DwABBQECz6AuzQAAAABJRU5ErkJggg=="
NOTEBOOK = {
    "cells": [
        {
            "cell_type": "markdown",
            "id": "text",
            "metadata": {},
            "source": "# A notebook\n\nSee [the README](../../README.md#start), [the changes]"
            "(../../CHANGELOG.md), [a script](../digits.py), [optax](https://optax.readthedocs.io).",
        },
        {
            "cell_type": "code",
            "execution_count": 1,
            "id": "code",
            "metadata": {},
            "source": "raise SystemExit('notebooks are not run')",
            "outputs": [
                {"name": "stdout", "output_type": "stream", "text": "what was committed\n"},
                {
                    "output_type": "display_data",
                    "metadata": {},
                    "data": {"image/png": PNG, "text/plain": "<a figure>"},
                },
            ],
        },
    ],
    "metadata": {"language_info": {"name": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


class Page(HTMLParser):
    """What a page of the site holds."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.identifiers: set[str] = set()
        self.links: list[str] = []
        self.preformatted: list[str] = []
        self.signatures: dict[str, str] = {}
        self.tables = 0
        self.text = ""  # that of the article, without code
        self._open: list[str] = []
        self._signature = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.identifiers |= {values[key] for key in ("id", "name") if values.get(key)}
        self.links += [values[key] for key in ("href", "src") if values.get(key)]
        self.tables += tag == "table"
        if tag in ("article", "pre", "code", "dt"):
            self._open.append(tag)
        if tag == "pre":
            self.preformatted.append("")
        if tag == "dt":
            self._signature = values.get("id") or ""
            self.signatures[self._signature] = ""

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        if "pre" in self._open:
            self.preformatted[-1] += data
        if "dt" in self._open:
            self.signatures[self._signature] += data
        if "article" in self._open and not {"pre", "code"} & set(self._open):
            self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[str, Page]:
    """The pages of the site, built of a fresh copy, with one more notebook."""
    top = tmp_path_factory.mktemp("top")
    built = shutil.ignore_patterns("_build", "api", "notebooks", "__pycache__")
    shutil.copytree(DOCS, top / ".docs", ignore=built)
    for folder in ("examples", "adaptive_jax"):  # what is linked to
        shutil.copytree(ROOT / folder, top / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, top)
    (top / "examples" / "notebooks").mkdir(exist_ok=True)
    (top / "examples" / "notebooks" / "a_test.ipynb").write_text(json.dumps(NOTEBOOK))
    settings = ("-W", "--keep-going", "-n", "-q", "-b", "html")
    command = [sys.executable, "-m", "sphinx", *settings, ".docs", ".docs/_build/html"]
    done = subprocess.run(command, cwd=top, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    html = top / ".docs" / "_build" / "html"
    paths = {path.relative_to(html).as_posix(): path for path in html.rglob("*.html")}
    return {name: Page(path) for name, path in paths.items() if not name.startswith("_static/")}


def documented() -> dict[str, object]:
    """What must be on the site, by its full name."""
    found = {
        f"adaptive_jax.{name}": value
        for name, value in vars(aj).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    exported = {id(value) for value in found.values()}
    for namespace in NAMESPACES:
        module = sys.modules.get(f"adaptive_jax.{namespace}")
        for name, value in vars(module).items() if module else ():
            is_defined_there = str(getattr(value, "__module__", "")).startswith(module.__name__)
            if (
                name[0] != "_"
                and is_defined_there
                and callable(value)
                and id(value) not in exported
            ):
                found[f"{module.__name__}.{name}"] = value
    return found


def equations(docstring: str) -> list[str]:
    """The lines of a docstring that are indented as equations and code are."""
    description = re.split(r"^\w[\w ]*:\n  \S", docstring, flags=re.MULTILINE)[0]
    return re.findall(r"^    +(\S.*)", description, flags=re.MULTILINE)


def test_every_export_is_shown_with_its_signature(site):
    signatures = {}
    for page in site.values():
        signatures |= page.signatures
    assert len(documented()) > 100
    for name, value in documented().items():
        assert name in signatures, name
        if inspect.isfunction(value):
            shown = signatures[name].replace(" ", "")
            place = len(name)
            for parameter in inspect.signature(value).parameters:
                place = shown.find(parameter, place)
                assert place > 0, (name, parameter, shown)


def test_every_export_is_in_the_list_of_all(site):
    listed = {link.partition("#")[2] for link in site["api/index.html"].links}
    assert set(documented()) <= listed


def test_equations_are_preformatted(site):
    shown = "\n".join(text for page in site.values() for text in page.preformatted)
    adam = equations(inspect.getdoc(aj.adam))
    assert any("μ ← β₁μ + (1-β₁)g" in line for line in adam)
    for line in adam:
        assert line in "\n".join(site["api/optimizers.html"].preformatted)
    for name, value in documented().items():
        if inspect.isfunction(value) or inspect.isclass(value):
            for line in equations(inspect.getdoc(value) or ""):
                assert line in shown, (name, line)


def test_no_markup_is_left_in_the_text(site):
    for name, page in site.items():
        if name.startswith("api/"):
            assert not re.search(r"`|\\ |:py:|:param|^ *(Args|Returns|Raises):$", page.text), name


def test_readme_changelog_and_table_of_algorithms_are_rendered(site):
    readme = (ROOT / "README.md").read_text()
    home = site["index.html"]
    blocks = re.findall(r"^```\w*\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 6
    for block in blocks:
        assert block.strip() in {text.strip() for text in home.preformatted}
    assert home.tables == len(re.findall(r"^\|[-:| ]+\|$", readme, flags=re.MULTILINE)) >= 1
    assert site["algorithms.html"].tables >= 1
    assert "Kingma & Ba 2015" in site["algorithms.html"].text
    assert "0.1.0" in site["changelog.html"].text


def test_notebooks_are_shown_as_they_were_committed(site):
    page = site["notebooks/a_test.html"]
    assert "what was committed\n" in page.preformatted
    assert any(link.endswith(".png") and "_images" in link for link in page.links)
    for link in ("../index.html#start", "../changelog.html"):
        assert link in page.links
    assert any(re.fullmatch(r"\.\./_downloads/\w+/digits\.py", link) for link in page.links)
    for notebook in (ROOT / "examples" / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{notebook.stem}.html" in site


def test_every_link_within_the_site_leads_somewhere(site):
    pages = {page.path: page for page in site.values()}
    checked = 0
    for name, page in site.items():
        for link in page.links:
            if re.match(r"\w+:|//", link) or link == "#":
                continue
            target, _, anchor = link.partition("#")
            path = page.path
            if target:
                path = (page.path.parent / unquote(target.partition("?")[0])).resolve()
            assert path.is_file(), f"{name}: {link}"
            if anchor and path in pages:
                assert unquote(anchor) in pages[path].identifiers, f"{name}: {link}"
                checked += 1
    assert checked > 500


def dead_links(markdown: Path) -> list[str]:
    """The relative links of a file that lead to no file, and no heading, of the repository."""
    dead = []
    text = re.sub(r"^```.*?^```$", "", markdown.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        if re.match(r"\w+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = markdown.parent / unquote(target) if target else markdown
        if not path.exists() or (anchor and anchor not in headings(path)):
            dead.append(link)
    return dead


def headings(markdown: Path) -> set[str]:
    """The anchors of the headings of a file, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", markdown.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.glob("*.md"))


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", *PAGES])
def test_relative_links_lead_somewhere(name):
    assert dead_links(ROOT / name) == []


def test_dead_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# The start, in `code`\n[a](page.md) [b](#the-start-in-code) [c](https://example.org)\n"
        "[d](nowhere.md) ![e](no.png) [f](#no-heading) [g](page.md#none) `x[0](h)`\n"
        '<img src="lost.png">\n```python\nf[0](i)\n```\n'
    )
    expected = ["nowhere.md", "no.png", "#no-heading", "page.md#none", "lost.png"]
    assert dead_links(page) == expected


@pytest.fixture
def docs_module(monkeypatch):
    """Imports a module of the documentation."""
    monkeypatch.syspath_prepend(str(DOCS))
    yield importlib.import_module
    for name in ("exports", "docstrings", "sources"):
        sys.modules.pop(name, None)


def test_an_export_on_no_page_fails_the_build(docs_module):
    exports = docs_module("exports").exports
    package = ModuleType("adaptive_jax")
    package.__dict__.update(vars(aj))
    assert "adaptive_jax.adam" in {each.name for each in exports(package)["optimizers"]}
    package.new = lambda: None
    with pytest.raises(LookupError, match=r"^new: exported by adaptive_jax"):
        exports(package)
    del package.new
    package.extras = ModuleType("adaptive_jax.extras")
    with pytest.raises(LookupError, match=r"^extras: "):
        exports(package)


def test_docstrings_become_restructured_text(docs_module):
    restructured = docs_module("docstrings").restructured

    def function(x, *rest):
        pass

    text = (
        "One line with |g|, `Slot`s and name_.\n\n    θ ← θ - η·g\n\n    ν ← g²\n\n"
        "x: what comes, `other`\n  in the second line.\n\nMore: `two\nlines`.\n\n    y = f(x)\n\n"
        "Returns:\n  A pair: two things.\n\nExample:\n  >>> x | `y`\n"
    )
    assert restructured(text, function, {"Slot": "aj.Slot"}).strip() == (
        "One line with \\|g\\|, :py:obj:`Slot <aj.Slot>`\\ s and name\\_.\n\n"
        ".. code-block:: text\n\n    θ ← θ - η·g\n\n    ν ← g²\n\n"
        "Args:\n  x: what comes, ``other``\n    in the second line.\n\nMore: ``two lines``\\ .\n\n"
        ".. code-block:: python\n\n    y = f(x)\n\n"
        ":Returns:\n  A pair: two things.\n\nExample:\n  >>> x | `y`"
    )


def test_links_of_the_repository_lead_to_pages_of_the_site(docs_module):
    with_links = docs_module("sources").with_links
    page = DOCS / "notebooks" / "first.ipynb"
    text = "[a](../../README.md#use) [b](../digits.py) [c](../../nowhere) [d](#here) f[0](x)"
    expected = (
        "[a](../index.md#use) [b](../../examples/digits.py) [c](../../nowhere) [d](#here) f[0](x)"
    )
    assert with_links(text, ROOT / "examples" / "notebooks", page) == expected
