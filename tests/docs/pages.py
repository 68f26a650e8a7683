"""The documents of the repository, and what is written in them: code, headings and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GENERATED = DOCS / "api" / "generated"

_FENCE = re.compile(r"^(`{3,}|:{3,})\s*(\S*)")
_HEADING = re.compile(r"^#{1,6}\s+(.*)")
_LINK = re.compile(r"\]\(([^()\s]+)\)")


def find_pages() -> list[Path]:
    """Every Markdown document that is written by hand: those of the root and those of the site."""
    site = [page for page in DOCS.rglob("*.md") if GENERATED not in page.parents]
    return sorted([*ROOT.glob("*.md"), *site])


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def read_blocks(page: Path) -> Iterator[tuple[str, int, str]]:
    """The fenced blocks of a page: language, number of the first line inside, text."""
    fence, language, first, lines = "", "", 0, [""]
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        found = _FENCE.match(line)
        if not fence and found:
            fence, language, first, lines = found[1], found[2], number + 1, []
        elif fence and line.strip() == fence:
            yield language, first, "\n".join(lines) + "\n"
            fence = ""
        elif fence:
            lines.append(line)
    assert not fence, f"{page}: the block that begins before line {first} does not end"


def read_prose(page: Path) -> list[str]:
    """The lines of a page outside its fenced blocks."""
    prose, fence = [], ""
    for line in page.read_text(encoding="utf-8").splitlines():
        found = _FENCE.match(line)
        if not fence and found:
            fence = found[1]
        elif fence:
            fence = "" if line.strip() == fence else fence
        else:
            prose.append(line)
    return prose


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub and the site give to the headings of a page."""
    anchors: set[str] = set()
    for line in read_prose(page):
        if found := _HEADING.match(line):
            words = re.sub(r"[^\w\- ]", "", found[1].lower()).strip()
            anchors.add(words.replace(" ", "-"))
    return anchors


def links_of(page: Path) -> list[str]:
    """The targets of links and pictures in the prose of a page."""
    prose = re.sub(r"`[^`]*`", "", "\n".join(read_prose(page)))
    return _LINK.findall(prose)
