import json
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stillhouse.contract import DataRejected, canonical_json, pretty_json
from stillhouse.data import Dropped, Tables, ValidationReport, reject_if_critical
from stillhouse.data.docs import write_data_docs
from stillhouse.data.suites import profile, suites_as_json, validate
from stillhouse.recipe import DataConfig

SNAPSHOT = Path(__file__).with_name("suites.json")
SECRET = "zebra"
"""Part of every text: neither reports nor Data Docs may contain it."""

Rows = list[tuple[str, str, int]]


TABLE = {"source": {"kind": "path", "path": "/x"}, "format": "csv", "licence": "x", "origin": "x"}


def _config(*, fields: Mapping[str, Any] | None = None, **checks: Any) -> DataConfig:
    bounds = {"min_rows": 4, "max_characters": 40} | checks
    return DataConfig.model_validate(
        {
            "domain": "d",
            "labels": ["no", "yes"],
            "train": TABLE,
            "ood": [{"name": "web", "table": TABLE}],
            "checks": bounds,
        }
        | dict(fields or {})
    )


def _rows(prefix: str, count: int = 20) -> Rows:
    return [(f"{prefix}{number}", f"{SECRET} {prefix} {number}", number % 2) for number in range(count)]


def _tables(**changed: Rows) -> Tables:
    rows = {name: _rows(name) for name in ("train", "validation", "test", "ood-web")}
    rows |= {name.replace("_", "-"): changed[name] for name in changed}
    frames = {name: pd.DataFrame(part, columns=["id", "text", "label"]) for name, part in rows.items()}
    return Tables(frames=frames, dropped={})


def _failed(report: ValidationReport) -> Mapping[tuple[str, str], str]:
    return {(check.table, check.name): check.message for check in report.checks if not check.success}


def test_the_suites_are_the_reviewed_ones() -> None:
    fields = {
        "ood": [{"name": "web", "table": TABLE}, {"name": "other", "kind": "out-of-scope", "table": TABLE}],
        "perturbations": [{"name": "typed", "kind": "typos"}],
        "coverage": {"reference": TABLE, "max_label_distance": 0.2},
    }
    names = ["train", "validation", "test", "ood-web", "ood-other", "perturbed-typed"]
    found = suites_as_json(names, _config(fields=fields))
    assert found == json.loads(SNAPSHOT.read_text(encoding="utf-8")), "review the change, then update suites.json"


def test_good_data_passes_every_check() -> None:
    report = validate(_tables(), _config())
    assert report.success
    assert _failed(report) == {}
    reject_if_critical(report)
    assert report.tables["train"].labels == {"no": 10, "yes": 10}


@pytest.mark.parametrize(
    ("table", "rows", "check", "message"),
    [
        ("train", _rows("train", 3), "rows", "train: 3 of at least 4 rows; add data or lower data.checks.min_rows"),
        (
            "test",
            [*_rows("test"), ("test7", f"{SECRET} other", 0)],
            "ids",
            "test: 2 rows with the id of another one (rows test7, test7); make ids unique or leave id_column out",
        ),
        (
            "ood_web",
            [*_rows("web"), ("e1", "", 0), ("e2", " \n", 1)],
            "text",
            "ood-web: 2 rows without a text (rows e1, e2); complete or remove them",
        ),
        (
            "train",
            [*_rows("train"), ("long", SECRET * 20, 0)],
            "text-length",
            "train: 1 row without 1 to 40 characters (row long); correct them or data.checks",
        ),
        (
            "train",
            [*_rows("train"), ("again", f"{SECRET.upper()}  TRAIN 3", 0)],
            "duplicates",
            "train: 2 rows with the text of another one (rows train3, again); remove them or set duplicates: drop",
        ),
        (
            "train",
            [*_rows("train"), ("two", f"{SECRET} 2", 2)],
            "labels",
            "train: 1 row with a label that data.labels lacks (row two); correct them or data.labels",
        ),
        (
            "train",
            [*_rows("train"), ("leak", f" {SECRET.title()} test 4", 1)],
            "leak-test",
            "train: 1 row whose text is also in test (row leak); remove it from one or set duplicates: drop",
        ),
        (
            "train",
            [*_rows("train"), ("leak", f"{SECRET} ood-web 4", 1)],
            "leak-ood-web",
            "train: 1 row whose text is also in ood-web (row leak); remove it from one or set duplicates: drop",
        ),
        (
            "validation",
            [*_rows("validation"), ("leak", f"{SECRET} test 4", 1)],
            "leak-test",
            "validation: 1 row whose text is also in test (row leak); remove it from one or set duplicates: drop",
        ),
    ],
)
def test_a_critical_failure_names_rows_and_stops_the_run(table: str, rows: Rows, check: str, message: str) -> None:
    report = validate(_tables(**{table: rows}), _config())
    assert not report.success
    assert _failed(report)[table.replace("_", "-"), check] == message
    with pytest.raises(DataRejected) as caught:
        reject_if_critical(report)
    assert str(caught.value).startswith(message)


