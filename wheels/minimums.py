"""Installs the source distribution without a network, by the oldest tools that pyproject.toml allows.

The oldest claimed Python takes it, where there is one. The extension has one instruction set, to save time.
"""

from __future__ import annotations

import re
import shutil
import sys

from wheels.__main__ import ROOT, run

FOLDER = ROOT / "build" / "minimums"
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")
# Beside it is no PyTorch: the extension is loaded alone.
LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("fastvae._C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print("loaded", sys.argv[1])
"""


def oldest_tools(project: str) -> list[str]:
    """The build requirements of a pyproject.toml, each of its lowest version."""
    match = re.search(r"^requires = \[(.*)\]$", project, re.MULTILINE)
    if not match:
        raise SystemExit("pyproject.toml has no line of build requirements")
    return [re.sub(r">=(.*)", r"==\1.*", requirement) for requirement in re.findall(r'"(.+?)"', match[1])]


def main() -> None:
    """Installs what ``make sdist`` made, and loads the extension."""
    (archive,) = (ROOT / "build" / "wheels").glob("*.tar.gz")
    python = shutil.which("python3.10") or sys.executable
    run(python, "-m", "venv", "--clear", FOLDER)
    interpreter = FOLDER / "bin" / "python"
    run(interpreter, *PIP, "install", *oldest_tools((ROOT / "pyproject.toml").read_text()), PIP_CONSTRAINT="")
    offline = ("install", "--no-index", "--no-build-isolation", "--no-deps")
    run(interpreter, *PIP, *offline, "--config-settings=cmake.define.FASTVAE_ISAS=baseline", archive)
    (extension,) = FOLDER.glob("lib/python*/site-packages/fastvae/_C*")
    run(interpreter, "-c", LOAD, extension)


if __name__ == "__main__":
    main()
