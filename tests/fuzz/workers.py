"""Child processes that run cases, so that one that dies ends nothing else."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

# Seconds after which a case counts as one without end.
PATIENCE = 90.0
# Address space beyond what is in use, so that a request for all memory is refused rather than granted.
MOST_MEMORY = 3 * 2**30


class Worker:
    """One child, in which one case runs at a time; it is started anew after its death.

    Args:
        isa: instruction set of the kernels.
        extension: folder of another build of the extension, under AddressSanitizer; "" for the one installed.
    """

    def __init__(self, isa: str, extension: str = "") -> None:
        self.isa, self.extension = isa, extension
        self.case = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile("a+b")

    def start(self, case: str) -> None:
        if self._process is None:
            command = [sys.executable, "-m", "tests.fuzz", "--serve", "--isa", self.isa, "--extension", self.extension]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment(self.extension),
            )
        self.case = case
        assert self._process.stdin is not None
        self._log.truncate(0)
        try:
            self._process.stdin.write(case.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # `result` sees that it is dead.
            pass

    def fileno(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def result(self) -> str:
        """What went wrong with the case; empty if nothing. Called once the child has something to say."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else f"the process {self._end()}"

    def give_up(self) -> str:
        assert self._process is not None
        self._process.kill()
        self._end()
        return f"does not end within {PATIENCE:.0f} s"

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.kill()
            self._process.wait()

    def _end(self) -> str:
        assert self._process is not None
        status = self._process.wait()
        self._process = None
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").splitlines()
        start = next((i for i, line in enumerate(said) if "Sanitizer" in line or "terminate called" in line), -12)
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return how + "\n" + "\n".join(said[start:][:16])


def environment(extension: str) -> dict[str, str]:
    """Of a child; the runtime of a sanitizer comes first, with that of C++, whose exceptions it must find."""
    changes = {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": "2", "FASTVAE_FUZZ_SLOWER": "1"}
    if extension:
        libraries = [
            subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()
            for name in ("libasan.so", "libstdc++.so")
        ]
        changes |= {
            "LD_PRELOAD": " ".join(libraries),
            # A request beyond bounds gets nothing, as where memory is short. Leaks are those of Python and PyTorch.
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=3000",
            "FASTVAE_FUZZ_SLOWER": "6",
        }
    return os.environ | changes


def run(cases: Iterable[str], workers: list[Worker]) -> Iterator[tuple[Worker, str, str]]:
    """Runs all cases; gives each one's worker, name and what went wrong."""
    waiting, idle, busy = iter(cases), list(workers), list[Worker]()
    while True:
        while idle and (case := next(waiting, None)) is not None:
            idle[-1].start(case)
            busy.append(idle.pop())
        if not busy:
            return
        ready = select.select(busy, [], [], PATIENCE)[0]
        for worker in ready or busy[:]:
            yield worker, worker.case, worker.result() if ready else worker.give_up()
            busy.remove(worker)
            idle.append(worker)


def serve(isa: str, extension: str) -> None:
    """The child: reads names of cases from standard input and answers each with what went wrong, as JSON."""
    answers = os.fdopen(os.dup(1), "w")
    # Whatever a library prints must not be taken for an answer.
    os.dup2(2, 1)
    if extension:
        from tests.csrc.with_extension import load

        load(extension)
    from fastvae import _C

    from .failure import FuzzError

    _C.set_isa(isa)
    from . import cases

    if not extension:
        _limit_memory()
    for line in sys.stdin:
        wrong = ""
        try:
            cases.run(line.strip())
        except FuzzError as failure:
            wrong = str(failure)
        except BaseException:
            wrong = "the fuzzer itself fails\n" + "".join(traceback.format_exc()[-1500:])
        answers.write(json.dumps(wrong) + "\n")
        answers.flush()


def _limit_memory() -> None:
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, used + MOST_MEMORY))
