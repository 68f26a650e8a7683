"""The package as installed: what importing it touches, and what it does when a part is missing."""

import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvae
from fastvae import _missing, backend


def run(code: str, **environment: str) -> str:
    """Runs code in a fresh interpreter, outside Triton's interpreter mode."""
    import os

    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_touches_neither_triton_nor_cuda():
    out = run(
        "import sys, torch, fastvae, fastvae.functional as F\n"
        "z, _ = F.diag_gaussian_rsample(torch.zeros(2, 3), torch.zeros(2, 3))\n"
        "print('triton' in sys.modules, torch.cuda.is_initialized())"
    )
    assert out.split() == ["False", "False"]


def test_without_triton():
    out = run(
        "import sys\nsys.modules['triton'] = None\n"
        "import torch, fastvae, fastvae.functional as F\n"
        "F.diag_gaussian_rsample(torch.zeros(2, 3), torch.zeros(2, 3))\n"
        "try: F.diag_gaussian_rsample(torch.zeros(2, 3), torch.zeros(2, 3), impl='triton')\n"
        "except RuntimeError as error: print(error)\n"
        "print(fastvae.backend.report())"
    )
    assert "triton is not installed" in out


def test_without_the_extension():
    out = run(
        "import sys\nsys.modules['fastvae._C'] = None\n"
        "import torch, fastvae, fastvae.functional as F\n"
        "z, _ = F.diag_gaussian_rsample(torch.zeros(2, 3), torch.zeros(2, 3))\n"
        "print(z.shape)\n"
        "try: F.diag_gaussian_rsample(torch.zeros(2, 3), torch.zeros(2, 3), impl='cpp')\n"
        "except RuntimeError as error: print(error)\n"
    )
    assert "torch.Size([2, 3])" in out
    assert "the C++ extension is not built" in out


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (None, "is not built in {folder}: run `pip install .`"),
        ("_C.cpython-36m-x86_64-linux-gnu.so", "is for another Python, _C.cpython-36m-x86_64-linux-gnu.so, not _C."),
        (f"_C{EXTENSION_SUFFIXES[0]}", "{folder}/_C" + EXTENSION_SUFFIXES[0] + " cannot be loaded ({folder}/"),
    ],
)
def test_what_is_wrong_with_the_extension_is_said(tmp_path, file, expected):
    """A source without one, one of another Python, and one that the loader refuses; never a circular import."""
    folder = tmp_path / "fastvae"
    shutil.copytree(Path(fastvae.__file__).parent, folder, ignore=shutil.ignore_patterns("_C.*", "__pycache__"))
    if file:
        (folder / file).write_bytes(b"no library")
    # An editable installation would find its own extension.
    out = run(
        "import sys\nsys.meta_path = [f for f in sys.meta_path if 'Redirecting' not in type(f).__name__]\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch, fastvae, fastvae.functional as F\n"
        "print(fastvae.backend.report())\n"
        "try: F.diag_gaussian_rsample(torch.zeros(2, 3), torch.zeros(2, 3), impl='cpp')\n"
        "except RuntimeError as error: print(error)\n"
    )
    assert out.count(expected.format(folder=folder)) == 2
    assert "circular" not in out


@pytest.mark.skipif(sys.platform != "linux", reason="reads the Linux process map")
def test_one_openmp_runtime():
    """torch and the extension share one pool of threads."""
    out = run(
        "import torch, fastvae._C\n"
        "print({line.split()[-1] for line in open('/proc/self/maps')"
        " if any(name in line for name in ('libgomp', 'libiomp', 'libomp'))})"
    )
    assert len(eval(out)) == 1


def test_report_names_every_implementation():
    text = backend.report()
    assert "auto -> cpp" in text
    for word in (fastvae.__version__, "triton", "reference", "cuda", torch.__version__):
        assert word in text


def test_nothing_is_patched_at_import():
    out = run(
        "import torch, torch.distributions as d\n"
        "before = (d.Distribution._validate_args, d.Normal.__init__, torch.Tensor.__add__)\n"
        "import fastvae\n"
        "print(before == (d.Distribution._validate_args, d.Normal.__init__, torch.Tensor.__add__))"
    )
    assert out.strip() == "True"


@pytest.mark.parametrize(
    ("version", "reason"),
    [("3.3.1", "triton 3.3.1 is installed, and the kernels need 3.4 or newer"), ("3.4.0", None), ("10.0+git", None)],
)
def test_a_triton_that_refuses_kernels_is_known_by_its_source(version, reason, tmp_path, monkeypatch):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(f'"""isort:skip_file"""\n__version__ = {version!r}\n1 / 0\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert _missing.why_no_triton() == reason


def test_an_old_triton_is_a_reason_for_the_reference(monkeypatch):
    reason = "triton 3.3.1 is installed, and the kernels need 3.4 or newer"
    monkeypatch.setattr(backend, "_triton_missing", reason)
    assert f"cuda: triton not used, {reason}\n" in backend.report()
    with FakeTensorMode():
        on_gpu = torch.empty(2, 3, device="cuda")
        assert backend.resolve("auto", on_gpu) == "reference"
        for call in (backend.resolve, backend.route):
            with pytest.raises(RuntimeError, match=f"impl='triton' cannot run on cuda tensors here: {reason}"):
                call("triton", on_gpu)
