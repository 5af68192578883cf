"""The stages, what each depends on, and whether its work has been done before. Light: no stage's code is imported."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from stillhouse.contract import (
    RESULT_FILE,
    ResultRef,
    StageRequest,
    StageResult,
    code_version,
    content_key,
    sha256_of,
)
from stillhouse.recipe import PathSource, Recipe, StageName
from stillhouse.recipe.sources import FileSource, ModelSource
from stillhouse.store import fingerprint_source, open_store, verify_artifact

logger = logging.getLogger(__name__)

Source = FileSource | ModelSource


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """What a stage is and what its result depends on."""

    name: StageName
    reads: Callable[[Recipe, Mapping[str, Any]], tuple[str, ...]]
    """Dotted fields of the recipe that the stage reads, given the recipe and the task's parameters."""
    code: tuple[str, ...]
    """Packages and modules below ``stillhouse`` that can change the result, besides the stage's own module. The rooms
    recipe, contract and store are left out: they carry data, and what they carry is pinned by digest."""
    distributions: tuple[str, ...] = ()
    """Installed distributions whose versions can change the result."""
    sources: Callable[[Recipe], Mapping[str, Source]] = lambda recipe: {}
    """Files outside the store that the stage reads, by name."""
    reusable: bool = True
    """False for stages that act on the outside world: they run every time and find for themselves what is done."""

    tracked: bool = True
    """False for a stage that has no run of its own in MLflow."""

    @property
    def module(self) -> str:
        """Full name of the module whose ``run`` does the work."""
        return f"stillhouse.stages.{self.name.replace('-', '_')}"

    def version(self) -> str:
        """Digest of the code that can change the result."""
        own = self.module.removeprefix("stillhouse.")
        return code_version((*self.code, own, "stages.context"), self.distributions)


def _reads(*fields: str) -> Callable[[Recipe, Mapping[str, Any]], tuple[str, ...]]:
    return lambda recipe, parameters: fields


def _teach_reads(recipe: Recipe, parameters: Mapping[str, Any]) -> tuple[str, ...]:
    common = ("task", *_FORWARD, "teacher.source", "training.max_tokens", "data.labels")
    if recipe.task == "text-classification":
        return common  # logits serve any temperature
    sampling = ("teacher.cache", "distillation.temperature", "distillation.features")
    return (*common, *sampling, "training.mask_share", "training.seed")


def _distill_reads(recipe: Recipe, parameters: Mapping[str, Any]) -> tuple[str, ...]:
    common = ("task", "training", "data.labels", "student.lora", "student.seed")
    if parameters["arm"] != "kd" or not recipe.imitates_distributions:
        return common
    if recipe.teacher.api:
        return (*common, "teacher.api.base_url", "teacher.api.model", "teacher.api.top_logprobs", *_SIGNAL)
    return (*common, "teacher.cache", "teacher.source", "teacher.precision", *_SIGNAL)


def _compress_reads(recipe: Recipe, parameters: Mapping[str, Any]) -> tuple[str, ...]:
    step = next(step for step in recipe.compression if step.name == parameters["step"])
    learned = _distill_reads(recipe, {"arm": "kd" if step.distils else "sft"})
    return (*learned, f"compression.{step.name}", "evaluation")


def _generate_reads(recipe: Recipe, parameters: Mapping[str, Any]) -> tuple[str, ...]:
    synthesis, api = recipe.synthesis, recipe.teacher.api
    if synthesis is None:
        return ()
    asked = [field for field in type(synthesis).model_fields if field not in _AFTER_THE_ASKING]
    if synthesis.kind == "textbook" and synthesis.rating:
        asked += ["rating.prompt", "rating.share", "rating.seed"]
    if synthesis.kind == "traces" and synthesis.verifier.kind == "judge":
        asked += ["verifier.prompt"]
    server = ("base_url", "model", "endpoint", "top_logprobs", "prices")
    teacher = tuple(f"teacher.api.{field}" for field in server) if api else _FORWARD
    return (*teacher, *(f"synthesis.{field}" for field in asked))


