"""Section ``compression``: what is done to the student after its distillation, step by step."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stillhouse.recipe.base import Config, Name, Task
from stillhouse.recipe.learning import LoraConfig, TrainingConfig
from stillhouse.recipe.proof import MODELS

Form = Literal["transformers", "quantized", "low-rank", "onnx"]
"""How a model folder is read: by transformers; by transformers with torchao; by `stillhouse.models.load_model` alone;
by ONNX Runtime. The first two can be promoted, the others are variants of what was."""

Scheme = Literal["int8", "int4", "int8-dynamic"]


class HealConfig(Config):
    """Training after a cut, on the recipe's training set. What is not said here is as in section ``training``."""

    epochs: float = Field(default=1.0, gt=0, le=1000)
    """Passes over the training set, in each round."""
    learning_rate: float = Field(default=5e-5, gt=0, le=1)
    """Peak, after warm-up."""
    signal: Literal["kd", "sft"] = "kd"
    """``kd`` distils from the recipe's teacher once more, from the same cache; ``sft`` learns from the data alone."""
    lora: LoraConfig | None = None
    """Train low-rank adapters on the frozen weights, merged in the end."""

    def applied_to(self, training: TrainingConfig) -> TrainingConfig:
        """Return the settings of the healing: the recipe's, with these fields in their place."""
        changes = {"epochs": self.epochs, "learning_rate": self.learning_rate, "validation_points": 0}
        return training.model_copy(update=changes)


class Target(Config):
    """How small the model shall become, as a share of what the step starts from."""

    measure: Literal["parameters", "bytes", "latency"] = "parameters"
    """``bytes`` of the safetensors weights; ``latency`` at batch 1 on the machine that runs the step, so that another
    machine may cut elsewhere."""
    share: float = Field(gt=0, lt=1)


class Step(Config):
    """What every step has."""

    name: Name
    """Of the model that it makes, in tables and plots."""
    max_drop: float = Field(default=0.01, ge=0)
    """The step is dropped unless the whole interval of its loss on the validation set lies below this, in the unit of
    the set's metric (0.01 is one point of accuracy). Compared with the model that it started from."""

    form: ClassVar[Form] = "transformers"
    """How the model that it makes is read."""
    starts_from: ClassVar[tuple[Form, ...]] = ("transformers",)
    """Forms of model that it can begin with."""

    @property
    def distils(self) -> bool:
        """Whether the model learns from the teacher once more."""
        return False


class HealedStep(Step):
    """A step that changes what the model computes, after which it may learn again."""

    heal: HealConfig | None = None
    """None leaves the weights as the cut left them."""

    @property
    def distils(self) -> bool:
        """Whether it heals, and by the teacher's signal."""
        return self.heal is not None and self.heal.signal == "kd"


class DepthStep(HealedStep):
    """Whole layers go: those that change their input least (block influence, Men et al. 2024)."""

    kind: Literal["prune-depth"] = "prune-depth"
    layers: int | None = Field(default=None, ge=1)
    """That stay."""
    target: Target | None = None

    @model_validator(mode="after")
    def _says_how_much(self) -> Self:
        if (self.layers is None) == (self.target is None):
            raise ValueError("give either layers or target")
        return self


class WidthStep(HealedStep):
    """Attention heads, feed-forward channels and hidden channels go: the least active ones (Minitron, Muralidharan et
    al. 2024). What is not named stays as wide as it is.

    An encoder's hidden size is its heads times their width, so there heads and hidden channels go together.
    """

    kind: Literal["prune-width"] = "prune-width"
    heads: int | None = Field(default=None, ge=1)
    """Query heads of a layer that stay. Decoders whose queries share keys lose whole groups."""
    feed_forward: int | None = Field(default=None, ge=1)
    """Feed-forward channels of a layer that stay."""
    hidden: int | None = Field(default=None, ge=1)
    """Hidden channels that stay. Decoders only."""
    target: Target | None = None
    """Instead of sizes: all of them shrink alike until it is met."""
    calibration_rows: int = Field(default=256, ge=1)
    """Training rows on which activations are measured."""

    @model_validator(mode="after")
    def _says_how_much(self) -> Self:
        named = any(size is not None for size in (self.heads, self.feed_forward, self.hidden))
        if named == (self.target is not None):
            raise ValueError("give either sizes (heads, feed_forward, hidden) or target")
        return self


