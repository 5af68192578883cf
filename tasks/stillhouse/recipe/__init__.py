"""What to distil: a recipe's models, its JSON schema and its reader."""

from stillhouse.recipe.base import Config, Name, Sha256
from stillhouse.recipe.data import DataChecks, DataConfig, LabelRule, OodSet, Splits, Table
from stillhouse.recipe.learning import DistillationConfig, StudentConfig, TeacherConfig, TrainingConfig
from stillhouse.recipe.loading import RecipeError, explain, load_recipe, parse_recipe, read_yaml
from stillhouse.recipe.operation import ResourcesConfig, ScheduleConfig, StageName, StageResources
from stillhouse.recipe.proof import EvaluationConfig, GateConfig, PromotionConfig
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.sources import FileSource, HubSource, ModelSource, PathSource, S3Source, WheelSource
from stillhouse.recipe.template import new_recipe

__all__ = [
    "Config",
    "DataChecks",
    "DataConfig",
    "DistillationConfig",
    "EvaluationConfig",
    "FileSource",
    "GateConfig",
    "HubSource",
    "LabelRule",
    "ModelSource",
    "Name",
    "OodSet",
    "PathSource",
    "PromotionConfig",
    "Recipe",
    "RecipeError",
    "ResourcesConfig",
    "S3Source",
    "ScheduleConfig",
    "Sha256",
    "Splits",
    "StageName",
    "StageResources",
    "StudentConfig",
    "Table",
    "TeacherConfig",
    "TrainingConfig",
    "WheelSource",
    "explain",
    "load_recipe",
    "new_recipe",
    "parse_recipe",
    "read_yaml",
]