def _curate_reads(recipe: Recipe, parameters: Mapping[str, Any]) -> tuple[str, ...]:
    named = ("teacher.api.base_url", "teacher.api.model") if recipe.teacher.api else ("teacher.source",)
    embedding = (*_FORWARD, "training.max_tokens")
    imitated = ("teacher.api.top_logprobs", "distillation.temperature") if recipe.imitates_distributions else ()
    return ("task", "data", "synthesis", "teacher.licence", "teacher.terms", *named, *embedding, *imitated)


def _curate_sources(recipe: Recipe) -> Mapping[str, Source]:
    coverage = recipe.data.coverage
    return {"reference": coverage.reference.source} if coverage else {}


def _evaluate_sources(recipe: Recipe) -> Mapping[str, Source]:
    harness = recipe.evaluation.harness
    return {"harness": harness.source} if harness and harness.source else {}


_FORWARD = ("teacher.batch_size", "teacher.precision")
"""What decides how the teacher's numbers are rounded."""
_SIGNAL = (
    "distillation.alpha",
    "distillation.temperature",
    "distillation.divergence",
    "distillation.mixture",
    "distillation.features",
    "distillation.balance",
    "distillation.on_policy",
)
_AFTER_THE_ASKING = frozenset(
    (
        "filters",
        "limits",
        "controls",
        "rating",
        "verifier",
        "max_wrong_steps",
        "per_problem",
        "rationale_prompt",
        "label_weight",
    )
)
"""Fields of a synthesis that say what becomes of answers: another value must not ask the teacher again."""
_TRAINING_CODE = ("models", "losses", "data", "teacher", "student", "training")
_TORCH = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
_DATA = ("great-expectations", "datasets", "pandas", "pyarrow", "scikit-learn", "scipy", "datasketch")
_TRAINING = (*_TORCH, "accelerate", "peft", "gguf")
_EXPORT = ("torchao", "onnx", "onnxruntime", "onnxscript")

CATALOG: dict[StageName, StageSpec] = {
    spec.name: spec
    for spec in (
        StageSpec(
            name="permit",
            reads=_reads("teacher", "student.source"),
            code=("teacher", "promotion", "tracking", "models"),
            reusable=False,
        ),
        StageSpec(
            name="validate",
            reads=_reads("data"),
            code=("data",),
            distributions=(*_DATA, "py3langid"),
            sources=lambda recipe: {name: table.source for name, table in recipe.data.named_tables().items()},
        ),
        StageSpec(
            name="prepare-teacher",
            reads=_reads("task", "teacher.source", "teacher.finetune", "data.labels"),
            code=_TRAINING_CODE,
            distributions=_TRAINING,
            sources=lambda recipe: {"teacher": recipe.teacher.weights},
        ),
        StageSpec(
            name="initialise",
            reads=_reads("task", "student", "training.max_tokens", "data.labels"),
            code=_TRAINING_CODE,
            distributions=_TRAINING,
            sources=lambda recipe: {"student": recipe.student.source} if recipe.student.source else {},
        ),
        StageSpec(
            name="teach",
            reads=_teach_reads,
            code=_TRAINING_CODE,
            distributions=_TRAINING,
        ),
        StageSpec(
            name="generate",
            reads=_generate_reads,
            code=("models", "teacher", "data.frozen"),
            distributions=(*_TORCH, "openai", "pyarrow"),
        ),
        StageSpec(
            name="curate",
            reads=_curate_reads,
            code=("data", "models", "teacher"),
            distributions=(*_TORCH, *_DATA, "py3langid", "math-verify"),
            sources=_curate_sources,
        ),
        StageSpec(
            name="distill",
            reads=_distill_reads,
            code=(*_TRAINING_CODE, "stages.lessons"),
            distributions=_TRAINING,
        ),
        StageSpec(
            name="compress",
            reads=_compress_reads,
            code=(*_TRAINING_CODE, "compression", "evaluation", "stages.chain", "stages.lessons"),
            distributions=(*_TRAINING, *_EXPORT, "scipy", "pyarrow"),
        ),
        StageSpec(
            name="evaluate",
            reads=_reads(
                "task",
                "evaluation",
                "training.max_tokens",
                "training.mask_share",
                "data.labels",
                "data.domain",
                "data.ood",
                "data.perturbations",
            ),
            code=("models", "evaluation", "data.frozen", "stages.chain", "stages.interview"),
            distributions=(*_TORCH, "torchao", "onnxruntime", "scipy", "pyarrow", "lm-eval"),
            sources=_evaluate_sources,
        ),
        StageSpec(
            name="decide",
            reads=_reads(*Recipe.model_fields),
            code=(
                "promotion.gate",
                "promotion.policy",
                "promotion.rules",
                "data.report",
                "data.prepare",
                "data.tables",
                "data.reading",
                "stages.chain",
                "stages.evidence",
                "stages.facts",
                "stages.records",
                "models",
                "evaluation",
            ),
            distributions=("jinja2", "matplotlib"),
            sources=lambda recipe: {"policy": PathSource(path=recipe.gate.policy)},
        ),
        StageSpec(
            name="promote",
            reads=_reads("promotion", "data", "teacher"),
            code=("promotion", "tracking", "models", "stages.chain", "stages.origin"),
            distributions=("mlflow",),
            reusable=False,
        ),
        StageSpec(
            name="announce",
            reads=_reads("name"),
            code=(
                "tracking",
                "evaluation.headline",
                "evaluation.phrases",
                "stages.publishing",
                "stages.records",
                "stages.catalog",
            ),
            distributions=("mlflow",),
            reusable=False,
            tracked=False,
        ),
    )
}