class VocabularyStep(Step):
    """Tokens go that the training set doesn't need, with their embeddings; the tokenizer is rebuilt."""

    kind: Literal["trim-vocabulary"] = "trim-vocabulary"
    size: int | None = Field(default=None, ge=16)
    """Tokens that stay, the most frequent ones; by default all that occur in the training set, so that its texts become
    the same tokens as before."""


class SparsityStep(HealedStep):
    """Single weights become zero: those of least magnitude. Neither smaller nor faster without kernels for it."""

    kind: Literal["sparsify"] = "sparsify"
    pattern: Literal["unstructured", "2:4"] = "unstructured"
    """``2:4`` zeroes two of every four neighbours, which some accelerators exploit."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """Of the weights of each linear layer that become zero; always a half for ``2:4``."""

    @model_validator(mode="after")
    def _two_of_four_are_half(self) -> Self:
        if self.pattern == "2:4" and self.share != 0.5:
            raise ValueError("pattern 2:4 has share 0.5")
        return self


class LowRankStep(HealedStep):
    """Linear layers become products of two thin ones, where that has fewer weights (activation-aware SVD, Wang et al.
    2025).

    Transformers can't read such a model; it is registered as a variant of the last model that it can.
    """

    form: ClassVar[Form] = "low-rank"
    kind: Literal["low-rank"] = "low-rank"
    energy: float | None = Field(default=None, gt=0, lt=1)
    """Share of the squared output that the rank of each layer must keep."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """Instead: of the weights of each layer that stay."""
    embeddings: bool = False
    """Also factorise the token embeddings."""
    calibration_rows: int = Field(default=256, ge=1)
    """Training rows on which the inputs of each layer are measured."""

    @model_validator(mode="after")
    def _says_how_much(self) -> Self:
        if (self.energy is None) == (self.share is None):
            raise ValueError("give either energy or share")
        return self


class QuantizeStep(HealedStep):
    """Linear layers keep their weights as small integers (torchao). With ``heal``, the student first learns while its
    weights are rounded as they will be (quantization-aware distillation); the teacher stays exact."""

    form: ClassVar[Form] = "quantized"
    kind: Literal["quantize"] = "quantize"
    scheme: Scheme = "int8"
    """``int8`` and ``int4`` round weights only; ``int8-dynamic`` also rounds activations, by their range at each call.
    On a CPU an ``int4`` weight takes a byte too: it shows only what it would cost."""


class ExportStep(Step):
    """An encoder for ONNX Runtime. It is registered as a variant of the last model that transformers can read."""

    form: ClassVar[Form] = "onnx"
    starts_from: ClassVar[tuple[Form, ...]] = ("transformers", "low-rank")
    kind: Literal["export"] = "export"
    format: Literal["onnx", "onnx-int8"] = "onnx-int8"
    """``onnx-int8`` rounds weights, embeddings included, and activations by their range at each call."""
    min_agreement: float = Field(default=0.99, gt=0, le=1)
    """Least share of the validation set on which it must predict what the PyTorch model predicts."""


CompressionStep = Annotated[
    DepthStep | WidthStep | VocabularyStep | SparsityStep | LowRankStep | QuantizeStep | ExportStep,
    Field(discriminator="kind"),
]


def check_chain(steps: Sequence[CompressionStep], *, task: Task, compares_features: bool) -> None:
    """Refuse steps that can't follow one another, or don't fit the rest of the recipe.

    Args:
        steps: In their order.
        task: Of the recipe.
        compares_features: Whether the distillation compares more than distributions.

    Raises:
        ValueError: The message names the step.
    """
    names = [step.name for step in steps]
    if len(set(names)) != len(names) or set(names) & set(MODELS):
        raise ValueError(f"compression: steps need distinct names, none of them one of {', '.join(MODELS)}")
    ended, trimmed = "", ""
    for step in steps:
        if ended and step.form == "transformers":
            raise ValueError(f"compression.{step.name} changes weights, which {ended} has fixed; put it before")
        heal = step.heal if isinstance(step, HealedStep) else None
        if heal and heal.lora and isinstance(step, SparsityStep | QuantizeStep):
            raise ValueError(f"compression.{step.name} trains the weights that it changes; leave lora out")
        if trimmed and step.distils and (task != "text-classification" or compares_features):
            raise ValueError(
                f"compression.{step.name} can't learn from a teacher with other tokens; put it before {trimmed}"
            )
        if isinstance(step, ExportStep) and task != "text-classification":
            raise ValueError(f"compression.{step.name}: only classifiers are exported; quantize a language model")
        ended = ended or (step.name if step.form != "transformers" else "")
        trimmed = trimmed or (step.name if isinstance(step, VocabularyStep) else "")
