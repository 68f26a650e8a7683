"""The benchmark harness: every op beside its reference, ``torch.compile`` and the peers that people use.

``python -m bench --list`` shows what is measured, ``python -m bench --help`` how to choose among it.
"""

import os

# The profiler, asked for allocations, otherwise writes lines of its own between those of the results.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
