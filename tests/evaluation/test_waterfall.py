"""The compression chain on the page: what each step did and what is left after it."""

from findings import CLASSIFIED, TIMINGS, estimate, make_inputs, make_summary

from stillhouse.contract import DISTILLED, MODELS, Chain, ModelSize, ModelTiming, StepReport
from stillhouse.evaluation import render_report
from stillhouse.evaluation.chain import chain_table
from stillhouse.evaluation.plots import to_svg
from stillhouse.evaluation.waterfall import waterfall
from stillhouse.recipe.compression import Form

SUMMARY = make_summary(CLASSIFIED, "accuracy", models=(*MODELS, "narrow", "int8"))
SUMMARY = SUMMARY.model_copy(update={"candidate": "int8"})


def step(name: str, position: int, form: Form, before: str, *, kept: bool) -> StepReport:
    return StepReport(
        name=name,
        kind="quantize",
        position=position,
        form=form,
        before=before,
        did=f"did {name}",
        rounds=position,
        metric="accuracy",
        score_before=estimate(0.86),
        score=estimate(0.85),
        drop=estimate(0.012, 0.004),
        max_drop=0.01,
        size_before=ModelSize(parameters=100, num_bytes=400),
        size=ModelSize(parameters=100, num_bytes=100),
        kept=kept,
        reason=f"why {name}",
    )


CHAIN = Chain.of(
    [step("narrow", 1, "transformers", DISTILLED, kept=False), step("int8", 2, "quantized", DISTILLED, kept=True)]
)
OWN = ModelTiming(parameters=100, num_bytes=9_000_000, latency_p50_ms=1.5, latency_p95_ms=2.0, throughput=900.0)
TIMED = TIMINGS.model_copy(update={"models": {**TIMINGS.models, "narrow": OWN, "int8": OWN}})


def test_each_step_says_what_it_did_what_it_cost_and_what_became_of_it() -> None:
    first, narrow, int8 = chain_table(CHAIN, SUMMARY, TIMED).rows

    assert first.cells[0].model == DISTILLED
    assert (narrow.cells[3].text, narrow.cells[3].tone, narrow.cells[3].detail) == ("✗ dropped", "fail", "why narrow")
    assert (int8.cells[3].text, int8.marked, narrow.marked) == ("✓ kept", True, False)
    assert int8.cells[1].detail == "from kd, 2 rounds"
    assert int8.cells[2].text == "+0.012"
    assert "at most 0.01" in int8.cells[2].detail
    teacher = TIMED.models["teacher"]
    assert int8.cells[5].detail == f"{teacher.num_bytes / OWN.num_bytes:.1f}× smaller than the teacher"
    assert int8.cells[6].detail == f"{teacher.latency_p50_ms / OWN.latency_p50_ms:.1f}× as fast as the teacher"


def test_the_picture_goes_from_the_teacher_down_the_chain() -> None:
    figure = waterfall(CHAIN, SUMMARY, TIMED)

    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["teacher", "kd", "narrow", "int8"]
    filled = [bar.get_facecolor()[3] > 0 for bar in figure.axes[1].patches]
    assert filled == [True, True, False, True], "a dropped step is hollow"
    assert to_svg(figure, name="a") == to_svg(waterfall(CHAIN, SUMMARY, TIMED), name="a")


def test_a_loss_is_turned_so_that_better_is_right() -> None:
    losses = make_summary({"words": ("in-domain", 2.0, 100)}, "nll", models=("teacher", "kd", "int8"))
    assert waterfall(CHAIN, losses, TIMED).axes[0].xaxis_inverted()
    assert not waterfall(CHAIN, SUMMARY, TIMED).axes[0].xaxis_inverted()


def test_the_page_has_the_chain_only_where_there_is_one() -> None:
    page = render_report(make_inputs(SUMMARY, chain=CHAIN, timings=TIMED))
    assert 'id="compression"' in page
    assert "did narrow" in page
    assert 'id="compression"' not in render_report(make_inputs(make_summary(CLASSIFIED, "accuracy")))
