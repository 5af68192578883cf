"""Sections ``teacher``, ``student`` and ``training``: who learns from whom, and how."""

from datetime import date
from typing import Literal, Self

from pydantic import Field, model_validator

from stillhouse.recipe.api import ApiConfig
from stillhouse.recipe.base import Config, Name, Precision
from stillhouse.recipe.sources import ModelSource


class TrainingConfig(Config):
    """Optimisation: AdamW, a warm-up and a decay to zero, batches of similar length."""

    epochs: float = Field(default=3.0, gt=0, le=1000)
    """Passes over the training set; a fraction stops within a pass."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences per optimizer step, over all processes: texts, or packs of texts where they are packed."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Sequences per forward pass; by default a whole step's share of the process. Saves memory, changes no gradient."""
    learning_rate: float = Field(default=5e-5, gt=0, le=1)
    """Peak, after warm-up."""
    warmup_share: float = Field(default=0.06, ge=0, lt=1)
    """Share of all steps over which the learning rate rises linearly from 0."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls from its peak to 0."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this L2 norm."""
    max_tokens: int = Field(default=128, ge=8)
    """Tokens of a sequence, special tokens included. Longer texts are truncated for ``text-classification`` and cut
    into pieces for the language models."""
    packing: bool = True
    """Fill sequences with several documents that don't see one another. Tasks of kind ``causal-lm``."""
    mask_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that are hidden and predicted. Tasks of kind ``masked-lm``."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward and backward passes. ``auto`` is bfloat16 on a GPU that has it, float32 elsewhere."""
    sharding: Literal["replicate", "shard"] = "replicate"
    """How several processes hold the student: a copy each (DDP), or a part each (FSDP2)."""
    explosion_factor: float = Field(default=10.0, gt=1)
    """The run stops when a term's moving average exceeds its average over the first steps by this factor (that of 1
    where the average is smaller)."""
    seed: int = Field(default=17, ge=0)
    validation_points: int = Field(default=0, ge=0, le=1000)
    """How often the loss on the validation set is measured during the training, at even distances, the first time
    before it; 0 leaves it out."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """Time between two checkpoints; 0 writes one at every step."""


class CacheConfig(Config):
    """How the distributions of a language model are kept. Those of a classifier are kept whole."""

    method: Literal["systematic", "random", "top-k"] = "systematic"
    """``systematic`` and ``random`` sample token ids and keep counts: unbiased. ``top-k`` keeps the largest
    probabilities: biased, for comparison."""
    samples: int = Field(default=25, ge=1, le=4096)
    """N, counts of a distribution; for ``top-k`` the k."""
    seed: int = Field(default=29, ge=0)


class SignOff(Config):
    """A person's word that the terms allow this use where the policy leaves it to a person."""

    by: str = Field(min_length=1)
    """Who answers for it."""
    reference: str = Field(min_length=1)
    """Contract, ticket or legal opinion where the reasons are found."""
    on: date


class TermsConfig(Config):
    """What the run does under the teacher's terms, and how one knows."""

    provider: Name | None = None
    """Whose service an API teacher is, as the terms policy calls it; None for weights."""
    use: Literal["research", "internal", "commercial"] = "commercial"
    """What the student is for."""
    evidence: str = ""
    """Address or file of the licence or contract that was read."""
    sign_off: SignOff | None = None


