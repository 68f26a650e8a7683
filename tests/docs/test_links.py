"""Relative links of every page lead to a file, and their anchors to a heading."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import DOCS, ROOT, anchors_of, find_pages, links_of, name_of


@pytest.mark.parametrize("page", find_pages(), ids=name_of)
def test_links_lead_somewhere(page):
    broken = []
    for link in links_of(page):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        found = file.exists() and file.is_relative_to(ROOT)
        if not found or (anchor and anchor not in anchors_of(file)):
            broken.append(link)
    assert not broken


def test_every_picture_is_in_the_gallery():
    shown = set(links_of(DOCS / "gallery.md"))
    pictures = {f"pictures/{path.name}" for path in (DOCS / "pictures").iterdir()}
    assert pictures <= shown


def test_every_page_is_in_the_contents():
    contents = (DOCS / "index.md").read_text(encoding="utf-8")
    entries = set(re.findall(r"^(?:[^<`\n]+<)?([\w/]+)>?$", contents, re.MULTILINE))
    pages = {name_of(page).removeprefix("docs/").removesuffix(".md") for page in find_pages() if DOCS in page.parents}
    assert pages - {"index"} <= entries
