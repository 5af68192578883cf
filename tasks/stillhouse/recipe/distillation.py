"""Section ``distillation``: what the student is told to imitate."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stillhouse.recipe.base import Config

Divergence = Literal["forward-kl", "reverse-kl", "jsd", "skew-kl", "tvd"]

LayerPairs = Literal["last", "all"] | tuple[tuple[int, int], ...]
"""Student and teacher layers that are compared, each counted from 1 (0 is the embeddings' output). ``last`` pairs the
two last ones, ``all`` pairs every student layer with the teacher layer at the same share of the depth."""


class HiddenTerm(Config):
    """Hidden states: cosine distance (Sanh et al. 2019) or squared error (Jiao et al. 2020)."""

    kind: Literal["hidden"] = "hidden"
    weight: float = Field(default=1.0, gt=0)
    distance: Literal["cosine", "mse"] = "cosine"
    layers: LayerPairs = "last"


class AttentionTerm(Config):
    """Attention maps, averaged over heads where their numbers differ. Turns off the fast attention kernels."""

    kind: Literal["attention"] = "attention"
    weight: float = Field(default=1.0, gt=0)
    distance: Literal["kl", "mse"] = "kl"
    layers: LayerPairs = "last"


class QkvRelationTerm(Config):
    """Relations among queries, keys and values (MiniLMv2, Wang et al. 2021). Keeps the fast attention kernels."""

    kind: Literal["qkv-relation"] = "qkv-relation"
    weight: float = Field(default=1.0, gt=0)
    relations: tuple[Literal["query", "key", "value"], ...] = ("query", "key", "value")
    heads: int = Field(default=1, ge=1)
    """Relation heads: every width is cut into as many."""
    layers: LayerPairs = "last"


class RelationalTerm(Config):
    """Distances and angles among the documents of a batch (RKD, Park et al. 2019)."""

    kind: Literal["rkd"] = "rkd"
    weight: float = Field(default=1.0, gt=0)
    angle_share: float = Field(default=0.67, ge=0, le=1)
    """Weight of the angles; the distances get the rest."""
    layers: LayerPairs = "last"


class CkaTerm(Config):
    """One minus linear centred kernel alignment among the documents of a batch (Kornblith et al. 2019)."""

    kind: Literal["cka"] = "cka"
    weight: float = Field(default=1.0, gt=0)
    layers: LayerPairs = "last"


class SimilarityTerm(Config):
    """Similarities among the documents of a batch (Tung & Mori 2019)."""

    kind: Literal["similarity"] = "similarity"
    weight: float = Field(default=1.0, gt=0)
    layers: LayerPairs = "last"


FeatureTerm = Annotated[
    HiddenTerm | AttentionTerm | QkvRelationTerm | RelationalTerm | CkaTerm | SimilarityTerm,
    Field(discriminator="kind"),
]


class OnPolicyConfig(Config):
    """The student writes, the teacher judges each token (GKD, Agarwal et al. 2024). Tasks of kind ``causal-lm``."""

    share: float = Field(default=0.5, gt=0, le=1)
    """Share of the steps whose texts the student writes; the others learn from the data."""
    prompt_tokens: int = Field(default=32, ge=1)
    """Documents without a prompt of their own are continued from this many tokens."""
    new_tokens: int = Field(default=64, ge=1)
    """Bound of what the student writes for a prompt."""
    temperature: float = Field(default=1.0, gt=0)
    """At which the student samples."""


class DistillationConfig(Config):
    """The loss ``alpha * CE + (1 - alpha) * T^2 * D_T(teacher || student) + sum of weight * feature term``."""

    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the cross-entropy with the labels; 1 ignores the teacher's distributions."""
    temperature: float = Field(default=2.0, gt=0, le=100)
    """T, divides the logits of teacher and student (Hinton et al. 2015)."""
    divergence: Divergence = "forward-kl"
    """D. With p of the teacher and q of the student: KL(p, q), KL(q, p), the generalised Jensen-Shannon divergence
    (Agarwal et al. 2024), KL(p, skewed q) (Ko et al. 2024), or half the L1 distance."""
    mixture: float = Field(default=0.5, gt=0, lt=1)
    """beta of ``jsd``, or lambda of ``skew-kl``: the share of p in the mixture with q. Unused by the others."""
    features: tuple[FeatureTerm, ...] = ()
    """Further signals. All but the last hidden states need the teacher to run beside the student."""
    balance: Literal["off", "gradient-norm"] = "off"
    """``gradient-norm`` rescales every term but the first to the gradient norm of the first, times its weight."""
    on_policy: OnPolicyConfig | None = None
    control_arm: bool = True
    """Also train the ``sft`` arm: the same student, data, order and steps without the teacher's signal."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the students to train; the first one is the candidate."""
        return ("kd", "sft") if self.control_arm else ("kd",)

    @property
    def caches_hidden(self) -> bool:
        """Whether the teacher's cache keeps last hidden states: they are the only feature that is asked for."""
        return bool(self.features) and all(term.kind == "hidden" and term.layers == "last" for term in self.features)

    @property
    def needs_teacher_beside(self) -> bool:
        """Whether the teacher runs beside the student: a cache can't hold what is compared."""
        return self.on_policy is not None or (bool(self.features) and not self.caches_hidden)

    @model_validator(mode="after")
    def _features_are_distinct(self) -> Self:
        kinds = [term.kind for term in self.features]
        if len(set(kinds)) != len(kinds):
            raise ValueError("features: each kind at most once")
        return self
