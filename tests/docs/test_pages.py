"""Every ``python`` block of every page runs: the blocks of a page in order, in one namespace, on a CPU."""

from __future__ import annotations

import ast

import pytest
import torch

from tests.docs.pages import find_pages, name_of, read_blocks

PAGES = [page for page in find_pages() if any(language == "python" for language, _, _ in read_blocks(page))]
KNOWN = {"", "python", "console", "text", "toml", "mermaid", "{toctree}", "{include}", "{eval-rst}", "{note}"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": "__main__"}
    for language, first, text in read_blocks(page):
        if language == "python":
            # Errors show the line of the page.
            tree = ast.increment_lineno(ast.parse(text), first - 1)
            exec(compile(tree, str(page), "exec"), namespace)


def test_readme_has_three_examples():
    readme = next(page for page in PAGES if name_of(page) == "README.md")
    assert sum(language == "python" for language, _, _ in read_blocks(readme)) == 3


@pytest.mark.parametrize("page", find_pages(), ids=name_of)
def test_blocks_have_a_known_language(page):
    unknown = {language for language, _, _ in read_blocks(page)} - KNOWN
    assert not unknown
