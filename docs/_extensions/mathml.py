"""Formulas as MathML, which browsers draw themselves: pages need no script and no network."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

# A name of two words, which the converter would set in italics.
_TWO_WORDS = re.compile(r"\\operatorname\{(\w+)\\,(\w+)\}")


def to_mathml(node: nodes.Element, display: str) -> str:
    return convert(_TWO_WORDS.sub(r"\\text{\1 \2}", node.astext()), display=display)


def write_inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(to_mathml(node, "inline"))
    raise nodes.SkipNode


def write_block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{to_mathml(node, "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
