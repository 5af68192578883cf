"""A recipe: one YAML file, one workflow, one DAG."""

from typing import Literal, Self

from pydantic import Field, model_validator

from stillhouse.recipe.base import Config, Name
from stillhouse.recipe.data import DataConfig
from stillhouse.recipe.learning import DistillationConfig, StudentConfig, TeacherConfig, TrainingConfig
from stillhouse.recipe.operation import ResourcesConfig, ScheduleConfig
from stillhouse.recipe.proof import EvaluationConfig, GateConfig, PromotionConfig


class Recipe(Config):
    """Everything that decides about a run's result. Defaults are a complete production configuration."""

    version: Literal[1] = 1
    """Version of the recipe format."""
    name: Name
    """Name of the workflow and of its DAG."""
    description: str
    """One or two sentences for the people who meet the DAG in Airflow."""
    task: Literal["text-classification"]
    data: DataConfig
    teacher: TeacherConfig
    student: StudentConfig
    distillation: DistillationConfig = DistillationConfig()
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig
    promotion: PromotionConfig
    schedule: ScheduleConfig = ScheduleConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _shards_fit_into_the_data(self) -> Self:
        limit = self.data.train.max_rows
        if limit is not None and self.teacher.shards > limit:
            raise ValueError(f"teacher.shards ({self.teacher.shards}) exceeds data.train.max_rows ({limit})")
        return self
