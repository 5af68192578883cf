"""Section ``synthesis``: what the teacher writes, what of it is kept, and what that is compared with.

Each kind turns the rows of ``data.train`` into prompts, lets the teacher answer each of them ``samples`` times, and
turns the answers that pass every filter into the set that the student learns from.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stillhouse.recipe.base import Config

Control = Literal["unfiltered", "sft"]
"""What a student of the same start learns instead. ``unfiltered``: as many tokens of the answers, before any filter.
``sft``: the collected rows themselves, without a word of the teacher."""


class FilterConfig(Config):
    """What an answer must be like. The first filter that objects counts it."""

    min_words: int = Field(default=1, ge=1)
    max_words: int = Field(default=2000, ge=1)
    truncated: Literal["keep", "remove"] = "remove"
    """What happens to answers that reached ``max_new_tokens``."""
    language: str | None = Field(default=None, pattern=r"^[a-z]{2}$")
    """ISO 639-1 code that the answer must be identified as; None accepts all."""
    max_repetition: float = Field(default=0.3, ge=0, le=1)
    """Most of an answer's word 4-grams that may be repeats of earlier ones."""
    pattern: str | None = None
    """Regular expression that must occur in the answer."""
    duplicates: Literal["remove", "keep"] = "remove"
    """What happens to answers that almost equal an earlier one; as near as ``data.contamination`` says."""


class LimitsConfig(Config):
    """Shares of all answers above which the stage stops with exit code 65, and the least that must be left."""

    max_refused: float = Field(default=0.1, ge=0, le=1)
    max_truncated: float = Field(default=0.2, ge=0, le=1)
    max_empty: float = Field(default=0.05, ge=0, le=1)
    max_duplicates: float = Field(default=0.5, ge=0, le=1)
    """Of equal or almost equal answers."""
    min_kept: int = Field(default=50, ge=1)
    """Answers that must pass every filter."""


class Writing(Config):
    """What all kinds of synthesis have in common."""

    system: str | None = None
    """System message before every prompt."""
    samples: int = Field(default=1, ge=1, le=1024)
    """Answers to each prompt."""
    temperature: float = Field(default=0.7, ge=0)
    """0 takes the most probable token at each step."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=256, ge=1)
    seed: int = Field(default=37, ge=0)
    """Of local sampling, and sent to servers, few of which keep it."""
    filters: FilterConfig = FilterConfig()
    limits: LimitsConfig = LimitsConfig()
    controls: tuple[Control, ...] = ("unfiltered",)

    @model_validator(mode="after")
    def _greedy_answers_are_equal(self) -> Self:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError("temperature 0 gives the same answer each time; set samples to 1")
        if len(set(self.controls)) != len(self.controls):
            raise ValueError("controls: each at most once")
        return self


class AnswersConfig(Writing):
    """The teacher answers the prompts of ``data.train``: sequence-level distillation (Kim & Rush 2016)."""

    kind: Literal["answers"] = "answers"
    prompt: str = "{prompt}"
    """What is asked; ``{prompt}`` is the row's prompt."""
    controls: tuple[Control, ...] = ("sft",)

    @model_validator(mode="after")
    def _prompt_holds_the_row(self) -> Self:
        _insist(self.prompt, "prompt", "{prompt}")
        return self


class RatingConfig(Config):
    """A quality filter learned from the teacher's ratings of some passages (phi-1, Gunasekar et al. 2023, section 2.1).

    A random forest on the teacher's embeddings (or, without its weights, on word counts) predicts the rating of every
    passage.
    """

    prompt: str
    """What the teacher is asked about a passage; holds ``{text}``. The first number in the reply is the rating."""
    share: float = Field(default=0.3, gt=0, le=1)
    """Of the passages, which the teacher rates."""
    scale: tuple[int, int] = (1, 5)
    """Least and greatest rating; a reply without a number between them counts as no rating."""
    keep: float = Field(default=0.5, gt=0, le=1)
    """Share of the passages that is kept: those that are predicted to be rated best."""
    seed: int = Field(default=41, ge=0)

    @model_validator(mode="after")
    def _prompt_holds_the_text(self) -> Self:
        _insist(self.prompt, "rating.prompt", "{text}")
        if self.scale[0] >= self.scale[1]:
            raise ValueError("rating.scale must rise")
        return self


