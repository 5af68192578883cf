import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stillhouse.contract import DataRejected, canonical_json, pretty_json
from stillhouse.data import Tables, ValidationReport, reject_if_critical
from stillhouse.data.docs import write_data_docs
from stillhouse.data.suites import profile, suites_as_json, validate
from stillhouse.recipe import DataConfig

SNAPSHOT = Path(__file__).with_name("suites.json")
SECRET = "zebra"
"""Part of every text: neither reports nor Data Docs may contain it."""

Rows = list[tuple[str, str, int]]


def _config(**checks: Any) -> DataConfig:
    table = {"source": {"kind": "path", "path": "/x"}, "format": "csv", "licence": "x", "origin": "x"}
    bounds = {"min_rows": 4, "max_characters": 40} | checks
    return DataConfig.model_validate(
        {
            "domain": "d",
            "labels": ["no", "yes"],
            "train": table,
            "ood": [{"name": "web", "table": table}],
            "checks": bounds,
        }
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
    found = suites_as_json(["train", "validation", "test", "ood-web"], _config())
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
    frame = profile("train", tables)
    assert not frame.astype(str).apply(lambda column: column.str.contains(SECRET, case=False)).any(axis=None)
    assert list(frame.columns[-3:]) == ["in_validation", "in_test", "in_ood-web"]


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