class TeacherConfig(Config):
    """The model whose knowledge is passed on: weights, or a server that answers."""

    source: ModelSource | None = None
    """A folder with ``config.json``, tokenizer and safetensors weights."""
    api: ApiConfig | None = None
    """Instead of weights; needs a section ``synthesis``."""
    licence: str
    """SPDX identifier, or a name, of the terms under which the teacher is used."""
    terms: TermsConfig = TermsConfig()
    finetune: TrainingConfig | None = None
    """Fine-tune on the task first; by default the teacher already is a classifier with the recipe's labels."""
    cache: CacheConfig = CacheConfig()
    shards: int = Field(default=1, ge=1, le=1024)
    """Parts in which the training set is scored, each a task of its own."""
    batch_size: int = Field(default=64, ge=1)
    """Sequences per forward pass when scoring or writing."""
    precision: Precision = "float32"
    """Of the weights when they score, write or teach. ``bfloat16`` takes half the memory, and rounds what is learned
    to three digits. Fine-tuning and evaluation don't mind it."""

    @property
    def title(self) -> str:
        """What the teacher is called in lineage: the model of a server, or where its weights come from."""
        return self.weights.title if self.api is None else f"{self.api.model} at {self.api.host}"

    @property
    def weights(self) -> ModelSource:
        """The source, for code that runs only where there is one.

        Raises:
            ValueError: The teacher is a server.
        """
        if self.source is None:
            raise ValueError(f"the teacher {self.title} is a server; its weights are not at hand")
        return self.source

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if (self.source is None) == (self.api is None):
            raise ValueError("give either source or api")
        if self.api is not None and self.finetune is not None:
            raise ValueError("finetune needs weights: a server's model can't be trained")
        if self.api is not None and self.precision != "float32":
            raise ValueError("precision needs weights: a server chooses its own")
        if self.api is not None and self.terms.provider is None:
            raise ValueError("terms.provider: say whose service it is, such as openai or self-hosted")
        return self


class LoraConfig(Config):
    """Low-rank adapters on frozen weights (LoRA, Hu et al. 2022), merged into the weights at the end."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    """Adapters are scaled by ``alpha / rank``."""
    dropout: float = Field(default=0.0, ge=0, lt=1)


class StudentConfig(Config):
    """How the student starts: from some of the teacher's layers, from a checkpoint, or from random weights.

    It must have the teacher's tokenizer.
    """

    layers: int | None = Field(default=None, ge=1)
    """Number of transformer layers that are kept of the teacher, or of ``source``; by default all."""
    layer_map: Literal["alternate", "lower", "upper", "spaced", "block-influence"] | tuple[int, ...] | None = None
    """Layer (from 0) under each student layer. ``alternate``: every n-th one; ``lower`` and ``upper``: the first and
    the last; ``spaced``: evenly from the first to the last (Sanh et al. 2019); ``block-influence``: those that change
    their input most (Men et al. 2024). By default ``block-influence`` for decoders and ``spaced`` for encoders."""
    source: ModelSource | None = None
    """An own checkpoint instead of the teacher."""
    architecture: dict[str, int | float | str | bool] | None = None
    """Fields of the model's config to change, such as ``hidden_size``; the student then starts from random weights."""
    vocabulary: int | None = Field(default=None, ge=16)
    """Keep the embeddings of so many token ids, the most frequent of the training set; the others become unknown.
    Tasks of kind ``text-classification``."""
    lora: LoraConfig | None = None
    seed: int = Field(default=11, ge=0)
    """Of random weights."""

    @model_validator(mode="after")
    def _map_has_one_entry_per_layer(self) -> Self:
        if isinstance(self.layer_map, tuple):
            if len(self.layer_map) != self.layers:
                raise ValueError(f"layer_map has {len(self.layer_map)} entries for {self.layers} layers")
            if list(self.layer_map) != sorted(set(self.layer_map)) or self.layer_map[0] < 0:
                raise ValueError("layer_map must rise strictly from 0 or more")
        return self

    @model_validator(mode="after")
    def _random_weights_have_no_map(self) -> Self:
        if self.architecture is not None and (self.layer_map is not None or self.layers is not None):
            raise ValueError("architecture starts from random weights: give num_hidden_layers in it, and no layers")
        return self

    @model_validator(mode="after")
    def _starts_smaller(self) -> Self:
        if self.layers is None and self.source is None and self.architecture is None and self.lora is None:
            raise ValueError("give layers, a source, an architecture or lora")
        return self