class TextbookConfig(Writing):
    """The teacher writes passages on the topics of ``data.train``, for audiences and in styles drawn by seed.

    In the manner of phi-1 and phi-1.5 (Gunasekar et al. 2023, Li et al. 2023), whose corpora were not published.
    """

    kind: Literal["textbook"] = "textbook"
    prompt: str = "Write a short {style} about {topic} for {audience}."
    """Holds ``{topic}``, the row's text; and ``{audience}`` and ``{style}`` if they are to vary."""
    audiences: tuple[str, ...] = ("students",)
    styles: tuple[str, ...] = ("textbook passage",)
    passages: int = Field(default=1000, ge=1)
    """Prompts that are drawn from all combinations, as evenly over the topics as they go."""
    rating: RatingConfig | None = None

    @model_validator(mode="after")
    def _prompt_holds_the_topic(self) -> Self:
        _insist(self.prompt, "prompt", "{topic}")
        if "sft" in self.controls:
            raise ValueError("controls: topics are nothing to learn from, so there is no sft")
        return self


class NumericVerifier(Config):
    """Right if the last number of the answer equals the last number of the row's text."""

    kind: Literal["numeric"] = "numeric"
    tolerance: float = Field(default=1e-6, ge=0)
    """Relative to the larger of both, and absolute below 1."""


class ExactVerifier(Config):
    """Right if what follows ``marker`` equals the row's text, whatever the case, punctuation and white space."""

    kind: Literal["exact"] = "exact"
    marker: str = "Answer:"
    """The last one in the answer counts; without one the whole answer does."""


class SymbolicVerifier(Config):
    """Right if both are the same mathematical expression (library math-verify)."""

    kind: Literal["symbolic"] = "symbolic"


class UnitTestVerifier(Config):
    """Right if the program in the answer passes the row's text, which is Python that raises on a wrong program.

    Runs in a subprocess without network, with the limits below, on a machine that must allow it: the deployment sets
    ``STILLHOUSE_RUN_GENERATED_CODE=1``.
    """

    kind: Literal["unit-tests"] = "unit-tests"
    seconds: float = Field(default=5.0, gt=0, le=600)
    """Of CPU time."""
    memory_mib: int = Field(default=512, ge=64)


class JudgeVerifier(Config):
    """Right if the teacher says so."""

    kind: Literal["judge"] = "judge"
    prompt: str
    """Holds ``{question}``, ``{answer}`` and maybe ``{reference}``. A reply that begins with ``accept`` accepts."""
    accept: str = "yes"

    @model_validator(mode="after")
    def _prompt_holds_both(self) -> Self:
        _insist(self.prompt, "verifier.prompt", "{question}", "{answer}")
        return self


Verifier = Annotated[
    NumericVerifier | ExactVerifier | SymbolicVerifier | UnitTestVerifier | JudgeVerifier, Field(discriminator="kind")
]


class TracesConfig(Writing):
    """The teacher reasons about the problems of ``data.train``; what a verifier accepts is learned (DeepSeek-R1, 2025).

    Rows need a prompt, the problem, and a text, its right answer.
    """

    kind: Literal["traces"] = "traces"
    prompt: str = "{problem}\nThink step by step. End with 'Answer:' and the answer."
    """Holds ``{problem}``. The student sees the problem alone."""
    samples: int = Field(default=4, ge=1, le=1024)
    verifier: Verifier = NumericVerifier()
    max_wrong_steps: int | None = Field(default=None, ge=0)
    """Also remove right answers with more wrong steps of arithmetic than this; None only counts them."""
    per_problem: int | None = Field(default=None, ge=1)
    """Right answers that are kept of a problem, the shortest first; by default all."""

    @model_validator(mode="after")
    def _prompt_holds_the_problem(self) -> Self:
        _insist(self.prompt, "prompt", "{problem}")
        return self


class RationalesConfig(Writing):
    """The teacher explains the labels of ``data.train``; label and rationale are two tasks of one student.

    Distilling step-by-step (Hsieh et al. 2023, equation 3). Rows need a prompt and a text, its label. The loss is
    ``label_weight * CE(label) + (1 - label_weight) * CE(rationale)``, each a mean over texts of the mean over tokens.
    """

    kind: Literal["rationales"] = "rationales"
    prompt: str = "Explain in one sentence why this text is {label}: {text}"
    """Holds ``{text}``, and ``{label}`` unless the teacher is to find the label itself."""
    rationale_prompt: str = "Explain: {text}"
    """How the student is asked for the rationale; asked with the bare text it gives the label."""
    label_weight: float = Field(default=0.5, gt=0, lt=1)
    controls: tuple[Control, ...] = ("sft",)

    @model_validator(mode="after")
    def _prompts_hold_the_text(self) -> Self:
        _insist(self.prompt, "prompt", "{text}")
        _insist(self.rationale_prompt, "rationale_prompt", "{text}")
        return self


SynthesisConfig = Annotated[
    AnswersConfig | TextbookConfig | TracesConfig | RationalesConfig, Field(discriminator="kind")
]


def _insist(template: str, field: str, *places: str) -> None:
    missing = [place for place in places if place not in template]
    if missing:
        raise ValueError(f"{field} must hold {missing[0]}")
