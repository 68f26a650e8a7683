"""One small run from the command line to the rows on disk."""

import json
import re
import socket
from pathlib import Path

import pytest
import torch

from bench import __main__ as command
from bench import environment, registry
from bench.rows import read_rows
from bench.task import Task


@pytest.fixture(autouse=True, scope="module")
def cheap_limits():
    """Limits come from buffers of 64 KiB: the run is about rows, not about the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.roofline._choose_copy_bytes", lambda device: 1 << 16)
        patch.setattr("bench.roofline._choose_width", lambda device: 32)
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "rows.jsonl"
    arguments = [
        "--quick",
        "--device",
        "cpu",
        "--op",
        "tril_gaussian",
        "--variant",
        "dense",
        "--entry",
        "rsample",
    ]
    status = command.main(
        [*arguments, "--shape", "16x12", "--impl", "fastvae,reference,distributions", "--json", str(path)]
    )
    assert status == 0
    return read_rows([path])


def test_rows_are_complete(rows):
    assert [(r["mode"], r["provider"]) for r in rows] == [
        (mode, provider) for mode in ("fwd", "fwdbwd") for provider in ("fastvae", "reference", "distributions")
    ]
    for r in rows:
        assert 0 < r["p20_us"] <= r["p50_us"] <= r["p80_us"]
        assert r["gbps"] == pytest.approx(r["bytes"] / r["p50_us"] * 1e-3, rel=1e-3)
        assert r["peak_bytes"] == r["result_bytes"] + r["temporary_bytes"]
        assert r["bound"] in ("memory", "compute")
        assert r["percent_of_limit"] > 0
        assert r["copy_gbps"] > 0
        assert r["matmul_gflops"] > 0
        told = r["environment"]
        assert told["threads"] == torch.get_num_threads()
        assert {"torch", "numpy", "python"} <= set(told["versions"])
        assert {"date", "commit", "cpu", "isa"} <= set(told)


def test_ratios_are_of_the_medians_beside_them(rows):
    times = {(r["mode"], r["provider"]): r["p50_us"] for r in rows}
    for r in rows:
        for other in {"fastvae", "reference", "distributions"} - {r["provider"]}:
            expected = times[r["mode"], other] / r["p50_us"]
            assert r[f"vs_{other}"] == pytest.approx(expected, rel=2e-3)
        assert f"vs_{r['provider']}" not in r


def test_all_rows_of_a_run_name_it(rows):
    assert len({r["run"] for r in rows}) == 1


def test_memory_shows_that_the_kernel_makes_no_matrix(rows):
    matrices = 16 * 12 * 12 * 4
    ours, eager = (
        next(r for r in rows if (r["mode"], r["provider"]) == ("fwdbwd", provider))
        for provider in ("fastvae", "reference")
    )
    # d_tril is one of the gradients. That of mu is d_z, which the caller gave; the normals that backward reads are no
    # larger: beyond outputs and gradients there is the seed at most.
    d_mu = 16 * 12 * 4
    assert ours["result_bytes"] >= matrices
    assert ours["temporary_bytes"] <= d_mu + 64
    assert eager["temporary_bytes"] >= matrices


def test_rows_name_no_host_and_no_place_on_disk(rows):
    text = json.dumps(rows)
    assert socket.gethostname() not in text
    assert not re.search(r"/(home|root|usr|tmp|work|opt)/", text)
    assert str(Path.home()) + "/" not in text


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("No such file: '/usr/local/lib/x.so'", "No such file: 'x.so'"),
        ("g++ -I/usr/include/python3 a.cpp", "g++ -Ipython3 a.cpp"),
        ("half of 3/4 and a/b", "half of 3/4 and a/b"),
    ],
)
def test_paths_are_cut_from_messages(said, kept):
    assert environment.cut_paths(said) == kept


def broken_task(monkeypatch, provider):
    (task, *others) = registry.load_tasks("diag_gaussian")

    def fail(*inputs):
        raise RuntimeError("broken on purpose")

    broken = Task(**{**vars(task), provider: lambda *arguments: fail})
    monkeypatch.setattr("bench.ops.diag_gaussian.TASKS", (broken, *others))


def test_a_failing_kernel_fails_the_run_and_spares_the_others(tmp_path, monkeypatch, capsys):
    broken_task(monkeypatch, "fastvae")
    path = tmp_path / "rows.jsonl"
    arguments = "--quick --device cpu --op diag_gaussian --entry rsample --mode fwd --shape 4x4".split()
    assert command.main([*arguments, "--impl", "fastvae,reference", "--json", str(path)]) == 1
    ours, eager = read_rows([path])
    assert ours["error"] == "RuntimeError: broken on purpose"
    assert eager["p50_us"] > 0
    assert "fastvae failed: RuntimeError: broken on purpose" in capsys.readouterr().err


def test_a_spent_budget_leaves_cases_out_and_says_so(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.jsonl"
    arguments = "--quick --device cpu --op diag_gaussian --entry kl --shape 4x4 --impl reference".split()
    assert command.main([*arguments, "--budget", "1e-9", "--json", str(path)]) == 0
    (record,) = read_rows([path])
    assert record["kind"] == "left_out"
    assert len(record["cases"]) == 2
    assert "left out" in capsys.readouterr().err