def key_of(request: StageRequest) -> str:
    """Return the content key of what ``request`` asks for.

    Raises:
        RecipeError: The request holds no valid recipe.
        ConfigurationError: A source file is missing.
    """
    spec = CATALOG[request.stage]
    recipe = request.parsed_recipe()
    plain = recipe.model_dump(mode="json")
    part = {field: _field(plain, field) for field in spec.reads(recipe, request.parameters)}
    resources = recipe.resources.of(request.stage)
    part |= {"cpus": resources.cpus, "processes": resources.world_size}
    if resources.gpus:
        part["accelerated"] = True  # which adds in another order than a CPU
    # What acts on the outside world acts for one run, and its result is that run's alone.
    own = {} if spec.reusable else {"run_id": request.run_id}
    return content_key(
        stage=request.stage,
        code=spec.version(),
        recipe_part=part,
        parameters=request.parameters | own,
        inputs=request.inputs,
        sources={name: fingerprint_source(source) for name, source in spec.sources(recipe).items()},
    )


def result_key(stage: StageName, key: str) -> str:
    """Return the object key under which a stage's result lies."""
    return f"stages/{stage}/{key}/{RESULT_FILE}"


def find_reusable(request: StageRequest, key: str | None = None) -> ResultRef | None:
    """Return the verified result of an earlier, equal request, or None if the work must be done.

    Args:
        request: What is asked for.
        key: Its content key, if it is known already.
    """
    if not CATALOG[request.stage].reusable:
        return None
    store = open_store(request.store)
    place = result_key(request.stage, key or key_of(request))
    try:
        document = store.get(place)
        result = StageResult.model_validate_json(document)
    except FileNotFoundError:
        return None
    except ValidationError:
        logger.warning("%s is not a stage result; the stage runs again", store.uri(place))
        return None
    damaged = [name for name, artifact in result.outputs.items() if not verify_artifact(artifact)]
    if damaged:
        logger.warning("output %s of %s is missing or damaged; the stage runs again", damaged[0], store.uri(place))
        return None
    return ResultRef(uri=store.uri(place), sha256=sha256_of(document))


def _field(plain: Mapping[str, Any], dotted: str) -> Any:
    """Return a field by its path; an element of a list goes by its ``name``."""
    value: Any = plain
    for part in dotted.split("."):
        value = next(item for item in value if item["name"] == part) if isinstance(value, list) else value[part]
    return value