def _sliced(num_slices: int, *, name: str = "test", column: str = "{genre}") -> ValidationReport:
    tables = _tables(**{set_: _rows(set_, 60) for set_ in ("train", "test", "ood_web")})
    for set_, frame in tables.frames.items():
        values = num_slices if set_ == name else 1
        frame[f"slice:{column}"] = [f"{SECRET}{min(row, values - 1)}" if values else "" for row in range(len(frame))]
    table = TABLE | {"slice_columns": [column]}
    return validate(tables, _config(fields={"train": table, "ood": [{"name": "web", "table": table}]}))


@pytest.mark.parametrize("name", ["test", "ood-web"])
def test_a_held_out_set_with_too_many_slices_is_refused_and_the_column_named(name: str) -> None:
    with pytest.raises(DataRejected) as caught:
        reject_if_critical(_sliced(51, name=name))
    assert str(caught.value) == (
        f"{name}: column '{{genre}}' has 51 distinct values, more than 50; "
        "put them into bins or take the column out of slice_columns"
    )


@pytest.mark.parametrize(("num_slices", "name"), [(50, "test"), (0, "test"), (60, "train")])
def test_few_slices_pass_and_those_of_train_do_not_count(num_slices: int, name: str) -> None:
    report = _sliced(num_slices, name=name)
    assert report.success
    assert [check.table for check in report.checks if check.name.startswith("slices-")] == [
        "validation",
        "test",
        "ood-web",
    ]
    assert SECRET not in pretty_json(report).decode()


LONG = "{secret} tale of more than five words that somebody once told about {name}"


def _near_rows(names: list[str]) -> Rows:
    return [(name, LONG.format(secret=SECRET, name=name), number % 2) for number, name in enumerate(names)]


def _contaminated(action: str, rows: int = 1) -> ValidationReport:
    """Validate with as many rows of train that are near-duplicates of test rows."""
    fields = {"contamination": {"action": action, "threshold": 0.7}, "checks": {"min_rows": 4}}
    test = _near_rows([f"them{number}" for number in range(rows)])
    train = [(row, f"{text}, again", label) for row, text, label in test]
    return validate(_tables(train=[*_rows("train"), *train], test=[*_rows("test"), *test]), _config(fields=fields))


@pytest.mark.parametrize("action", ["reject", "remove"])
def test_a_near_duplicate_that_is_left_stops_the_run(action: str) -> None:
    with pytest.raises(DataRejected, match=r"^train: 1 row with a near-duplicate in test \(row them0\); take it out"):
        reject_if_critical(_contaminated(action))


def test_a_near_duplicate_is_a_warning_if_the_recipe_says_so() -> None:
    report = _contaminated("warn", rows=2)
    reject_if_critical(report)
    assert [(check.name, check.unexpected_rows) for check in report.warnings] == [("near-test", ("them0", "them1"))]


def _integrity(report: ValidationReport) -> dict[str, tuple[str, str]]:
    return {check.name: (check.outcome, check.detail) for check in report.integrity}


def test_integrity_sums_up_leaks_and_near_duplicates() -> None:
    assert _integrity(validate(_tables(), _config())) == {
        "leakage": (
            "pass",
            "0 rows of train and 0 rows of validation share a text with a held-out set; 0 were left out before",
        ),
        "contamination": (
            "pass",
            "0 rows of train and 0 rows of validation have a near-duplicate in a held-out set (Jaccard of 5-grams of "
            "words >= 0.8); 0 were removed before",
        ),
    }


def test_integrity_fails_or_warns_with_the_checks() -> None:
    leaking = _integrity(validate(_tables(train=_rows("test"), validation=_rows("ood-web")), _config()))
    assert leaking["leakage"][0] == "fail"
    assert leaking["leakage"][1].startswith("20 rows of train and 20 rows of validation share")
    assert leaking["contamination"][0] == "pass"
    outcomes = {action: _integrity(_contaminated(action))["contamination"] for action in ("warn", "reject")}
    assert {action: outcome for action, (outcome, _) in outcomes.items()} == {"warn": "warn", "reject": "fail"}
    assert outcomes["warn"][1].startswith("1 rows of train and 0 rows of validation have a near-duplicate")


