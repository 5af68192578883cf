"""What to distil: a recipe's models, its JSON schema and its reader."""

from stillhouse.recipe.base import Config, Name, Sha256, Task
from stillhouse.recipe.data import DataChecks, DataConfig, LabelRule, OodSet, Splits, Table
from stillhouse.recipe.distillation import (
    AttentionTerm,
    CkaTerm,
    DistillationConfig,
    Divergence,
    FeatureTerm,
    HiddenTerm,
    LayerPairs,
    OnPolicyConfig,
    QkvRelationTerm,
    RelationalTerm,
    SimilarityTerm,
)
from stillhouse.recipe.learning import CacheConfig, LoraConfig, StudentConfig, TeacherConfig, TrainingConfig
from stillhouse.recipe.loading import RecipeError, explain, load_recipe, parse_recipe, read_yaml
from stillhouse.recipe.operation import ResourcesConfig, ScheduleConfig, StageName, StageResources
from stillhouse.recipe.proof import EvaluationConfig, GateConfig, PromotionConfig
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.sources import (
    FileSource,
    HubSource,
    ModelSource,
    PathSource,
    RegistrySource,
    S3Source,
    WheelSource,
)
from stillhouse.recipe.template import new_recipe

__all__ = [
    "AttentionTerm",
    "CacheConfig",
    "CkaTerm",
    "Config",
    "DataChecks",
    "DataConfig",
    "DistillationConfig",
    "Divergence",
    "EvaluationConfig",
    "FeatureTerm",
    "FileSource",
    "GateConfig",
    "HiddenTerm",
    "HubSource",
    "LabelRule",
    "LayerPairs",
    "LoraConfig",
    "ModelSource",
    "Name",
    "OnPolicyConfig",
    "OodSet",
    "PathSource",
    "PromotionConfig",
    "QkvRelationTerm",
    "Recipe",
    "RecipeError",
    "RegistrySource",
    "RelationalTerm",
    "ResourcesConfig",
    "S3Source",
    "ScheduleConfig",
    "Sha256",
    "SimilarityTerm",
    "Splits",
    "StageName",
    "StageResources",
    "StudentConfig",
    "Table",
    "Task",
    "TeacherConfig",
    "TrainingConfig",
    "WheelSource",
    "explain",
    "load_recipe",
    "new_recipe",
    "parse_recipe",
    "read_yaml",
]
