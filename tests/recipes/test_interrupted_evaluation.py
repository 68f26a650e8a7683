"""An evaluation that is interrupted goes on from its file; damaged files and those of others are refused."""

import os
from pathlib import Path

import pytest
import torch
import tqdm

from fastvae.recipes import RecipeError
from fastvae.recipes.data.batches import binarize_fixed
from fastvae.recipes.evaluation import chunks
from fastvae.recipes.evaluation.bounds import evaluate
from fastvae.recipes.evaluation.job import Job
from fastvae.recipes.systems.loading import find_system
from tests.recipes.evaluation_support import FEW, Bar, cases, count_chunks, small


@pytest.mark.parametrize("name", cases())
def test_continued_evaluation_has_the_figures_of_an_unbroken_one(name, tiny, tmp_path, monkeypatch):
    make, evaluation, number = cases()[name]
    model, x, work = make(), binarize_fixed(tiny.x_test), tmp_path / "work"
    expected, job = evaluation(model, x), Job(work=work)
    for _ in range(number - 1):
        with monkeypatch.context() as patch:
            seen = count_chunks(model, patch, fail=2)
            with pytest.raises(KeyboardInterrupt):
                evaluation(model, x, job=job)
            assert len(seen) == 2
    monkeypatch.setattr(tqdm, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    seen = count_chunks(model, monkeypatch)
    assert evaluation(model, x, job=job, progress=True) == expected
    assert len(seen) == 1
    assert all(bar.n == bar.total for bar in Bar.made)
    assert evaluation(model, x, job=job) == expected
    assert len(seen) == 1
    job.close()
    assert not list(tmp_path.iterdir())


def test_file_is_whole_when_its_replacement_fails(tiny, tmp_path, monkeypatch):
    model, x, job = small(), binarize_fixed(tiny.x_test), Job(work=tmp_path / "work")
    with monkeypatch.context() as patch:
        count_chunks(model, patch, fail=2)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, x, **FEW, job=job)
    before = job.work.read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(RecipeError, match="work cannot be written: No space left on device"):
            evaluate(model, x, **FEW, job=job)
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
    assert job.work.read_bytes() == before
    assert evaluate(model, x, **FEW, job=job) == evaluate(model, x, **FEW)


def test_chunks_that_are_not_finite_are_kept_as_they_are(tmp_path):
    found = chunks.Chunk(
        torch.tensor([[-1.5, float("nan")], [float("-inf"), 0.1]]).double(), torch.empty(2, 0).double()
    )
    chunks.write_chunks(tmp_path / "work", {"seed": 1}, {"test": {20: found}})
    ((first, again),) = chunks.read_chunks(tmp_path / "work", {"seed": 1})["test"].items()
    assert first == 20
    for ours, theirs in zip(again, found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 8}, "with samples = 7, not 8"),
        ({"seed": 1}, "with seed = 0, not 1"),
        ({"image_chunk": 10}, "with image_chunk = 20, not 10"),
        ({"impl": "reference"}, "with model = '[0-9a-f]{16}', not '[0-9a-f]{16}'"),
        ({"weights": 2.0}, "with model = '[0-9a-f]{16}', not '[0-9a-f]{16}'"),
        ({"images": 50}, "with images = '[0-9a-f]{16}', not '[0-9a-f]{16}'"),
        ({"images": 30, "log_p_images": 30}, "with log_p_images = 45, not 30"),
    ],
)
def test_work_of_another_evaluation_is_refused(changes, message, tiny, tmp_path):
    torch.manual_seed(0)
    model, x, job = small(), binarize_fixed(tiny.x_test), Job(work=tmp_path / "work")
    evaluate(model, x, **FEW, job=job)
    changes = dict(changes)
    x = x[: changes.pop("images", 60)]
    if impl := changes.pop("impl", None):
        torch.manual_seed(0)
        model = small(impl=impl)
    with torch.no_grad():
        model.to_logits.weight.mul_(changes.pop("weights", 1.0))
    with pytest.raises(RecipeError, match=f"work is of an evaluation {message}: name another file with --work"):
        evaluate(model, x, **FEW | changes, job=job)


def as_file(content):
    content = content.encode()
    return chunks.make_head(content) + content


DAMAGES = {
    "empty": (lambda whole: b"", "holds no unfinished evaluation"),
    "foreign": (lambda whole: b'{"elbo": -90.0}' * 20, "holds no unfinished evaluation"),
    "pickle": (lambda whole: b"\x80\x04cos\nsystem\n", "holds no unfinished evaluation"),
    "short": (lambda whole: whole[:-1], "is damaged"),
    "longer": (lambda whole: whole + b" ", "is damaged"),
    "flipped": (lambda whole: whole[:300] + bytes([whole[300] ^ 1]) + whole[301:], "is damaged"),
    "checksum": (lambda whole: whole[:30] + bytes([whole[30] ^ 1]) + whole[31:], "is damaged"),
    "no JSON": (lambda whole: as_file("1 +"), "holds no unfinished evaluation"),
    "nested": (lambda whole: as_file("[" * 100_000), "holds no unfinished evaluation"),
    "list": (lambda whole: as_file("[]"), "holds no unfinished evaluation"),
    "no passes": (lambda whole: as_file('{"settings": {}}'), "holds no unfinished evaluation"),
    "words": (lambda whole: as_file('{"settings": {}, "passes": {"test": {"0": "no"}}}'), "holds no unfinished"),
    "no matrix": (lambda whole: as_file('{"settings": {}, "passes": {"test": {"0": [[1], [2]]}}}'), "holds no unf"),
    "huge": (
        lambda whole: as_file('{"settings": {}, "passes": {"0": {"0": [[[1%s]], [[]]]}}}' % ("0" * 400)),
        "holds no",
    ),
    "two matrices": (
        lambda whole: as_file('{"settings": {}, "passes": {"test": {"0": [[[1]], [[]]]}}}'),
        "holds no unfinished evaluation",
    ),
    "other sums": (
        lambda whole: as_file('{"settings": {}, "passes": {"test": {"0": [[[1]], [[]], [[1]]]}}}'),
        "holds no unfinished evaluation",
    ),
    "ragged": (
        lambda whole: as_file('{"settings": {}, "passes": {"test": {"0": [[[1], [2, 3]], [[], []]]}}}'),
        "holds no unfinished evaluation",
    ),
    "other": (
        lambda whole: as_file('{"settings": {}, "passes": {}}'),
        "is of an evaluation with samples = None, not 7",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_work_is_refused(damage, tiny, tmp_path):
    model, x, job = small(), binarize_fixed(tiny.x_test), Job(work=tmp_path / "work")
    evaluate(model, x, **FEW, job=job)
    change, message = DAMAGES[damage]
    job.work.write_bytes(change(job.work.read_bytes()))
    with pytest.raises(RecipeError, match=message) as error:
        evaluate(model, x, **FEW, job=job)
    assert "name another file with --work, or remove it" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("path", ["/dev/zero", "/dev", "below/a/file"])
def test_work_that_is_no_file_is_refused(path, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("below").write_bytes(b"")
    with pytest.raises(RecipeError, match=path):
        evaluate(small(), binarize_fixed(tiny.x_test), **FEW, job=Job(work=Path(path)))


def test_system_without_chunks_refuses_work(tmp_path):
    system = find_system("posterior2d")
    with pytest.raises(RecipeError, match="the evaluation of posterior2d has no chunks that --work could keep"):
        system.evaluate(None, None, None, job=Job(work=tmp_path / "work"))
