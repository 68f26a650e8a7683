"""The documentation site: ``make docs`` builds it into ``build/docs``."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_extensions"))

import fastvae  # noqa: E402  # the extensions of the site are on the path by now

project = "fastvae"
author = copyright = "The fastvae developers"
version = release = fastvae.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "mathml"]
exclude_patterns = ["_extensions", "_templates"]
templates_path = ["_templates"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Every name of a module's __all__ gets a page of its own, wherever in the package it is written.
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
# Members of these classes are PyTorch's and Python's own.
FOREIGN = (
    "Module, Sequential, Linear, Conv2d, Embedding, Distribution, Transform, ABC, tuple, Exception, ContextDecorator"
)
autosummary_context = {"foreign": FOREIGN}
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Shape", "notes_style"), "Reference"]
napoleon_use_rtype = False
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "fastvae"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False

# Documents of the repository that are pages of the site, too.
PAGES = {
    "DESIGN.md": "design.md",
    "CONTRIBUTING.md": "contributing.md",
    "PERFORMANCE.md": "performance.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "bench/results/cpu/table.md": "benchmarks.md",
    "bench/results/cpu/profiles.md": "benchmarks.md",
}
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def follow_links(app: object, file: Path, parent: str, content: list[str]) -> None:
    """Turns the links of a document that a page includes into links of that page."""
    folder = (HERE / file).parent

    def follow(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        if "://" in target:
            return link[0]
        path = os.path.relpath(folder / target, ROOT)
        return f"]({PAGES.get(path) or os.path.relpath(ROOT / path, HERE)}{anchor})"

    content[0] = LINK.sub(follow, content[0])


def mend_docstring(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Keeps ``log |det|`` from being read as a substitution, and torch's docstring of ``forward`` from being shown."""
    if lines[:1] == ["Define the computation performed at every call."]:
        lines[:] = ["Computes what the class describes."]
    lines[:] = [re.sub(r"(?<![\\|])\|(det[^|`]*)\|", r"\\|\1\\|", line) for line in lines]


def setup(app: object) -> None:
    app.connect("include-read", follow_links)  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", mend_docstring)  # type: ignore[attr-defined]
