"""The command ``fastvae table``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..files import check_target, replace_file
from ..settings import check_choices
from ..uses.tables import TABLES, read_result, write_table
from .settings import parse

__all__ = ["TableOptions", "table"]


@dataclass(frozen=True)
class TableOptions:
    """The table.

    Args:
        name: the table of semi-supervised learning, or table 1.
        runs: folders of finished runs of fastvae train and fastvae classify.
        out: a Markdown file that the table is written to, too.
    """

    name: Literal["ssl", "one"] = field(metadata={"positional": True, "metavar": "TABLE"})
    runs: tuple[Path, ...] = field(default=(), metadata={"positional": True, "metavar": "RUN"})
    out: Path | None = field(default=None, metadata={"aliases": ("-o",), "metavar": "FILE"})

    def __post_init__(self) -> None:
        check_choices(self)


def table(arguments: Sequence[str]) -> None:
    """Prints a table of the lecture with published figures beside those of runs."""
    options = parse(
        TableOptions, arguments, prog="fastvae table", description="Published figures beside those of your runs."
    )
    if options.out is not None:
        check_target(options.out)
    text = "\n".join(write_table(TABLES[options.name], [read_result(run) for run in options.runs])) + "\n"
    print(text, end="")
    if options.out is not None:
        replace_file(options.out, text.encode())
