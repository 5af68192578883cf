"""From the probes' records to a prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.contract import (
    METRICS,
    RECIPE_TEACHER,
    Estimate,
    Metric,
    Outlook,
    Preflight,
    Probe,
    ProbeModel,
    TeacherChoice,
    outlook_of,
    signed,
    subject_of,
)
from stillhouse.recipe import Recipe
from stillhouse.training.preflight.candidates import Candidate
from stillhouse.training.preflight.crossed import CrossedMean, Floats, crossed_mean
from stillhouse.training.preflight.probe import Measured

MODELS: tuple[ProbeModel, ...] = ("guess", "teacher", "sft", "kd")


@dataclass(frozen=True, kw_only=True)
class _Values:
    """One candidate in R repeats on N items."""

    by_model: Mapping[ProbeModel, Floats]
    """Shape (R, N): right or wrong, or the loss summed over an item's tokens."""
    weights_N: Floats
    groups_N: npt.NDArray[np.int64]
    metric: Metric

    def mean(self, values_RN: Floats) -> CrossedMean:
        least = 1.0 if self.metric == "accuracy" else 0.0  # losses are never equal by being few
        return crossed_mean(values_RN, self.weights_N, self.groups_N, least=least)

    def gains(self, values_RN: Floats, baseline_RN: Floats) -> Floats:
        """Return by how much each value is better than that of a baseline, shape (R, N)."""
        return values_RN - baseline_RN if METRICS[self.metric].better == "higher" else baseline_RN - values_RN

    def better(self, values_RN: Floats, baseline_RN: Floats) -> CrossedMean:
        """Return by how much values are better than those of a baseline, paired by repeat and item."""
        return self.mean(self.gains(values_RN, baseline_RN))


def foretell(
    recipe: Recipe, found: Sequence[tuple[Candidate, Sequence[Measured]]], *, rows: int, train_rows: int
) -> Preflight:
    """Turn what the probes found into a prediction.

    Args:
        recipe: That was tried.
        found: By candidate, the recipe's own first: what each of the R repeats measured, on the same N items.
        rows: That each repeat learned from.
        train_rows: That a run learns from.
    """
    metric: Metric = "accuracy" if recipe.task == "text-classification" else "nll"
    values = [_values([measured.records for measured in repeats], metric) for _, repeats in found]
    probes = tuple(_probe(recipe, *one, its) for one, its in zip(found, values, strict=True))
    choice = _choose(recipe, [candidate for candidate, _ in found], values)
    return Preflight(
        recipe=recipe.name,
        subject=subject_of(recipe),
        metric=metric,
        confidence=recipe.evaluation.confidence,
        rows=rows,
        train_rows=train_rows,
        items=len(values[0].weights_N),
        repeats=len(found[0][1]),
        probes=probes,
        choice=choice,
        conclusion=_conclude(probes[0], choice, metric),
    )


def _values(records: Sequence[pa.Table], metric: Metric) -> _Values:
    columns: dict[ProbeModel, list[Floats]] = {model: [] for model in MODELS}
    for table in records:
        for model in MODELS:
            rows = table.filter(pc.field("model") == model)
            column = rows["correct"].cast(pa.int8()) if metric == "accuracy" else rows["loss"]
            columns[model].append(column.to_numpy().astype(np.float64))
    rows = records[0].filter(pc.field("model") == MODELS[0])
    _, groups_N = np.unique(rows["group"].to_numpy().astype(str), return_inverse=True)
    weights_N = np.ones(len(groups_N)) if metric == "accuracy" else rows["targets"].to_numpy().astype(np.float64)
    return _Values(
        by_model={model: np.stack(its) for model, its in columns.items()},
        weights_N=weights_N,
        groups_N=groups_N,
        metric=metric,
    )


