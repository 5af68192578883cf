"""Stage ``teach``: the teacher scores one shard of the training set, once.

Outputs: ``cache`` (a classifier's logits or a language model's sampled distributions, hidden states if a term needs
them, and a manifest).
"""

from stillhouse.data.frozen import load_frozen
from stillhouse.models import configure_torch, load_model, load_tokenizer
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.training import write_shard


def run(context: StageContext) -> StageOutcome:
    """Write one shard of the teacher cache.

    Raises:
        DataRejected: The teacher gives NaN or infinite scores.
    """
    recipe, parameters = context.recipe, context.request.parameters
    configure_torch(threads=context.cpus, seed=0)
    folder, target = context.input("teacher"), context.workspace / "cache"
    manifest = write_shard(
        recipe,
        load_model(folder, task=recipe.task, labels=recipe.data.labels, precision=recipe.teacher.precision),
        load_tokenizer(folder),
        load_frozen(context.input("train")),
        target,
        teacher_sha256=context.request.inputs["teacher"].sha256,
        data_sha256=context.request.inputs["train"].sha256,
        shard=parameters["shard"],
        num_shards=parameters["shards"],
        on_progress=context.report_progress,
    )
    artifact = context.save_tree("cache", target)
    size = artifact.num_bytes / max(manifest.num_targets or manifest.num_rows, 1)
    what = "token" if manifest.num_targets else "row"
    return StageOutcome(
        summary=f"{manifest.num_rows:,} rows scored, {size:,.0f} bytes a {what}",
        metrics={"rows": float(manifest.num_rows), f"bytes_per_{what}": size},
    )
