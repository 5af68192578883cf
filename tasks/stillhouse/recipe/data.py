"""Section ``data``: the tables, how they are labelled and split, and what they must satisfy."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stillhouse.recipe.base import Config, Name
from stillhouse.recipe.sources import FileSource

SLICE = "slice:"
"""Before the name of a column of ``slice_columns``: what it is called in a frozen set."""

SliceColumn = Annotated[str, Field(pattern=r"^[^=]+$")]


class LabelAsIs(Config):
    """The label column holds the label's name."""

    kind: Literal["as-is"] = "as-is"


class LabelByThreshold(Config):
    """The label column holds a number: the second label above the threshold, the first one otherwise."""

    kind: Literal["threshold"] = "threshold"
    threshold: float = 0.0
    """In the unit of the label column."""


class LabelByPrefix(Config):
    """The label column holds a path such as ``ENTY:animal``: the part before the separator is the label."""

    kind: Literal["prefix"] = "prefix"
    separator: str = Field(default=":", min_length=1)


class TextAsIs(Config):
    """The text column holds the text."""

    kind: Literal["as-is"] = "as-is"


class TextByThreshold(Config):
    """The text column holds a number, which becomes one of two words: for language models that answer with a label."""

    kind: Literal["threshold"] = "threshold"
    threshold: float = 0.0
    below: str
    """Also for a number that equals the threshold."""
    above: str


class TextByName(Config):
    """What stands in the text column before the separator becomes another word."""

    kind: Literal["names"] = "names"
    names: dict[str, str] = Field(min_length=1)
    separator: str | None = Field(default=None, min_length=1)
    """None takes the whole column."""


TextRule = Annotated[TextAsIs | TextByThreshold | TextByName, Field(discriminator="kind")]


LabelRule = Annotated[LabelAsIs | LabelByThreshold | LabelByPrefix, Field(discriminator="kind")]


class Table(Config):
    """One table of text."""

    source: FileSource
    format: Literal["csv", "tsv", "jsonl", "parquet", "labelled-lines", "paragraphs"]
    """``labelled-lines``: each line is a label, white space, then the text; the columns are ``label`` and ``text``.
    ``paragraphs``: plain text, a document between two empty lines; the column is ``text``."""
    encoding: str = "utf-8"
    """Of the text formats. A byte that does not decode stops the run and is named by row."""
    text_column: str = "text"
    text_rule: TextRule = TextAsIs()
    label_column: str = "label"
    """Of classification tasks."""
    prompt_column: str | None = None
    """Of language modelling tasks: what the text answers. It is read and not learned."""
    group_column: str | None = None
    """What rows have in common, such as the article that sentences were taken from. Rows of a group are drawn together
    when uncertainty is computed; by default every row stands for itself."""
    slice_columns: tuple[SliceColumn, ...] = ()
    """Columns by which rows are sliced, such as ``genre``: on every slice of a suite all models get a figure of their
    own. Values stay as they are written, numbers too; a row without a value is in no slice of that column."""
    id_column: str | None = None
    """Column that identifies a row for people; by default the row's number, from 0."""
    label_rule: LabelRule = LabelAsIs()
    max_rows: int | None = Field(default=None, ge=1)
    """Keep this many rows, chosen by the split seed; by default all."""
    duplicates: Literal["reject", "drop"] = "reject"
    """What to do with a text that occurs twice: stop the run, or keep its first row and count the others."""
    licence: str
    """SPDX identifier, or a name, of the terms under which the data may be used."""
    origin: str
    """Where the data comes from: a citation or an address, shown in reports."""

    @model_validator(mode="after")
    def _slices_are_distinct(self) -> Self:
        if len(set(self.slice_columns)) != len(self.slice_columns):
            raise ValueError("slice_columns must be distinct")
        return self


class Splits(Config):
    """How tables that the recipe does not name are cut out of ``train``, stratified by label."""

    validation: float = Field(default=0.15, gt=0, lt=0.5)
    """Share of the rows."""
    test: float = Field(default=0.15, gt=0, lt=0.5)
    """Share of the rows."""
    seed: int = Field(default=13, ge=0)


class DataChecks(Config):
    """Bounds of the Great Expectations suites. A critical failure stops the run with exit code 65."""

    min_rows: int = Field(default=100, ge=1)
    """Rows in each table."""
    min_label_share: float = Field(default=0.01, ge=0, le=1)
    """Share of the rarest label in ``train``; a warning below."""
    min_characters: int = Field(default=1, ge=1)
    max_characters: int = Field(default=10_000, ge=1)
    """Bounds of a text's length, after stripping."""


SuiteKind = Literal["in-domain", "shifted-domain", "challenge", "out-of-scope", "perturbed", "benchmark"]
"""What a set of items is, compared with what the student learns from. ``benchmark`` comes from an outside harness."""


class OodSet(Config):
    """A set from elsewhere, to see what happens outside the training distribution."""

    name: Name
    kind: Literal["shifted-domain", "challenge", "out-of-scope"] = "shifted-domain"
    """``shifted-domain``: the same labels on text of another domain. ``challenge``: the same labels on texts chosen to
    mislead shortcuts, as in HANS. ``out-of-scope``: texts that no label fits, which the model should be unsure about;
    its label column is not read."""
    table: Table


