"""Which environments ``make compat`` makes."""

from pathlib import Path

import pytest

from tests.compat import emulated_sample
from tests.compat.__main__ import CLAIMED, OPTIONAL, choose


def find_all(version):
    return Path(f"python{version}")


def find_none_optional(version):
    return None if version == OPTIONAL else Path(f"python{version}")


def choose_pairs(names, find):
    chosen = choose(names, find)
    assert all(interpreter == Path(f"python{python}") for _, python, interpreter in chosen)
    return [pair[:2] for pair in chosen]


def test_all_pairs_without_names():
    assert choose_pairs([], find_all) == CLAIMED


def test_names_of_pytorch_and_python():
    assert choose_pairs(["2.13.0"], find_all) == [("2.13.0", "3.11"), ("2.13.0", "3.14")]
    assert choose_pairs(["3.14", "2.6.0"], find_all) == [("2.6.0", "3.10"), ("2.13.0", "3.14")]
    with pytest.raises(SystemExit, match=r"2\.6\.0 on 3\.10; .*got 2\.7\.0"):
        choose(["2.6.0", "2.7.0"], find_all)


def test_newest_python_is_left_out_aloud(capsys):
    assert choose_pairs([], find_none_optional) == [pair for pair in CLAIMED if pair[1] != OPTIONAL]
    assert f"LEFT OUT: torch 2.13.0 on Python {OPTIONAL}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"Python 3\.14 is not installed"):
        choose([OPTIONAL], find_none_optional)
    with pytest.raises(SystemExit, match=r"Python 3\.10 is not installed"):
        choose([], lambda version: None)


def test_sample_for_an_emulated_processor():
    kernels = [f"tests/ops/test_some.py::test_forward[{n}-cpp]" for n in range(9)]
    others = ["tests/ops/test_some.py::test_forward[0-reference]", "tests/ops/test_some.py::test_compile[cpp]"]
    answers = [f"tests/ops/{emulated_sample.NOISE}[{n}]" for n in range(5)]
    other_test = ["tests/ops/test_other.py::test_forward[cpp]"]
    chosen = emulated_sample.choose([*kernels, *others, *answers, *other_test])
    assert len(chosen & set(kernels)) == emulated_sample.MOST
    assert chosen - set(kernels) == {*answers, *other_test}
