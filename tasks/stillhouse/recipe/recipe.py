"""A recipe: one YAML file, one workflow, one DAG."""

from typing import Literal, Self

from pydantic import Field, model_validator

from stillhouse.recipe.base import Config, Name, Task
from stillhouse.recipe.compression import CompressionStep, check_chain
from stillhouse.recipe.data import DataConfig
from stillhouse.recipe.distillation import DistillationConfig
from stillhouse.recipe.learning import StudentConfig, TeacherConfig, TrainingConfig
from stillhouse.recipe.operation import ResourcesConfig, ScheduleConfig
from stillhouse.recipe.proof import EvaluationConfig, GateConfig, PreflightConfig, PromotionConfig
from stillhouse.recipe.synthesis import SynthesisConfig


class Recipe(Config):
    """Everything that decides about a run's result. Defaults are a complete production configuration."""

    version: Literal[1] = 1
    """Version of the recipe format."""
    name: Name
    """Name of the workflow and of its DAG."""
    description: str
    """One or two sentences for the people who meet the DAG in Airflow."""
    task: Task
    data: DataConfig
    teacher: TeacherConfig
    synthesis: SynthesisConfig | None = None
    """What the teacher writes for the student to learn from; None learns from the collected data."""
    student: StudentConfig
    distillation: DistillationConfig = DistillationConfig()
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    compression: tuple[CompressionStep, ...] = ()
    """What is done to the candidate after its training, in this order. Each step is measured against the model that it
    starts from and dropped if it costs too much."""
    preflight: PreflightConfig = PreflightConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig
    promotion: PromotionConfig
    schedule: ScheduleConfig = ScheduleConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the students to train; the first one is the candidate, the others are its controls."""
        return self.distillation.arms if self.synthesis is None else ("kd", *self.synthesis.controls)

    @property
    def imitates_distributions(self) -> bool:
        """Whether a student learns from more of the teacher than its words."""
        if self.synthesis is None:
            return True
        return self.teacher.api is not None and self.teacher.api.top_logprobs > 0 and self.distillation.alpha < 1

    @model_validator(mode="after")
    def _shards_fit_into_the_data(self) -> Self:
        limit = self.data.train.max_rows
        if limit is not None and self.teacher.shards > limit:
            raise ValueError(f"teacher.shards ({self.teacher.shards}) exceeds data.train.max_rows ({limit})")
        return self

    @model_validator(mode="after")
    def _labels_belong_to_classifiers(self) -> Self:
        if (self.task == "text-classification") != bool(self.data.labels):
            raise ValueError(
                f"data.labels: a {self.task} recipe " + ("needs labels" if not self.data.labels else "has none")
            )
        return self

    @model_validator(mode="after")
    def _evidence_fits_the_task(self) -> Self:
        evidence_of_classifiers = {
            "an ood set of kind out-of-scope": any(ood.kind == "out-of-scope" for ood in self.data.ood),
            "data.coverage.max_label_distance": self.data.coverage
            and self.data.coverage.max_label_distance is not None,
            "data.perturbations": self.data.perturbations,
            "evaluation.temperature_scaling": self.evaluation.temperature_scaling,
        }
        for name, wanted in evidence_of_classifiers.items():
            if wanted and self.task != "text-classification":
                raise ValueError(f"{name} needs task text-classification")
        return self

    @model_validator(mode="after")
    def _options_fit_the_task(self) -> Self:
        if self.distillation.on_policy and self.task != "causal-lm":
            raise ValueError("distillation.on_policy needs task causal-lm")
        if self.student.vocabulary and self.task != "text-classification":
            raise ValueError("student.vocabulary needs task text-classification")
        if self.student.vocabulary and self.distillation.features:
            raise ValueError("student.vocabulary changes the token ids, which features compare; leave one out")
        if self.evaluation.generation and (self.task != "causal-lm" or self.data.train.prompt_column is None):
            raise ValueError("evaluation.generation needs task causal-lm and a prompt_column")
        if self.student.lora and self.training.sharding == "shard":
            raise ValueError("student.lora: adapters can't be sharded; set training.sharding to replicate")
        on_policy = self.distillation.on_policy
        reads_samples = self.task != "text-classification" and not (on_policy and on_policy.share == 1)
        if reads_samples and self.distillation.divergence == "reverse-kl":
            raise ValueError("distillation.divergence reverse-kl is infinite for sampled distributions; use jsd")
        return self

    @model_validator(mode="after")
    def _benchmarks_fit_the_task(self) -> Self:
        harness = self.evaluation.harness
        if harness and self.task != "causal-lm":
            raise ValueError("evaluation.harness needs task causal-lm")
        if harness and (taken := sorted(self.data.suites().keys() & harness.suites().keys())):
            raise ValueError(f"evaluation.harness: suite {taken[0]} is one of section data; rename that one")
        return self

    @model_validator(mode="after")
    def _preflight_fits_the_models(self) -> Self:
        if self.preflight.assistants and self.teacher.finetune is None:
            raise ValueError("preflight.assistants lose their skill with their layers; they need teacher.finetune")
        if self.preflight.student_layers and self.student.layers is None:
            raise ValueError("preflight.student_layers needs a student with layers of a model; give student.layers")
        return self

    @model_validator(mode="after")
    def _synthesis_fits(self) -> Self:
        synthesis = self.synthesis
        if synthesis is None:
            if self.teacher.api is not None:
                raise ValueError("teacher.api gives words, not weights; say in section synthesis what it shall write")
            return self
        if self.task != "causal-lm":
            raise ValueError("synthesis needs task causal-lm")
        prompted = self.data.train.prompt_column is not None
        if prompted == (synthesis.kind == "textbook"):
            raise ValueError(
                f"data.train.prompt_column: synthesis {synthesis.kind} " + ("has none" if prompted else "needs it")
            )
        if self.distillation.features or self.distillation.on_policy:
            raise ValueError("distillation.features and on_policy need the teacher's weights beside collected data")
        if self.distillation.alpha < 1 and not self.imitates_distributions:
            raise ValueError("distillation.alpha must be 1 where the student learns from the teacher's words alone")
        return self

    @model_validator(mode="after")
    def _chain_fits(self) -> Self:
        check_chain(self.compression, task=self.task, compares_features=bool(self.distillation.features))
        return self

    @model_validator(mode="after")
    def _student_has_an_origin(self) -> Self:
        if self.teacher.api is not None and self.student.source is None:
            raise ValueError("student.source: a teacher behind an API has no weights to start from")
        return self
