"""Sections ``preflight``, ``evaluation``, ``gate`` and ``promotion``: what counts as proof and what follows from it."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from stillhouse.recipe.base import Config, Name
from stillhouse.recipe.sources import FileSource, ModelSource

MODELS = ("teacher", "kd", "unfiltered", "sft", "start", "champion")
"""Whom an evaluation may know besides the steps of a compression chain, in the order of tables. ``kd`` is the distilled
student, ``start`` the student before it learned. A control or the champion may be missing, and a teacher that is a
server always is."""


class ProbeTeacher(Config):
    """Another model that could be the teacher."""

    name: Name
    source: ModelSource
    """Fine-tuned as the recipe's own teacher is."""
    licence: str
    """SPDX identifier, or a name, of the terms under which it is used."""


class PreflightConfig(Config):
    """Small trainings before a run (``stillhouse preflight``): will the teacher help, and which one? No run reads this.

    A probe is the recipe with fewer training rows. A larger teacher is not always the better one for a small student
    (Cho & Hariharan 2019), and one of a size between them may be (Mirzadeh et al. 2020); which one depends on the
    student (Busbridge et al. 2025). So each candidate teaches, and the students are compared on the validation set.
    """

    rows: int = Field(default=1000, ge=16)
    """Training rows of a probe; teacher and student learn from the same ones."""
    items: int = Field(default=1000, ge=16)
    """Validation rows at most."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the rows at most; by default as many as the recipe's."""
    repeats: int = Field(default=3, ge=3, le=100)
    """Trainings of each probe, with other rows and other seeds: what luck does is part of every interval."""
    assistants: tuple[int, ...] | None = None
    """Shallower teachers to try: numbers of the teacher's own layers that are kept, evenly spaced, before it is
    fine-tuned. By default one, halfway between teacher and student, where ``teacher.finetune`` is given."""
    teachers: tuple[ProbeTeacher, ...] = ()
    """Further teachers to try."""
    student_layers: tuple[int, ...] = ()
    """Further sizes of the student to try, with the recipe's teacher."""
    cpus: int = Field(default=2, ge=1)
    """Threads of the numerical libraries."""
    seed: int = Field(default=31, ge=0)
    """Of the choice of rows."""

    @model_validator(mode="after")
    def _candidates_are_distinct(self) -> Self:
        names = [teacher.name for teacher in self.teachers]
        if len(set(names)) != len(names) or any(n == "teacher" or n.startswith("assistant-") for n in names):
            raise ValueError("teachers need distinct names, none of them 'teacher' or 'assistant-N'")
        for field, sizes in (("assistants", self.assistants or ()), ("student_layers", self.student_layers)):
            if len(set(sizes)) != len(sizes) or min(sizes, default=1) < 1:
                raise ValueError(f"{field} must be distinct numbers of layers, 1 or more")
        return self


class GenerationConfig(Config):
    """Answers that can be verified: the model continues the prompt, and the row's text is the right answer."""

    max_new_tokens: int = Field(default=32, ge=1)
    samples: int = Field(default=1, ge=0)
    """Answers per prompt besides the greedy one that exact match judges: pass@1 is their share that is right. 0 leaves
    pass@1 out."""
    temperature: float = Field(default=0.7, gt=0)
    """Of the samples."""
    compare: Literal["exact", "normalised", "last-number"] = "normalised"
    """``normalised``: case, punctuation and white space don't count. ``last-number``: the last number in both texts."""
    metric: Literal["exact_match", "pass_at_1", "nll"] = "exact_match"
    """By which models are compared where they answer. ``nll`` is the loss of the right answer right after the prompt:
    no measure of a student that reasons before it answers."""

    @model_validator(mode="after")
    def _metric_is_measured(self) -> Self:
        if self.metric == "pass_at_1" and self.samples == 0:
            raise ValueError("metric pass_at_1 needs samples")
        return self


class HarnessConfig(Config):
    """Tasks of the lm-evaluation-harness (Gao et al. 2024), each a suite of kind ``benchmark``.

    They need ``stillhouse[harness]``, and right or wrong for each item: ``acc``, or ``exact_match`` of greedy answers.
    """

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of tasks, not of groups. A file in ``source`` comes before a task that ships with the harness, whose items
    mostly come from a model hub, unpinned."""
    source: FileSource | None = None
    """A folder of task files (``*.yaml``) and of the data files that they name in ``dataset_kwargs.data_files``,
    relative to themselves. They may name no Python."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Worked examples before each question; by default the task's own number. A task that insists on 0 keeps it."""
    limit: int | None = Field(default=None, ge=1)
    """Items of a task at most, its first ones; by default all."""
    seed: int = Field(default=1234, ge=0)
    """Of the choice of worked examples; the default is the harness's own."""

    def suites(self) -> dict[str, str]:
        """Return the task of each suite: a suite is called like its task, in lower case and with dashes."""
        return {_suite_name(task): task for task in self.tasks}

    @model_validator(mode="after")
    def _suites_are_distinct(self) -> Self:
        if len(self.suites()) != len(self.tasks) or "" in self.suites():
            raise ValueError("tasks must differ in their letters and digits")
        return self


def _suite_name(task: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")


class EvaluationConfig(Config):
    """How every model of the run is measured, on the same frozen items."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Level of every interval."""
    resamples: int = Field(default=2000, ge=100)
    """Draws of the paired bootstrap."""
    calibration_bins: int = Field(default=15, ge=2)
    """Equal-mass bins of the expected calibration error."""
    batch_size: int = Field(default=64, ge=1)
    """Sequences per forward pass."""
    latency_items: int = Field(default=100, ge=10)
    """Test items timed one by one, alternating between the models."""
    temperature_scaling: bool = False
    """Also report classifiers' calibration after one temperature was fitted to the validation set (Guo et al. 2017)."""
    generation: GenerationConfig | None = None
    """Also let causal language models answer the prompts of the sets; needs a ``prompt_column``."""
    harness: HarnessConfig | None = None
    """Also put causal language models to tasks of the lm-evaluation-harness."""
    seed: int = Field(default=29, ge=0)


class GateConfig(Config):
    """Which rules decide about promotion."""

    policy: str
    """Path of the policy file, absolute or relative to the folder of the recipe file."""


class ProductionConfig(Config):
    """A registered model, maybe on another server, that receives a verified copy of every champion."""

    model: Name
    """Name of the registered model there."""
    tracking_uri: str | None = Field(default=None, pattern=r"^https?://[^/@]+(/.*)?$")
    """The MLflow server; by default the one that tracks the runs. Credentials come from the environment."""


class PromotionConfig(Config):
    """Where an accepted student goes."""

    model: Name
    """Name of the registered model; service owners load ``models:/MODEL@champion``."""
    approval: Literal["auto", "human", "two-person"] = "human"
    """``human``: a reviewer approves the decision in the Airflow UI; no answer in time is a rejection.
    ``two-person``: the reviewer must not be who triggered the run."""
    approval_hours: float = Field(default=72.0, gt=0)
    """Time for the answer."""
    production: ProductionConfig | None = None
    """Also copy the promoted version into a production registry."""
