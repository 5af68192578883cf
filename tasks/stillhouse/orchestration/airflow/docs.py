"""Markdown that Airflow shows beside a DAG and its tasks."""

from collections.abc import Mapping

from stillhouse.orchestration.describe import recipe_sources
from stillhouse.recipe import Recipe, StageName

STAGE_DOCS: Mapping[StageName, str] = {
    "permit": (
        "Looks up what the terms policy says about training a model on the output of each teacher. Denied, unknown, or "
        "in need of a sign-off that the recipe lacks: the run stops with exit code 77 before anything is fetched or "
        "asked."
    ),
    "validate": (
        "Reads the tables, splits them, and checks them with Great Expectations: schema, nulls, label set and balance, "
        "length, duplicates, rows of the test set inside the training set.\n\n"
        "A critical finding stops the run with exit code 65 and names rows by id, never by text. What passes is frozen "
        "as digested Parquet: every later task reads these files and no others."
    ),
    "prepare-teacher": (
        "Fetches the teacher, verifies it, and fine-tunes it on the task if the recipe says so. Killed, it goes on "
        "from its last checkpoint."
    ),
    "initialise": "Builds the student from the teacher's layers, as it is **before** any training.",
    "generate": (
        "The teacher, weights or a server, answers the prompts of one shard. Every answer is kept once under what was "
        "asked: killed and tried again, nothing is asked twice."
    ),
    "curate": (
        "Turns the answers into a data set: verifies them, filters them, takes out near-duplicates and what occurs in "
        "held-out sets, checks the rest with Great Expectations, and counts all of it."
    ),
    "teach": (
        "Scores a part of the training set with the teacher, once. Each mapped task is one shard. Students learn from "
        "this cache; records are found by row and token ids, never by position."
    ),
    "distill": (
        "Trains one student. Arm `kd` learns from labels and teacher; arm `sft` is its control: same start, data, "
        "order and steps without the teacher's signal. Killed, it goes on from its last checkpoint."
    ),
    "compress": (
        "One step of the compression chain: makes the last good model smaller, lets it learn again where the recipe "
        "says so, and compares the two on the validation set. A step that costs too much is dropped."
    ),
    "evaluate": (
        "Scores teacher, students, the student before distillation and today's champion on the same frozen items, "
        "in-domain and out of domain. Every later figure is computed from these per-item records."
    ),
    "decide": (
        "Applies the policy to the evidence: `promote`, `reject` or `inconclusive`, with every rule's numbers. Writes "
        "the decision, the card that reviewers see, and the report."
    ),
    "promote": (
        "Registers the model, loads it back in a fresh process, appends the promotion to the ledger, moves the "
        "aliases, and appends the outcome. Of two racing promotions one wins. Killed, it is finished by the next try, "
        "the next promotion or `stillhouse_reconcile`; undone by `stillhouse_rollback`."
    ),
    "announce": "Closes the run in MLflow, whatever came before. It can't turn a failed run green.",
}

APPROVE_DOC = (
    "Skips itself and the promotion unless the verdict is `promote`. With `promotion.approval: human` it waits for an "
    "answer under *Required actions*, or to `PATCH …/hitlDetails`; no answer in time is a rejection. The answer is "
    "bound to the digest of the decision that was shown. With `two-person`, who triggered the run can reject and not "
    "approve; a run that no person triggered needs one reviewer."
)


def describe_recipe(recipe: Recipe) -> str:
    """Return what the DAG of ``recipe`` does, from what, and under which terms."""
    sources = "\n".join(f"| {name} | {origin} | {licence} |" for name, origin, licence in recipe_sources(recipe))
    arms = " and ".join(f"`{arm}`" for arm in recipe.arms)
    return (
        f"{recipe.description}\n\n"
        f"Distils a model for {recipe.task} (arms {arms}), judges by policy `{_stem(recipe.gate.policy)}`, "
        f"promotes to `models:/{recipe.promotion.model}@champion` with approval `{recipe.promotion.approval}`.\n\n"
        f"| source | from | licence |\n|---|---|---|\n{sources}\n\n"
        "A task whose inputs, settings and code were seen before is not run again: it reuses the earlier result and "
        "says so. Exit codes 75 and 137 are tried again, every other failure is final.\n"
    )


def _stem(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".yaml")
