"""``fastvae table``: published figures beside those of runs."""

import json

import pytest

from fastvae.recipes import RecipeError
from fastvae.recipes.cli import main as cli
from fastvae.recipes.pictures.errors import ErrorCurves
from fastvae.recipes.systems.catalogue import CATALOGUE
from fastvae.recipes.systems.loading import find_system
from fastvae.recipes.uses.errors_of_runs import gather_errors
from fastvae.recipes.uses.tables import TABLES, flatten, read_result, write_table


def result(recipe, settings=None, **figures):
    return {"recipe": recipe, "epochs": 3, "seconds": 120.0, "config": {"model": settings or {}}, **figures}


def cells(lines, name):
    return [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {name} |")).split("|")[2:-1]]


def test_mean_and_deviation_over_choices_of_labels():
    errors = (5.0, 7.0, 9.0)
    runs = [result("m1m2", error=e, standard_error=0.2, label_seed=i) for i, e in enumerate(errors)]
    lines = write_table(TABLES["ssl"], runs)
    assert cells(lines, "M1 + M2") == ["3.33 ± 0.14", "7.00 ± 2.00", "3", "3", "2"]
    assert cells(lines, "ADGM") == ["0.96 ± 0.02", "", "", "", ""]


def test_choices_of_labels_within_one_run():
    run = result("m1", error=9.0, errors=[8.0, 10.0], classifier="tsvm")
    assert cells(write_table(TABLES["ssl"], [run]), "M1 + TSVM")[1] == "9.00 ± 1.41"
    assert cells(write_table(TABLES["ssl"], [run]), "M1 + SVM")[1] == ""


def test_best_run_and_its_standard_errors():
    flow = {"posterior": "iaf", "depth": 2, "width": 320}
    runs = [
        result("iaf_vae", flow, elbo=elbo, elbo_error=0.25, log_p=log_p, log_p_error=0.5, command=f"/x/fastvae {log_p}")
        for elbo, log_p in ((-88.0, -85.0), (-87.0, -84.0))
    ]
    lines = write_table(TABLES["one"], runs)
    expected = ["-82.02 ± 0.08", "-87.00 ± 0.25", "-79.77 ± 0.06", "-84.00 ± 0.50", "1", "3", "2"]
    assert cells(lines, "IAF, depth 2, width 320") == expected
    assert lines[-1] == "- IAF, depth 2, width 320: `fastvae -84.0`"


def test_systems_of_the_tables_that_exist_have_these_settings():
    """Every line's settings are of its system, so that a run can be on it."""
    found = 0
    for table in TABLES.values():
        for line in table.lines:
            assert len(line.published) == len(table.columns)
            if line.recipe in CATALOGUE:
                settings = find_system(line.recipe).settings()
                named = {**vars(settings.model), **vars(settings.training), "classifier": None}
                assert line.settings.keys() <= named.keys()
                found += 1
    assert found > 10


def test_command(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    plain = result("vat", error=3.0, standard_error=0.17, label_seed=0)
    (tmp_path / "run" / "result.json").write_text(json.dumps(plain))
    out = tmp_path / "table.md"
    assert cli.main(["table", "ssl", str(tmp_path / "run"), "-o", str(out)]) == 0
    assert capsys.readouterr().out == out.read_text()
    assert "| VAT | 2.12 | 3.00 ± 0.17 | 1 | 3 | 2 |" in out.read_text()
    assert cli.main(["table", "one"]) == 0
    assert "| LVAE |" in capsys.readouterr().out


def test_other_labels_and_other_data_have_lines_of_their_own():
    runs = [
        result("m2", error=error, standard_error=0.1, labels=labels, data=data)
        for error, labels, data in ((9.0, 100, "mnist"), (4.0, 600, "mnist"), (3.0, 600, "mnist"), (20.0, 20, "digits"))
    ]
    lines = write_table(TABLES["ssl"], runs)
    assert cells(lines, "M2")[:2] == ["11.97", "9.00 ± 0.10"]
    assert cells(lines, "M2, labels 600") == ["", "3.50 ± 0.71", "2", "3", "2"]
    assert cells(lines, "M2, labels 20, data digits")[:2] == ["", "20.00 ± 0.10"]


def keep(folder, name, found, metrics=""):
    path = folder / name
    path.mkdir()
    (path / "result.json").write_text(json.dumps(found))
    if metrics:
        (path / "metrics.csv").write_text(metrics)
    return path


def test_errors_against_labels(tmp_path):
    epochs = "epoch,train_error,test_error\n1,0,20.5\n2,0,\n3,0,7.25\n"
    folders = [
        keep(tmp_path, "a", result("vat", error=7.0, labels=100, data="mnist"), epochs),
        keep(tmp_path, "b", result("vat", error=9.0, labels=100, data="mnist")),
        keep(tmp_path, "c", result("vat", error=3.0, labels=600, data="mnist")),
        keep(tmp_path, "d", result("m1", error=3.0, errors=[2.0, 4.0, 6.0], labels=100, classifier="svm")),
        keep(tmp_path, "e", result("vat", error=1.0, labels=20, data="digits")),
    ]
    found = gather_errors(folders)
    assert list(found) == ["VAT", "M1 + SVM", "VAT, digits"]
    assert found["VAT"].by_labels == [(100, 8.0, pytest.approx(2**0.5)), (600, 3.0, 0.0)]
    assert found["VAT"].by_epoch == [[(1, 20.5), (3, 7.25)]]
    assert found["VAT"].published == (100, 2.12)
    assert found["M1 + SVM"] == ErrorCurves([(100, 4.0, 2.0)], [])
    assert found["VAT, digits"].published is None
    path = tmp_path / "errors.png"
    assert cli.main(["table", "ssl", *map(str, folders), "--picture", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_pictures_that_cannot_be(tmp_path, capsys):
    for words in (["ssl"], ["one", str(tmp_path)]):
        with pytest.raises(SystemExit):
            cli.main(["table", *words, "--picture", str(tmp_path / "p.png")])
        assert "picture must be of one or more runs of the table ssl" in " ".join(capsys.readouterr().err.split())
    bad = keep(tmp_path, "bad", result("vat", error=1.0, labels=20), "epoch,test_error\n1,x\n")
    with pytest.raises(RecipeError, match=r"metrics\.csv must be the metrics.csv of a finished run"):
        gather_errors([bad])
    with pytest.raises(RecipeError, match="must have a result with an error and a number of labels"):
        gather_errors([keep(tmp_path, "none", result("vat", error=1.0))])


def test_what_is_no_run(tmp_path, capsys):
    assert cli.main(["table", "ssl", str(tmp_path)]) == 1
    assert "result.json must be the result.json of a finished run" in capsys.readouterr().err
    (tmp_path / "result.json").write_text("[1]")
    with pytest.raises(RecipeError, match="which names its recipe; this names none"):
        read_result(tmp_path)
    with pytest.raises(RecipeError, match="a run of vae is on no line of this table, whose lines are of m1, m2"):
        write_table(TABLES["ssl"], [result("vae")])


def test_settings_of_a_run_are_found_by_name():
    assert flatten(result("x", {"depth": 2}, epochs=7)) | {"config": None} == {
        "recipe": "x", "epochs": 7, "seconds": 120.0, "depth": 2, "config": None,
    }  # fmt: skip
