"""Who does an evaluation: the processes that share its chunks, and the file that an interrupted one goes on from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from .chunks import Chunk, Chunks, read_chunks, write_chunks

__all__ = ["ALONE", "Job", "Ledger", "Processes", "join_processes"]

ValueT = TypeVar("ValueT")

# How long a process waits for another's chunk. If one fails, torchrun ends all.
LONGEST = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """The processes that share an evaluation, as one of them sees it.

    Args:
        rank: its number.
        count: how many there are.
        local: its number on its machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process prints, and writes the files."""
        return self.rank == 0

    def gather(self, value: ValueT) -> list[ValueT]:
        """The values of all processes, in their order, on each of them."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    def load(self, function: Callable[[], ValueT]) -> ValueT:
        """The result of a function that fills a cache: one process of each machine calls it before the others."""
        if self.local == 0:
            found = function()
        self.gather(None)
        return found if self.local == 0 else function()

    def choose_device(self, device: torch.device) -> torch.device:
        """The device of this process, where a machine has several."""
        if self.count == 1 or device.type != "cuda":
            return device
        return torch.device("cuda", self.local % torch.cuda.device_count())


@contextmanager
def join_processes() -> Iterator[Processes]:
    """The processes that ``torchrun`` started, connected in the block; without it this one alone."""
    rank, count, local = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if count == 1:
        yield Processes()
        return
    distributed.init_process_group("gloo", timeout=LONGEST)
    try:
        yield Processes(rank, count, local)
    finally:
        distributed.destroy_process_group()


@dataclass(frozen=True)
class Job:
    """How an evaluation is done. No figure depends on it.

    Args:
        processes: that share the chunks of images. Each calls the evaluation, and gets all figures.
        work: file of the chunks that are done. An evaluation with the same model, images and settings goes on from it.
    """

    processes: Processes = Processes()
    work: Path | None = None

    def open(self, describe: Callable[[], Mapping[str, Any]]) -> Ledger:
        """The chunks that are done.

        Args:
            describe: returns all that the figures depend on, as plain data.

        Raises:
            RecipeError: the file cannot be read, is damaged, or is of another evaluation.
        """
        if self.work is None:
            return Ledger(self, {}, {})
        settings = describe()
        chunks = read_chunks(self.work, settings) if self.processes.leads else {}
        return Ledger(self, settings, self.processes.gather(chunks)[0])

    def close(self) -> None:
        """Removes the file; call it when the figures are kept elsewhere."""
        if self.work is not None and self.processes.leads:
            # A link stays, as it does where its target is written.
            Path(os.path.realpath(self.work)).unlink(missing_ok=True)


ALONE = Job()


@dataclass(frozen=True)
class Ledger:
    """The chunks of an evaluation that are done, the same on every process.

    Args:
        job: how it is done.
        settings: all that the figures depend on.
        chunks: those that are done.
    """

    job: Job
    settings: Mapping[str, Any]
    chunks: Chunks

    def find(self, name: str) -> dict[int, Chunk]:
        """The chunks of a pass by their first image."""
        return self.chunks.setdefault(name, {})

    def share(self, name: str, firsts: list[int], measure: Callable[[int], Chunk]) -> None:
        """Takes in chunks of a pass, at most one for each process, which measures its own.

        Args:
            name: of the pass.
            firsts: the first image of each chunk.
            measure: measures the chunk that begins with an image.
        """
        processes = self.job.processes
        own = measure(firsts[processes.rank]) if processes.rank < len(firsts) else None
        for first, chunk in zip(firsts, processes.gather(own), strict=False):
            if chunk is not None:
                self.find(name)[first] = chunk
        if self.job.work is not None and processes.leads:
            write_chunks(self.job.work, self.settings, self.chunks)
