"""``bench`` is a folder of the checkout, not part of the installed package."""

import sys
from pathlib import Path

# Last, so that an installed fastvae is not hidden by the checkout's.
sys.path.append(str(Path(__file__).resolve().parents[2]))
