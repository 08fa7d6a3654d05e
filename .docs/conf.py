"""The documentation site. To build it, in the top folder, after `pip install -e ".[docs]"`:

    python -m sphinx -W --keep-going -n -b html .docs .docs/_build/html

`-b linkcheck` in place of `-b html` asks for every external link whether it is there.
"""

import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import docstrings  # noqa: E402  # after the line that makes it importable
import exports  # noqa: E402
import sources  # noqa: E402

import adaptive_jax  # noqa: E402

project = "adaptive_jax"
version = release = installed_version("adaptive_jax")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "sphinx_book_theme"
html_title = f"{project} {version}"
html_theme_options = {
    "show_toc_level": 2,
    "navbar_persistent": [],  # the search field is in the sidebar
    "footer_content_items": [],
}
html_static_path = ["_static"]
html_css_files = ["site.css"]

smartquotes_action = "D"  # dashes; "float32" is to be typed as it stands
highlight_language = "none"  # of fences that name none, such as the README's tree of files
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"  # the outputs are those that were committed

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_custom_sections = [
    ("Raises", "params_style"),  # "TypeError, ValueError: …" is two names
    ("Class attributes", "params_style"),
    ("Fields", "params_style"),
]

# Types in signatures that are documented on other sites, or nowhere. (Inventories of other sites
# are not fetched: a build needs no network.)
nitpick_ignore_regex = [("py:.*", r"(?!adaptive_jax\.\w+$).*")]

SHOWN = exports.exports(adaptive_jax)
exports.write_pages(SHOWN, DOCS / "api")
sources.copy_notebooks(DOCS / "notebooks")

EXPORTS = {export.name: export for found in SHOWN.values() for export in found}
NAMES = {
    prefix + name.removeprefix("adaptive_jax."): name
    for export in EXPORTS.values()
    for name in (export.name, *(f"{export.name}.{member}" for member in export.members))
    for prefix in ("", "aj.")
}


def links_from(name):
    """From what a docstring may name to what that is: what is beside it goes before the rest."""
    others = {short: full for short, full in NAMES.items() if full != name}
    links = dict(others)
    name = name.removeprefix("adaptive_jax.")
    for place in (f"{name.rpartition('.')[0]}.", f"{name}."):
        links |= {
            short.removeprefix(place): full
            for short, full in others.items()
            if short.startswith(place)
        }
    return links


def process_docstring(app, what, name, obj, options, lines):
    """Turns a docstring of this library into what napoleon reads."""
    docstring = EXPORTS[name].docstring if name in EXPORTS else "\n".join(lines)
    lines[:] = docstrings.restructured(docstring, obj, links_from(name)).split("\n")


def process_signature(app, what, name, obj, options, signature, returns):
    """Leaves out `Any`, which says nothing, and names exports by the names they have here."""
    signature = re.sub(r": ~typing\.Any\b(?! \|)", "", signature or "")
    returns = "" if returns == "~typing.Any" else returns or ""
    return with_exports(signature) or None, with_exports(returns) or None


def with_exports(annotations):
    """Annotations whose types are exports under the names that they are exported by."""
    return re.sub(
        r"adaptive_jax\.[\w.]+\.(\w+)", lambda found: NAMES.get(found[1], found[0]), annotations
    )


def process_include(app, path, page, content):
    """Makes the relative links of README and changelog right on the page that includes them."""
    content[0] = sources.with_links(content[0], sources.ROOT, DOCS / page)


def process_source(app, page, content):
    """Makes the relative links of a notebook right where its copy is, and those of a page to notebooks."""
    original = DOCS / page
    if page.startswith("notebooks/"):
        original = sources.NOTEBOOKS / page.removeprefix("notebooks/")
    content[0] = sources.with_links(content[0], original.parent, DOCS / page)


def setup(app):
    """Connects the functions above."""
    app.connect("autodoc-process-docstring", process_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", process_signature)
    app.connect("include-read", process_include)
    app.connect("source-read", process_source)
