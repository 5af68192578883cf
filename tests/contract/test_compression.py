"""A chain goes on from the last good model that the next step can begin with."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stillhouse.contract import DISTILLED, PROMOTABLE, Chain, Estimate, ModelSize, StepReport
from stillhouse.recipe.compression import Form

FORMS: tuple[Form, ...] = ("transformers", "quantized", "low-rank", "onnx")
ESTIMATE = Estimate(value=0.9, low=0.8, high=1.0, standard_error=0.05, n=40)
SIZE = ModelSize(parameters=10, num_bytes=40)


def report(name: str, position: int, form: Form, *, kept: bool) -> StepReport:
    return StepReport(
        name=name,
        kind="export",
        position=position,
        form=form,
        before=DISTILLED,
        did="something",
        rounds=1,
        metric="accuracy",
        score_before=ESTIMATE,
        score=ESTIMATE,
        drop=ESTIMATE,
        max_drop=0.01,
        size_before=SIZE,
        size=SIZE,
        kept=kept,
        reason="because",
    )


@given(st.lists(st.tuples(st.sampled_from(FORMS), st.booleans()), max_size=6), st.randoms(use_true_random=False))
def test_no_dropped_step_is_ever_built_on_promoted_or_registered(steps: list[tuple[Form, bool]], random: Any) -> None:
    reports = [report(f"s{i}", i + 1, form, kept=kept) for i, (form, kept) in enumerate(steps)]
    shuffled = list(reports)
    random.shuffle(shuffled)

    chain = Chain.of(shuffled)

    assert list(chain.steps) == reports, "the order of the inputs does not count"
    dropped = {step.name for step in reports if not step.kept}
    kept = [step for step in reports if step.kept]
    assert chain.last_good(*FORMS) == (kept[-1].name if kept else DISTILLED)
    assert not {chain.candidate, *(step.name for step in chain.variants)} & dropped
    promotable = [step.name for step in kept if step.form in PROMOTABLE]
    assert chain.candidate == (promotable[-1] if promotable else DISTILLED)
    assert len(promotable) + len(chain.variants) == len(kept)
