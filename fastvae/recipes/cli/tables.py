"""The command ``fastvae table``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..files import check_target, replace_file
from ..pictures.errors import draw_errors
from ..settings import check_choices
from ..uses.errors_of_runs import gather_errors
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
        picture: a PNG file of the errors of the runs against their labels and epochs, for the table ssl.

    Raises:
        ValueError: a picture is wanted of another table, or of no run.
    """

    name: Literal["ssl", "one"] = field(metadata={"positional": True, "metavar": "TABLE"})
    runs: tuple[Path, ...] = field(default=(), metadata={"positional": True, "metavar": "RUN"})
    out: Path | None = field(default=None, metadata={"aliases": ("-o",), "metavar": "FILE"})
    picture: Path | None = field(default=None, metadata={"metavar": "FILE"})

    def __post_init__(self) -> None:
        check_choices(self)
        if self.picture is not None and not (self.name == "ssl" and self.runs):
            raise ValueError(f"picture must be of one or more runs of the table ssl, got the table {self.name}")


def table(arguments: Sequence[str]) -> None:
    """Prints a table of the lecture with published figures beside those of runs."""
    options = parse(
        TableOptions, arguments, prog="fastvae table", description="Published figures beside those of your runs."
    )
    for path in (options.out, options.picture):
        if path is not None:
            check_target(path)
    text = "\n".join(write_table(TABLES[options.name], [read_result(run) for run in options.runs])) + "\n"
    print(text, end="")
    if options.out is not None:
        replace_file(options.out, text.encode())
    if options.picture is not None:
        draw_errors(gather_errors(options.runs), options.picture)
