"""Stage ``teach``: the teacher scores one shard of the training set, once.

Outputs: ``cache`` (logits, and hidden states if a term needs them, with a manifest).
"""

from stillhouse.data.frozen import load_frozen
from stillhouse.models import configure_torch, load_model, load_tokenizer, predict, tokenizer_sha256
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.teacher import CacheIdentity, shard_indices, write_cache


def run(context: StageContext) -> StageOutcome:
    """Write one shard of the teacher cache.

    Raises:
        DataRejected: The teacher gives NaN or infinite scores.
    """
    recipe, parameters = context.recipe, context.request.parameters
    configure_torch(threads=context.cpus, seed=0)
    folder = context.input("teacher")
    model, tokenizer = load_model(folder, task=recipe.task, labels=recipe.data.labels), load_tokenizer(folder)
    rows = load_frozen(context.input("train"))
    rows = rows.select(shard_indices(len(rows), parameters["shard"], parameters["shards"]))
    max_tokens = recipe.training.max_tokens
    predictions = predict(
        model,
        tokenizer,
        list(rows["text"]),
        batch_size=recipe.teacher.batch_size,
        max_tokens=max_tokens,
        hidden=parameters["hidden"],
        on_progress=context.report_progress,
    )
    target = context.workspace / "cache"
    write_cache(
        target,
        ids=list(rows["id"]),
        token_ids=predictions.token_ids,
        predictions=predictions,
        identity=CacheIdentity(
            teacher_sha256=context.request.inputs["teacher"].sha256,
            tokenizer_sha256=tokenizer_sha256(tokenizer),
            data_sha256=context.request.inputs["train"].sha256,
            max_tokens=max_tokens,
            labels=recipe.data.labels,
            hidden=parameters["hidden"],
        ),
        shard=parameters["shard"],
        num_shards=parameters["shards"],
    )
    artifact = context.save_tree("cache", target)
    return StageOutcome(
        summary=f"{len(rows):,} rows scored, {artifact.num_bytes / len(rows):,.0f} bytes a row",
        metrics={"rows": float(len(rows)), "bytes_per_row": artifact.num_bytes / len(rows)},
    )
