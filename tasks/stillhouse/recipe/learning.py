"""Sections ``teacher``, ``student``, ``distillation`` and ``training``: who learns what from whom, and how."""

from typing import Literal, Self

from pydantic import Field, model_validator

from stillhouse.recipe.base import Config
from stillhouse.recipe.sources import ModelSource


class TrainingConfig(Config):
    """Optimisation: AdamW with a linear schedule, batches of similar length."""

    epochs: float = Field(default=3.0, gt=0, le=1000)
    """Passes over the training set; a fraction stops within a pass."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences per optimizer step."""
    learning_rate: float = Field(default=5e-5, gt=0, le=1)
    """Peak, after warm-up."""
    warmup_share: float = Field(default=0.06, ge=0, lt=1)
    """Share of all steps over which the learning rate rises linearly from 0."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this L2 norm."""
    max_tokens: int = Field(default=128, ge=8)
    """Longer texts are truncated to this many tokens, special tokens included."""
    seed: int = Field(default=17, ge=0)
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """Time between two checkpoints; 0 writes one at every step."""


class TeacherConfig(Config):
    """The model whose knowledge is passed on."""

    source: ModelSource
    """A folder with ``config.json``, tokenizer and safetensors weights."""
    licence: str
    """SPDX identifier, or a name, of the terms under which the teacher is used."""
    finetune: TrainingConfig | None = None
    """Fine-tune on the task first; by default the teacher already is a classifier with the recipe's labels."""
    shards: int = Field(default=1, ge=1, le=1024)
    """Parts in which the training set is scored, each a task of its own."""
    batch_size: int = Field(default=64, ge=1)
    """Sequences per forward pass when scoring."""


class StudentConfig(Config):
    """How the student starts: as some of the teacher's layers, with its embeddings and head."""

    layers: int = Field(ge=1)
    """Number of transformer layers; at most the teacher's."""
    layer_map: Literal["alternate"] | tuple[int, ...] = "alternate"
    """Teacher layer (from 0) under each student layer. ``alternate`` spaces them evenly from the first to the last,
    as DistilBERT does (Sanh et al. 2019)."""

    @model_validator(mode="after")
    def _map_has_one_entry_per_layer(self) -> Self:
        if isinstance(self.layer_map, tuple):
            if len(self.layer_map) != self.layers:
                raise ValueError(f"layer_map has {len(self.layer_map)} entries for {self.layers} layers")
            if list(self.layer_map) != sorted(set(self.layer_map)) or self.layer_map[0] < 0:
                raise ValueError("layer_map must rise strictly from 0 or more")
        return self


class DistillationConfig(Config):
    """The loss ``alpha * CE + (1 - alpha) * T^2 * KL_T(teacher || student) + hidden_weight * cosine``."""

    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the cross-entropy with the labels; 1 ignores the teacher's soft labels."""
    temperature: float = Field(default=2.0, gt=0, le=100)
    """T, divides the logits of teacher and student (Hinton et al. 2015)."""
    hidden_weight: float = Field(default=0.0, ge=0)
    """Weight of the cosine distance between the last hidden states of student and teacher, over all tokens but padding
    (Sanh et al. 2019); 0 leaves the term out."""
    control_arm: bool = True
    """Also train the ``sft`` arm: the same student, data, order and steps without the teacher's signal."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the students to train; the first one is the candidate."""
        return ("kd", "sft") if self.control_arm else ("kd",)