class Perturbation(Config):
    """A copy of the test set with its texts changed in a way that must not change their labels."""

    name: Name
    kind: Literal["typos", "case", "length", "template"]
    """``typos``: neighbouring letters swapped, dropped or doubled. ``case``: all lower case or all capitals.
    ``length``: only the first part of the text. ``template``: the text inside a sentence frame."""
    strength: float = Field(default=0.1, gt=0, le=1)
    """``typos``: share of words hit. ``case``: share of texts in capitals, the others lower. ``length``: share of words
    that is cut off the end. Not read by ``template``."""
    templates: tuple[str, ...] = ("{text}",)
    """Frames of ``template``, each with one ``{text}``; a text takes one of them by its digest."""
    seed: int = Field(default=17, ge=0)

    @model_validator(mode="after")
    def _templates_hold_the_text(self) -> Self:
        if self.kind == "template" and any(t.count("{text}") != 1 or t == "{text}" for t in self.templates):
            raise ValueError("templates: each must hold {text} once, and something besides")
        return self


class ContaminationConfig(Config):
    """How texts that almost occur in two sets are found, and what follows: MinHash over word n-grams (Broder 1997)."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of two texts' n-grams from which on they count as the same."""
    ngram: int = Field(default=5, ge=1)
    """Words in an n-gram; shorter texts are compared as a whole."""
    permutations: int = Field(default=128, ge=16)
    """Of the MinHash; more are more exact and slower. Candidates are compared exactly afterwards."""
    action: Literal["reject", "remove", "warn"] = "remove"
    """``reject`` stops the run, ``remove`` takes the row out of the set that is learned from, ``warn`` only counts."""


class CoverageConfig(Config):
    """Is what the student learns from like what it will meet? Compared with a reference sample of the real thing."""

    reference: Table
    """Texts from the deployment, labelled or not: its label column is read only where the label mix is bounded."""
    min_coverage: float = Field(default=0.5, ge=0, le=1)
    """Least share of reference texts that have a training text as near as training texts are to each other."""
    max_auroc: float = Field(default=0.9, ge=0.5, le=1)
    """Most that a classifier may tell training texts from reference texts apart; 0.5 is not at all."""
    max_length_distance: float = Field(default=0.5, ge=0, le=1)
    """Most that the distributions of lengths in words may differ: Kolmogorov-Smirnov statistic."""
    max_label_distance: float | None = Field(default=None, ge=0, le=1)
    """Most that the label mixes may differ: total variation; by default the reference needs no labels."""
    action: Literal["reject", "warn"] = "reject"
    """What follows when a bound is missed."""
    seed: int = Field(default=23, ge=0)


class DataConfig(Config):
    """What the student learns from and is judged on."""

    domain: Name
    """Name of the training domain, as tables and plots show it."""
    labels: tuple[str, ...] = ()
    """The label set, in the order of the classifier's outputs; empty for language modelling."""
    train: Table
    validation: Table | None = None
    """By default cut out of ``train``."""
    test: Table | None = None
    """By default cut out of ``train``."""
    splits: Splits = Splits()
    ood: tuple[OodSet, ...] = ()
    perturbations: tuple[Perturbation, ...] = ()
    contamination: ContaminationConfig | None = ContaminationConfig()
    """None looks for equal texts only."""
    coverage: CoverageConfig | None = None
    checks: DataChecks = DataChecks()

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        if len(self.labels) == 1 or len(set(self.labels)) != len(self.labels):
            raise ValueError("data.labels must be two or more, and distinct")
        names = [self.domain, *(ood.name for ood in self.ood), *(p.name for p in self.perturbations)]
        if len(set(names)) != len(names):
            raise ValueError("the domain, the ood sets and the perturbations need distinct names")
        return self

    @model_validator(mode="after")
    def _thresholds_have_two_labels(self) -> Self:
        tables = self.named_tables().values()
        if self.labels and len(self.labels) != 2 and any(t.label_rule.kind == "threshold" for t in tables):
            raise ValueError("label_rule 'threshold' needs exactly two labels")
        return self

    def named_tables(self) -> dict[str, Table]:
        """Every table that the recipe names: ``train``, ``validation``, ``test``, ``ood-NAME`` and ``reference``."""
        tables = {"train": self.train}
        if self.validation:
            tables["validation"] = self.validation
        if self.test:
            tables["test"] = self.test
        tables |= {f"ood-{ood.name}": ood.table for ood in self.ood}
        return tables | ({"reference": self.coverage.reference} if self.coverage else {})

    def suites(self) -> dict[str, tuple[str, SuiteKind]]:
        """What the models are measured on, in-domain first: by suite, the frozen set's name and the suite's kind."""
        found: dict[str, tuple[str, SuiteKind]] = {self.domain: ("test", "in-domain")}
        found |= {ood.name: (f"ood-{ood.name}", ood.kind) for ood in self.ood}
        return found | {p.name: (f"perturbed-{p.name}", "perturbed") for p in self.perturbations}