def test_what_was_removed_is_counted_and_passes() -> None:
    tables = _tables()
    tables.dropped.update(
        train=Dropped(contaminated=5, held_out=2), validation=Dropped(contaminated=1), test=Dropped(duplicates=9)
    )
    found = _integrity(validate(tables, _config()))
    assert found["leakage"][0] == found["contamination"][0] == "pass"
    assert found["leakage"][1].endswith("; 2 were left out before")
    assert found["contamination"][1].endswith("; 6 were removed before")


def test_nobody_claims_that_near_duplicates_were_looked_for_when_they_were_not() -> None:
    report = validate(_tables(), _config(fields={"contamination": None}))
    assert set(_integrity(report)) == {"leakage"}
    assert not [check for check in report.checks if check.name.startswith("near-")]


WORDS = "film actor scene story music the a with and of this was is very not much again".split()


def _told(seed: int) -> str:
    return " ".join([SECRET, *random.Random(seed).choices(WORDS, k=6)])


def _covered(reference: list[str], **coverage: Any) -> ValidationReport:
    train = [(f"train{n}", _told(n), n % 2) for n in range(240)]
    fields = {"coverage": {"reference": TABLE} | coverage}
    tables = _tables(train=train)
    frame = pd.DataFrame({"id": [str(n) for n in range(len(reference))], "text": reference}, dtype=object)
    return validate(
        Tables(frames=tables.frames, dropped={}, reference=frame), _config(fields=fields, max_characters=99)
    )


ALIKE = [_told(n) for n in range(1000, 1240)]
FOREIGN = [f"{SECRET} something else entirely, about number {n} and more than that" for n in range(100)]