def _probe(recipe: Recipe, candidate: Candidate, repeats: Sequence[Measured], values: _Values) -> Probe:
    confidence = recipe.evaluation.confidence
    models = values.by_model
    gain = values.better(models["kd"], models["sft"])
    skill = values.better(models["teacher"], models["guess"]).estimate(confidence)
    headroom = values.better(models["teacher"], models["sft"]).estimate(confidence)
    estimate = gain.estimate(confidence)
    outlook, problem = _judge(estimate, skill, headroom, learns=recipe.teacher.finetune is not None)
    gains_R = values.gains(models["kd"], models["sft"]).sum(axis=1) / values.weights_N.sum()
    return Probe(
        teacher=candidate.teacher,
        teacher_layers=candidate.teacher_layers,
        teacher_parameters=repeats[0].teacher_parameters,
        student_layers=repeats[0].student_layers,
        student_parameters=repeats[0].student_parameters,
        scores={model: _score(values, models[model], confidence) for model in MODELS},
        gain=estimate,
        gains=tuple(round(float(gain), 9) + 0.0 for gain in gains_R),
        probability=gain.above_zero,
        headroom=headroom,
        skill=skill,
        outlook=outlook,
        problem=problem,
    )


def _score(values: _Values, values_RN: Floats, confidence: float) -> Estimate:
    estimate = values.mean(values_RN).estimate(confidence)
    most = 1.0 if values.metric == "accuracy" else np.inf
    return estimate.model_copy(update={"low": max(estimate.low, 0.0), "high": min(estimate.high, most)})


def _judge(gain: Estimate, skill: Estimate, headroom: Estimate, *, learns: bool) -> tuple[Outlook, str | None]:
    """Say what is to be expected, and what the first problem is.

    A teacher that was to learn and did not may only have lacked the budget: then the probe says nothing. One that is
    used as it is has nothing to pass on.
    """
    if skill.low <= 0 and learns:
        return "open", (
            "the teacher learned nothing measurable beyond how frequent the answers are; raise preflight.rows or "
            "preflight.epochs, or look at teacher.finetune"
        )
    if skill.low <= 0:
        return "unlikely", (
            "the teacher is not measurably better than guessing by frequency; set teacher.finetune or name another"
        )
    if headroom.high < 0:
        return outlook_of(gain), "the student without the teacher does better than the teacher itself"
    return outlook_of(gain), None


def _choose(recipe: Recipe, found: Sequence[Candidate], values: Sequence[_Values]) -> TeacherChoice | None:
    """Compare the teachers of the recipe's own student with the recipe's own teacher."""
    size = found[0].student_layers
    kd = {c.teacher: its.by_model["kd"] for c, its in zip(found, values, strict=True) if c.student_layers == size}
    own, others = kd[RECIPE_TEACHER], [name for name in kd if name != RECIPE_TEACHER]
    if not others:
        return None
    confidence = 1 - (1 - recipe.evaluation.confidence) / len(others)
    advantages = {name: values[0].better(kd[name], own).estimate(confidence) for name in others}
    leader = max(others, key=lambda name: advantages[name].value)
    if advantages[leader].value > 0:
        return TeacherChoice(best=leader, advantages=advantages, resolved=advantages[leader].low > 0)
    return TeacherChoice(
        best=RECIPE_TEACHER, advantages=advantages, resolved=all(its.high < 0 for its in advantages.values())
    )


def _conclude(own: Probe, choice: TeacherChoice | None, metric: Metric) -> str:
    gain = f"{METRICS[metric].title}, kd over sft: {signed(own.gain)}"
    chance = f"chance of a gain {100 * own.probability:.0f} %"
    half = (own.gain.high - own.gain.low) / 2
    told = {
        "likely": f"distillation is likely to beat plain fine-tuning ({gain}, {chance})",
        "unlikely": f"distillation is unlikely to beat plain fine-tuning ({gain}, {chance})",
        "open": f"open: the probe can't tell distillation from plain fine-tuning ({gain}, {chance}); to see "
        f"differences below about {half:.3f}, raise preflight.rows, items or repeats",
    }[own.outlook]
    sentences = [sentence for sentence in (own.problem, told, _advise(choice)) if sentence]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _advise(choice: TeacherChoice | None) -> str | None:
    if choice is None:
        return None
    if choice.resolved and choice.best != RECIPE_TEACHER:
        return f"{choice.best} is the better teacher for this student ({signed(choice.advantages[choice.best])})"
    if choice.resolved:
        return "the recipe's teacher is better for this student than every other"
    best = f"{choice.best} did best" if choice.best != RECIPE_TEACHER else "the recipe's own did best"
    return f"keep the recipe's teacher: {best}, but no difference between the teachers is beyond doubt"
