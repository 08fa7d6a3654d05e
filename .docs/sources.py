"""What the site shows of the repository beside the package: README, changelog and notebooks."""

import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

DOCS = Path(__file__).parent
ROOT = DOCS.parent
NOTEBOOKS = ROOT / "examples" / "notebooks"
# What is a page of the site, or a folder of pages.
PAGES = {
    ROOT / "README.md": DOCS / "index.md",
    ROOT / "CHANGELOG.md": DOCS / "changelog.md",
    NOTEBOOKS: DOCS / "notebooks",
}


def copy_notebooks(directory: Path) -> None:
    """Copies the notebooks, with the outputs they have, and writes a page that lists them."""
    shutil.rmtree(directory, ignore_errors=True)
    if NOTEBOOKS.exists():
        shutil.copytree(NOTEBOOKS, directory, ignore=shutil.ignore_patterns(".*"))
    directory.mkdir(exist_ok=True)
    names = sorted(path.stem for path in directory.glob("*.ipynb"))
    contents = ["# Notebooks", "", "As they were run, from `examples/notebooks/`.", ""]
    contents += ["```{toctree}", "", *names, "```", ""]
    (directory / "index.md").write_text("\n".join(contents))


def with_links(text: str, folder: Path, page: Path) -> str:
    """Text in Markdown whose relative links, right in a folder of the repository, are right on a page.

    A link that leads nowhere stays as it is, and the build says so.
    """

    def rewritten(link: re.Match) -> str:
        target, hash_sign, anchor = link[1].partition("#")
        path = Path(os.path.normpath(folder / unquote(target)))
        if not path.exists():
            return link[0]
        for source, shown in PAGES.items():
            if path.is_relative_to(source):
                path = shown / path.relative_to(source)
        if path.is_dir():
            path = path / "index.md"
        return f"]({os.path.relpath(path, page.parent)}{hash_sign}{anchor})"

    return re.sub(r"\]\((?!#|\w+:)([^)\s]+)\)", rewritten, text)
