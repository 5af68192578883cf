"""What is told of a teacher's writings adds up, and says nothing of what was not measured."""

import pytest
from findings import make_synthesis, make_terms
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.contract import FilterCount, SynthesisReport, TermsReport
from stillhouse.evaluation import written
from stillhouse.evaluation.tables import Table


def entries(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row.cells] for row in table.rows]


@given(st.lists(st.integers(0, 50), max_size=5), st.integers(0, 100))
def test_the_funnel_adds_up(removed: list[int], left: int) -> None:
    seen = sum(removed) + left
    filters = []
    for number, count in enumerate(removed):
        filters.append(FilterCount(name=f"f{number}", seen=seen, removed=count))
        seen -= count
    table = entries(written.funnel_table(make_synthesis(filters=tuple(filters), kept=left)))
    assert table[-1][:2] == ["kept", str(left)]
    assert sum(int(row[2]) for row in table[:-1]) == sum(removed)


def test_every_table_has_as_many_entries_as_titles() -> None:
    report = make_synthesis()
    lacking = make_synthesis(diversity={"train": report.diversity["train"]}, tokens={})
    assert report.audit is not None
    unchecked = [found.model_copy(update={"step_accuracy": None}) for found in report.audit.by_length]
    bare = report.audit.model_copy(
        update={"by_length": tuple(unchecked), "per_step": None, "right_with_wrong_steps": None}
    )
    for table in (
        *(make(found) for found in (report, lacking) for make in (written.counts_table, written.funnel_table)),
        *(written.sets_table(found) for found in (report, lacking)),
        *(make(audit) for audit in (report.audit, bare) for make in (written.audit_table, written.lengths_table)),
        written.terms_table(make_terms()),
    ):
        assert {len(row.cells) for row in table.rows} == {len(table.columns)}


def test_what_was_not_measured_is_not_told() -> None:
    plain = make_synthesis(rating=None, audit=None, filters=())
    assert written.rating_sentence(plain) == ""
    (only,) = written.written_sentences(plain)
    assert only.startswith("large-1 at teacher.example wrote")
    free = make_synthesis(counts=plain.counts.model_copy(update={"cost": 0.0}))
    assert "paid" not in [row[0] for row in entries(written.counts_table(free))]


@pytest.mark.parametrize(
    ("ruling", "signed", "title", "tone"),
    [
        ("allowed", False, "✓ allowed", "pass"),
        ("denied", False, "✗ denied", "fail"),
        ("unknown", False, "✗ unknown", "fail"),
        ("needs-sign-off", False, "? needs sign-off", "inconclusive"),
        ("needs-sign-off", True, "✓ signed off", "pass"),
    ],
)
def test_a_ruling_shows_whether_the_run_was_permitted(ruling: str, signed: bool, title: str, tone: str) -> None:
    made = make_terms()
    changes = {"ruling": ruling} | ({} if signed else {"sign_off": None})
    terms = TermsReport.model_validate(
        made.model_copy(update={"findings": (made.findings[0].model_copy(update=changes),)}).model_dump()
    )
    cell = written.terms_table(terms).rows[0].cells[1]
    assert (cell.text, cell.tone) == (title, tone)
    assert (terms.integrity.outcome == "pass") == (tone == "pass")


@pytest.mark.parametrize(
    ("changes", "outcome"), [({}, "pass"), ({"kept": 0}, "fail"), ({"rows": {"train": 0}}, "fail")]
)
def test_a_set_without_rows_is_no_evidence(changes: dict[str, object], outcome: str) -> None:
    report: SynthesisReport = make_synthesis(**changes)
    assert report.integrity.outcome == outcome
    assert "3,000" in report.integrity.detail
