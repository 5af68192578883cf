"""What every set of a run must satisfy, as Great Expectations suites in code.

The suites look at a profile of each set, never at its text: see `stillhouse.data.suites.profile`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import great_expectations as gx
import great_expectations.expectations as gxe

from stillhouse.data.prepare import held_out_of, labels_of
from stillhouse.recipe import ContaminationConfig, CoverageConfig, DataChecks, DataConfig
from stillhouse.recipe.data import SLICE

MAX_MIX_DISTANCE = 0.1
"""Between the mixes of scripts, or of languages, of train and reference; more of it is worth a warning."""
MAX_SLICES = 50
"""Distinct values of a column of slices: with more, each has few items, and the column is rather a measurement."""
COVERAGE_ACTION = "add training data like data.coverage.reference, or correct the reference"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One expectation, and how to speak about its failure."""

    name: str
    expectation: Any
    failure: str
    """One line without the set's name. ``{num_rows}``, ``{rows}`` and ``{observed}`` stand for what was found."""


def build_checks(name: str, names: Collection[str], config: DataConfig) -> list[Check]:
    """Return the checks of the set ``name``, given the names of all sets of the run."""
    checks = [*_row_checks(config.checks), _text_check()]
    # Made from `test`, whose texts have passed: what a perturbation shortens may become equal to another text.
    checks += [_change_check()] if name.startswith("perturbed-") else _writing_checks(config.checks)
    # A set that is cut out of `train` has the columns of `train`.
    if labels_of(name, config):
        checks += _label_checks(config)
        checks += _balance_checks(config) if name == "train" else []
    elif not config.labels and config.named_tables().get(name, config.train).prompt_column is not None:
        checks.append(_prompt_check())
    # Models are judged by slice on held-out sets. A perturbed set has the slices of `test`.
    if name in ("validation", "test") or name.startswith("ood-"):
        table = config.named_tables().get(name, config.train)
        checks += [_slice_check(column) for column in table.slice_columns]
    others = held_out_of(name, names)
    checks += [_leak_check(other) for other in others]
    return checks + [_near_check(other, config.contamination) for other in others if config.contamination]


def build_coverage_checks(config: CoverageConfig, figures: Collection[str]) -> list[Check]:
    """Return the checks of those ``figures`` that were measured, which stand in one row."""
    severity = "critical" if config.action == "reject" else "warning"
    bounds = (
        ("auroc", config.max_auroc, severity, "AUROC of a classifier that tells training texts from reference texts"),
        ("length_distance", config.max_length_distance, severity, "distance of the lengths in words"),
        ("script_distance", MAX_MIX_DISTANCE, "warning", "distance of the mixes of scripts"),
        ("language_distance", MAX_MIX_DISTANCE, "warning", "distance of the mixes of languages"),
        ("label_distance", config.max_label_distance, severity, "distance of the mixes of labels"),
    )
    checks = [_coverage_check(config.min_coverage, severity)]
    return checks + [_distance_check(*bound) for bound in bounds if bound[0] in figures]


def build_suite(name: str, checks: Sequence[Check]) -> gx.ExpectationSuite:
    """Return the suite of a set. Each expectation carries the name of its check as ``meta.check``."""
    expectations = [check.expectation for check in checks]
    for check in checks:
        check.expectation.meta = {"check": check.name}
    return gx.ExpectationSuite(name=name, expectations=expectations)


def _row_checks(bounds: DataChecks) -> list[Check]:
    return [
        Check(
            name="rows",
            expectation=gxe.ExpectTableRowCountToBeBetween(
                min_value=bounds.min_rows, description=f"The set has at least {bounds.min_rows} rows."
            ),
            failure=f"{{observed}} of at least {bounds.min_rows} rows; add data or lower data.checks.min_rows",
        ),
        Check(
            name="id-type",
            expectation=gxe.ExpectColumnValuesToBeOfType(column="id", type_="str", description="Ids are strings."),
            failure="ids are no strings; read the table with stillhouse.data.read_table",
        ),
        Check(
            name="ids",
            expectation=gxe.ExpectColumnValuesToBeUnique(column="id", description="No id occurs twice."),
            failure="{num_rows} with the id of another one ({rows}); make ids unique or leave id_column out",
        ),
    ]


def _text_check() -> Check:
    return Check(
        name="text",
        expectation=gxe.ExpectColumnValuesToNotBeNull(column="characters", description="Every row has a text."),
        failure="{num_rows} without a text ({rows}); complete or remove them",
    )


def _writing_checks(bounds: DataChecks) -> list[Check]:
    low, high = bounds.min_characters, bounds.max_characters
    return [
        Check(
            name="text-length",
            expectation=gxe.ExpectColumnValuesToBeBetween(
                column="characters",
                min_value=low,
                max_value=high,
                description=f"Texts have {low} to {high} characters, outer white space not counted.",
            ),
            failure=f"{{num_rows}} without {low} to {high} characters ({{rows}}); correct them or data.checks",
        ),
        Check(
            name="duplicates",
            expectation=gxe.ExpectColumnValuesToBeUnique(
                column="text_digest", description="No text occurs twice, whatever its case and white space."
            ),
            failure="{num_rows} with the text of another one ({rows}); remove them or set duplicates: drop",
        ),
    ]