def test_a_reference_like_the_training_data_passes_and_its_figures_are_kept(tmp_path: Path) -> None:
    report = _covered(ALIKE)
    reject_if_critical(report)
    assert set(report.coverage) == {"coverage", "auroc", "length_distance", "script_distance", "language_distance"}
    checks = {check.name: check for check in report.checks if check.name.startswith("coverage")}
    assert set(checks) == {"coverage", "coverage-auroc", "coverage-length", "coverage-script", "coverage-language"}
    assert {check.table for check in checks.values()} == {"train"}
    assert checks["coverage"].observed == report.coverage["coverage"].value
    assert _integrity(report)["coverage"][0] == "pass"
    assert "; 120 training and 240 reference texts compared" in _integrity(report)["coverage"][1]
    assert list(report.tables) == ["train", "validation", "test", "ood-web"]
    write_data_docs(report, tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "length distance" in page
    assert SECRET not in page


def test_a_missed_bound_of_coverage_stops_the_run_with_figure_and_bound() -> None:
    report = _covered(FOREIGN)
    assert _integrity(report)["coverage"][0] == "fail"
    with pytest.raises(DataRejected) as caught:
        reject_if_critical(report)
    assert str(caught.value).startswith(
        "train: a share of 0 of the reference texts is covered, below 0.5; add training data like "
        "data.coverage.reference, or correct the reference"
    )
    assert "\n" not in str(caught.value)
    assert any("is 1, above 0.9" in message for message in _failed(report).values())


def test_a_missed_bound_of_coverage_is_a_warning_if_the_recipe_says_so() -> None:
    report = _covered(FOREIGN, action="warn")
    reject_if_critical(report)
    assert {"coverage", "coverage-auroc"} <= {check.name for check in report.warnings}
    assert _integrity(report)["coverage"][0] == "warn"


def test_another_script_or_language_in_the_reference_is_a_warning_only() -> None:
    report = _covered([f"это другой текст {n}" for n in range(100)], min_coverage=0, max_auroc=1, max_length_distance=1)
    reject_if_critical(report)
    assert [check.name for check in report.warnings] == ["coverage-script", "coverage-language"]


def test_a_perturbed_set_may_hold_texts_twice_and_must_differ() -> None:
    tables = _tables()
    config = _config(fields={"perturbations": [{"name": "short", "kind": "length"}]})
    tables.frames["perturbed-short"] = tables["test"].assign(text=SECRET)
    assert validate(tables, config).success
    tables.frames["perturbed-short"] = tables["test"]
    assert _failed(validate(tables, config)) == {
        ("perturbed-short", "changed"): "perturbed-short: the perturbation changes no text; correct it or leave it out"
    }


def test_texts_that_no_label_fits_need_none() -> None:
    tables = _tables()
    tables.frames["ood-scope"] = pd.DataFrame(_rows("scope"), columns=["id", "text", "label"]).drop(columns="label")
    ood = {"ood": [{"name": "web", "table": TABLE}, {"name": "scope", "kind": "out-of-scope", "table": TABLE}]}
    report = validate(tables, _config(fields=ood))
    assert report.success
    assert report.tables["ood-scope"].labels == {}


def test_labels_that_are_no_integers_are_refused() -> None:
    tables = _tables()
    tables.frames["test"]["label"] = tables["test"]["label"].astype(float)
    assert ("test", "label-type") in _failed(validate(tables, _config()))


def test_an_unbalanced_label_is_a_warning_only() -> None:
    rows = [(row, text, int(row == "train0")) for row, text, _ in _rows("train")]
    report = validate(_tables(train=rows), _config(min_label_share=0.1))
    assert report.success
    assert [check.name for check in report.warnings] == ["label-balance"]
    assert "share of 0.05, below 0.1" in report.warnings[0].message
    reject_if_critical(report)


def test_a_label_without_rows_in_train_is_a_warning_only() -> None:
    report = validate(_tables(train=[(row, text, 0) for row, text, _ in _rows("train")]), _config())
    assert [check.message for check in report.warnings] == [
        "train: 1 of 2 labels occur; add rows of the others or remove these labels"
    ]


def test_sets_that_only_judge_may_share_texts() -> None:
    assert validate(_tables(ood_web=_rows("test")), _config()).success


def test_the_error_says_how_many_other_checks_failed() -> None:
    report = validate(_tables(train=[("a", "", 0), ("a", "", 5)]), _config())
    with pytest.raises(DataRejected, match=r"\(3 more checks failed, see the report\)$"):
        reject_if_critical(report)


def test_a_check_lists_twenty_rows_and_counts_all() -> None:
    report = validate(_tables(train=_rows("test", 30), test=_rows("test", 30)), _config())
    [leak] = [check for check in report.failures if check.name == "leak-test"]
    assert (leak.unexpected_count, len(leak.unexpected_rows)) == (30, 20)
    assert leak.unexpected_rows[0] == "test0"


def test_neither_report_nor_pages_show_a_text(tmp_path: Path) -> None:
    rows = [*_rows("train"), ("r1", f"{SECRET} train 3", 7), ("r2", f"{SECRET} test 4", 1), ("r3", SECRET * 20, 0)]
    report = validate(_tables(train=rows), _config())
    write_data_docs(report, tmp_path)
    written = pretty_json(report) + b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert len(report.failures) == 4
    assert SECRET.encode() not in written.lower()


def test_the_profile_holds_no_text() -> None:
    tables = _tables()
    frame = profile("train", tables, _config())
    assert not frame.astype(str).apply(lambda column: column.str.contains(SECRET, case=False)).any(axis=None)
    assert list(frame.columns[-6:]) == [
        f"{kind}_{o}" for kind in ("in", "near") for o in ("validation", "test", "ood-web")
    ]


def test_data_docs_need_no_network_and_run_no_script(tmp_path: Path) -> None:
    write_data_docs(validate(_tables(train=_rows("test")), _config()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "http" not in page
    assert "<script" not in page
    assert "also in test" in page
    assert "An unexpected Exception" not in page


def test_data_docs_can_be_written_from_a_stored_report(tmp_path: Path) -> None:
    report = validate(_tables(train=_rows("test")), _config())
    write_data_docs(report, tmp_path / "now")
    write_data_docs(ValidationReport.model_validate_json(canonical_json(report)), tmp_path / "later")
    assert (tmp_path / "now/index.html").read_bytes() == (tmp_path / "later/index.html").read_bytes()


def test_equal_data_gives_equal_bytes(tmp_path: Path) -> None:
    rows = [*_rows("train"), ("r2", f"{SECRET} test 4", 1)]
    pages, reports = [], []
    for name in ("one", "two"):
        report = validate(_tables(train=rows), _config())
        write_data_docs(report, tmp_path / name)
        reports.append(pretty_json(report))
        pages.append((tmp_path / name / "index.html").read_bytes())
    assert reports[0] == reports[1]
    assert pages[0] == pages[1]


def test_reading_data_does_not_wait_for_great_expectations() -> None:
    code = "import sys, stillhouse.data; sys.exit('great_expectations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
