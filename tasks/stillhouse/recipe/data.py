"""Section ``data``: the tables, how they are labelled and split, and what they must satisfy."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stillhouse.recipe.base import Config, Name
from stillhouse.recipe.sources import FileSource


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
    label_column: str = "label"
    """Of classification tasks."""
    prompt_column: str | None = None
    """Of language modelling tasks: what the text answers. It is read and not learned."""
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


class OodSet(Config):
    """A labelled set from elsewhere, to see what happens outside the training distribution."""

    name: Name
    kind: Literal["shifted-domain"] = "shifted-domain"
    """``shifted-domain``: the same labels on text of another domain."""
    table: Table


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
    checks: DataChecks = DataChecks()

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        if len(self.labels) == 1 or len(set(self.labels)) != len(self.labels):
            raise ValueError("data.labels must be two or more, and distinct")
        names = [self.domain, *(ood.name for ood in self.ood)]
        if len(set(names)) != len(names):
            raise ValueError("the domain and the ood sets need distinct names")
        return self

    @model_validator(mode="after")
    def _thresholds_have_two_labels(self) -> Self:
        tables = [self.train, self.validation, self.test, *(ood.table for ood in self.ood)]
        if self.labels and len(self.labels) != 2 and any(t and t.label_rule.kind == "threshold" for t in tables):
            raise ValueError("label_rule 'threshold' needs exactly two labels")
        return self

    def named_tables(self) -> dict[str, Table]:
        """Every table that the recipe names: ``train``, ``validation``, ``test`` and ``ood-NAME``."""
        tables = {"train": self.train}
        if self.validation:
            tables["validation"] = self.validation
        if self.test:
            tables["test"] = self.test
        return tables | {f"ood-{ood.name}": ood.table for ood in self.ood}