def _change_check() -> Check:
    return Check(
        name="changed",
        expectation=gxe.ExpectColumnMeanToBeBetween(
            column="changed", min_value=0, strict_min=True, description="Some texts differ from those of the test set."
        ),
        failure="the perturbation changes no text; correct it or leave it out",
    )


def _label_checks(config: DataConfig) -> list[Check]:
    return [
        Check(
            name="label-type",
            expectation=gxe.ExpectColumnValuesToBeOfType(
                column="label", type_="int64", description="Labels are indices into the label set."
            ),
            failure="labels are no indices; read the table with stillhouse.data.read_table",
        ),
        Check(
            name="labels",
            expectation=gxe.ExpectColumnValuesToBeInSet(
                column="label",
                value_set=list(range(len(config.labels))),
                description="Every label belongs to the label set.",
            ),
            failure="{num_rows} with a label that data.labels lacks ({rows}); correct them or data.labels",
        ),
    ]


def _prompt_check() -> Check:
    return Check(
        name="prompt",
        expectation=gxe.ExpectColumnValuesToNotBeNull(
            column="prompt_characters", description="Every row has a prompt."
        ),
        failure="{num_rows} without a prompt ({rows}); complete or remove them",
    )


def _slice_check(column: str) -> Check:
    return Check(
        name=f"slices-{column}",
        expectation=gxe.ExpectColumnUniqueValueCountToBeBetween(
            column=SLICE + column,
            max_value=MAX_SLICES,
            description=f"Column '{column}' cuts the set into at most {MAX_SLICES} slices.",
        ),
        failure=f"column '{_braced(column)}' has {{observed}} distinct values, more than {MAX_SLICES}; put them into "
        "bins or take the column out of slice_columns",
    )


def _braced(text: str) -> str:
    """Keep braces through `str.format`."""
    return text.replace("{", "{{").replace("}", "}}")


def _balance_checks(config: DataConfig) -> list[Check]:
    share = config.checks.min_label_share
    return [
        Check(
            name="labels-present",
            expectation=gxe.ExpectColumnUniqueValueCountToBeBetween(
                column="label",
                min_value=len(config.labels),
                severity="warning",
                description="Every label of the label set occurs.",
            ),
            failure=f"{{observed}} of {len(config.labels)} labels occur; add rows of the others or remove these labels",
        ),
        Check(
            name="label-balance",
            expectation=gxe.ExpectColumnMinToBeBetween(
                column="label_share",
                min_value=share,
                severity="warning",
                description=f"The rarest label that occurs has at least a share of {share} of the rows.",
            ),
            failure=f"the rarest label has a share of {{observed}}, below {share}; expect it to be learned badly",
        ),
    ]


def _leak_check(other: str) -> Check:
    return Check(
        name=f"leak-{other}",
        expectation=gxe.ExpectColumnValuesToBeInSet(
            column=f"in_{other}",
            value_set=[False],
            description=f"No text also occurs in {other}, whatever its case and white space.",
        ),
        failure=f"{{num_rows}} whose text is also in {other} ({{rows}}); remove it from one or set duplicates: drop",
    )


def _near_check(other: str, config: ContaminationConfig) -> Check:
    return Check(
        name=f"near-{other}",
        expectation=gxe.ExpectColumnValuesToBeInSet(
            column=f"near_{other}",
            value_set=[False],
            severity="warning" if config.action == "warn" else "critical",
            description=f"No text is a near-duplicate of one in {other}: a Jaccard similarity of their "
            f"{config.ngram}-grams of words of {config.threshold} or more.",
        ),
        failure=f"{{num_rows}} with a near-duplicate in {other} ({{rows}}); take it out of one, or set "
        "data.contamination.action: remove",
    )


def _coverage_check(bound: float, severity: str) -> Check:
    return Check(
        name="coverage",
        expectation=gxe.ExpectColumnMinToBeBetween(
            column="coverage",
            min_value=bound,
            severity=severity,
            description=f"At least a share of {bound} of the reference texts have a training text near by.",
        ),
        failure=f"a share of {{observed}} of the reference texts is covered, below {bound}; {COVERAGE_ACTION}",
    )


def _distance_check(figure: str, bound: float | None, severity: str, what: str) -> Check:
    return Check(
        name=f"coverage-{figure.split('_')[0]}",
        expectation=gxe.ExpectColumnMaxToBeBetween(
            column=figure,
            max_value=bound,
            severity=severity,
            description=f"Compared with the reference, the {what} is at most {bound}.",
        ),
        failure=f"the {what} is {{observed}}, above {bound}; {COVERAGE_ACTION}",
    )
