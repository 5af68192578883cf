"""What tables say: order, marks, bars, and Markdown that no entry can break."""

import math
from collections.abc import Mapping

from findings import classified, estimate, language, make_decision
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.contract import Estimate, RuleOutcome
from stillhouse.evaluation import TaskCost, tables
from stillhouse.evaluation.tables import Cell, Row, Table

DECISION = make_decision(classified())


def column(table: Table, name: str) -> list[Cell]:
    return [row.cells[table.columns.index(name)] for row in table.rows]


def test_what_fails_comes_first_and_power_is_shown_only_if_known() -> None:
    table = tables.rules_table(DECISION)
    assert [cell.tone for cell in column(table, "outcome")] == ["fail", "inconclusive", "pass", "pass"]
    rules = tuple(rule.model_copy(update={"power": None}) for rule in DECISION.rules)
    without = DECISION.model_copy(update={"rules": rules})
    assert "power" not in tables.rules_table(without).columns


def test_one_suite_is_the_worst() -> None:
    for summary, name in ((classified(), "kd keeps"), (language(), "kd minus teacher")):
        table = tables.suites_table(summary)
        marks = [cell.mark for cell in column(table, name)]
        assert sorted(marks)[-1] == "worst"
        assert marks.count("worst") == 1


def test_out_of_scope_suites_are_not_compared_with_the_others() -> None:
    names = [row.cells[0].text for row in tables.suites_table(classified()).rows]
    assert "recipes" not in names
    assert "recipes" not in [row.cells[0].text for row in tables.drops_table(classified()).rows]


def test_the_worst_labels_come_first_and_are_at_most_ten() -> None:
    summary = classified()
    home = summary.suites[0]
    recalls = {f"label-{i}": estimate(0.9 - i / 100) for i in range(15)}
    scores = home.models["kd"].model_copy(update={"per_label": recalls})
    many = home.model_copy(update={"models": {**home.models, "kd": scores}})
    labels = [row.cells[0].text for row in tables.labels_table(summary, many).rows]
    assert labels == [f"label-{i}" for i in range(14, 4, -1)]


def test_a_bad_drop_beyond_the_teachers_is_marked() -> None:
    summary = classified()
    table = tables.drops_table(summary)
    worst = max(summary.excess_drops, key=lambda name: summary.excess_drops[name].value)
    marked = [row.cells[0].text for row in table.rows if row.cells[-1].mark]
    assert marked == [worst]


def test_costs_add_up() -> None:
    plain = {"teach-0": TaskCost(seconds=30.0, peak_memory_bytes=2_000_000), "distill-kd": TaskCost(seconds=45.5)}
    table = tables.costs_table(plain)
    assert [cell.text for cell in column(table, "time")] == ["30.0 s", "45.5 s", "1 min 16 s"]
    assert [cell.text for cell in column(table, "peak memory")] == ["2.0 MB", "0.0 MB", "2.0 MB"]
    assert not {"paid", "accelerator time"} & set(table.columns)
    dear = tables.costs_table(plain | {"generate-0": TaskCost(seconds=1.0, device_seconds=2.0, cost=0.034)})
    assert [cell.text for cell in column(dear, "paid")] == ["—", "—", "0.034", "0.034"]
    assert column(dear, "accelerator time")[-1].text == "2.0 s"


@given(st.lists(st.text(max_size=12), min_size=2, max_size=2), st.text(max_size=8))
def test_no_entry_breaks_a_markdown_table(texts: list[str], mark: str) -> None:
    table = Table(columns=("a", "b"), rows=(Row(cells=tuple(Cell(text=text, mark=mark) for text in texts)),))
    lines = tables.markdown(table)
    assert len(lines) == 3
    assert all(len(line.splitlines()) == 1 for line in lines)
    assert {line.replace("\\|", "").count("|") for line in lines} == {3}


numbers = st.integers(-1000, 1000).map(lambda thousandths: thousandths / 1000)


def found_bar(value: Estimate, bound: float) -> Mapping[str, float] | None:
    rule = RuleOutcome(rule="r", requirement="", outcome="pass", value=value, bound=bound, reason="")
    return column(tables.rules_table(DECISION.model_copy(update={"rules": (rule,)})), "found")[0].bar


@given(numbers, st.integers(0, 500), st.integers(0, 500), numbers)
def test_a_bar_stays_on_its_line_and_in_order(value: float, down: int, up: int, bound: float) -> None:
    wide = Estimate(value=value, low=value - down / 1000, high=value + up / 1000, standard_error=0.1, n=9)
    bar = found_bar(wide, bound)
    assert bar is not None
    assert tables.NARROW <= bar["low"] <= bar["value"] <= bar["high"] <= tables.WIDE
    assert tables.NARROW <= bar["bound"] <= tables.WIDE
    if bound > value:
        assert bar["bound"] >= bar["value"]


def test_what_is_no_number_has_no_bar() -> None:
    assert found_bar(estimate(0.5).model_copy(update={"low": math.nan}), 0.1) is None
