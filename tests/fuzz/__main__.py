"""``python -m tests.fuzz [--cases N | --case NAME]``: random calls, wrong calls and damaged files.

A failure is printed with the command that repeats its case. The exit status tells whether there was one.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from itertools import islice

from . import workers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="how many, shared out to the instruction sets")
    parser.add_argument("--seed", type=int, default=0, help="number of each target's first case")
    parser.add_argument("--only", default="", help="cases whose names begin so, such as operator.affine_flow_fwd")
    parser.add_argument("--case", action="append", help="one case by its name; may be given several times")
    parser.add_argument("--isa", help="one instruction set only")
    parser.add_argument("--extension", default="", help="folder of an extension built under AddressSanitizer")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        workers.serve(options.isa, options.extension)
        return 0
    from fastvae import _C

    from . import cases

    try:
        isas = [options.isa] if options.isa else _C.available_isas()
        for case in options.case or ():
            cases.parse(case)
        named = options.case or list(islice(cases.number_cases(options.seed, options.only), options.cases))
    except ValueError as error:
        parser.error(str(error))
    failures, done, start = [], 0, time.monotonic()
    for i, isa in enumerate(isas):
        # Every named case on all of them; of the others each gets a share, of all targets.
        share = named if options.case else named[i * len(named) // len(isas) : (i + 1) * len(named) // len(isas)]
        hands = [workers.Worker(isa, options.extension) for _ in range(min(options.workers, len(share)))]
        for worker, case, wrong in workers.run(share, hands):
            done += 1
            if wrong:
                failures.append(case)
                print(f"{case} ({worker.isa}): {wrong}\nrepeat: {command(case, worker)}\n", flush=True)
        for worker in hands:
            worker.close()
        print(
            f"{isa}: {done} of {len(named)} cases, {len(failures)} failed, {time.monotonic() - start:.0f} s", flush=True
        )
    return 1 if failures else 0


def command(case: str, worker: workers.Worker) -> str:
    built = ["--extension", worker.extension] if worker.extension else []
    return shlex.join(["python", "-m", "tests.fuzz", "--case", case, "--isa", worker.isa, *built])


if __name__ == "__main__":
    sys.exit(main())
