"""Stage ``generate``: the teacher answers one shard of the prompts, and then reviews its answers where the recipe asks.

Prompt i of all prompts belongs to shard ``i modulo shards``, so that every shard gets a share of every part of the
data. What any shard of any run was answered before is not asked again.

Outputs: ``answers`` (Parquet) and ``counts`` (`AnswerCounts`, JSON), the same however often the stage was killed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from stillhouse.contract import AnswerCounts, ConfigurationError, DataRejected, Progress, pretty_json
from stillhouse.data.frozen import load_frozen
from stillhouse.models import configure_torch, load_model, load_tokenizer
from stillhouse.models.answers import Answer, Prompt, write_answers
from stillhouse.recipe.synthesis import LimitsConfig
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.teacher.api import ApiWriter, Spending
from stillhouse.teacher.ledger import Ledger, ask
from stillhouse.teacher.local import LocalWriter
from stillhouse.teacher.prompts import prompts_of, review_prompt
from stillhouse.teacher.writer import Decoding, Writer

REVIEW_TOKENS = 64
"""Bound of a review: it begins with a number or a word."""

WriterOf = Callable[[Decoding], Writer]


def run(context: StageContext) -> StageOutcome:
    """Ask the teacher.

    Raises:
        DataRejected: More answers are refused, truncated or empty than the recipe bears.
        NotPermitted: The ceiling of requests, tokens or cost is reached, or the server wants another key.
        TryAgain: The server is away. What was answered is kept.
    """
    synthesis, parameters = context.recipe.synthesis, context.request.parameters
    if synthesis is None:
        raise ConfigurationError("stage generate needs a recipe with a section synthesis")
    rows = load_frozen(context.input("train"))
    prompts = prompts_of(synthesis, rows)[parameters["shard"] :: parameters["shards"]]
    writer_of = _teacher(context)
    check = _limits(synthesis.limits, total=len(prompts))
    answers, counts = _ask(context, prompts, writer_of(Decoding.of(synthesis)), unit="answers", check=check)
    of_row = {row["id"]: row for row in rows}
    reviews = [review_prompt(synthesis, of_row[answer.prompt.row], answer) for answer in answers]
    if wanted := [prompt for prompt in reviews if prompt is not None]:
        said, more = _ask(context, wanted, writer_of(Decoding.greedy(max_new_tokens=REVIEW_TOKENS)), unit="reviews")
        texts = iter(review.text for review in said)
        answers = [a if p is None else replace(a, review=next(texts)) for a, p in zip(answers, reviews, strict=True)]
        counts = counts.plus(more)
    path = context.workspace / "answers.parquet"
    write_answers(answers, path)
    context.save_file("answers", path)
    context.save_bytes("counts", pretty_json(counts.of_answers), ".json")
    return StageOutcome(
        summary=f"{len(answers):,} answers, {counts.from_ledger:,} of {counts.prompts:,} known before",
        metrics={f"answers.{name}": float(value) for name, value in counts.model_dump().items()},
    )


def _teacher(context: StageContext) -> WriterOf:
    """Return what makes a writer of the recipe's teacher, given how it is to choose its words."""
    teacher = context.recipe.teacher
    if teacher.api is not None:
        api = teacher.api
        spending = Spending(context.store, run_id=context.request.run_id, ceiling=api.ceiling, prices=api.prices)
        return lambda decoding: ApiWriter(api, decoding, spending=spending, store=context.store)
    configure_torch(threads=context.cpus, seed=0)
    folder = context.input("teacher")
    model, tokenizer = load_model(folder, task="causal-lm", precision=teacher.precision), load_tokenizer(folder)
    sha256 = context.request.inputs["teacher"].sha256
    return lambda decoding: LocalWriter(
        model, tokenizer, decoding=decoding, weights_sha256=sha256, batch_size=teacher.batch_size
    )


def _ask(
    context: StageContext,
    prompts: Sequence[Prompt],
    writer: Writer,
    *,
    unit: str,
    check: Callable[[AnswerCounts], None] = lambda counts: None,
) -> tuple[list[Answer], AnswerCounts]:
    api, started = context.recipe.teacher.api, time.monotonic()

    def report(counts: AnswerCounts) -> None:
        rate = (counts.prompts - counts.from_ledger) / max(time.monotonic() - started, 1e-9)
        left = (len(prompts) - counts.prompts) / rate if rate else None
        spent = f" for {counts.cost:.2f}" if counts.cost else ""
        progress = Progress(done=counts.prompts, total=len(prompts), unit=unit + spent)
        context.report_progress(progress.model_copy(update={"rate": rate, "rate_unit": unit, "seconds_left": left}))

    prices = api.prices if api else None
    return ask(prompts, writer, Ledger(context.store), prices=prices, check=check, on_progress=report)


def _limits(limits: LimitsConfig, *, total: int) -> Callable[[AnswerCounts], None]:
    """Return what stops the stage as soon as a share of the shard's answers is sure to end above its bound."""

    def check(counts: AnswerCounts) -> None:
        for name, bound in (
            ("refused", limits.max_refused),
            ("truncated", limits.max_truncated),
            ("empty", limits.max_empty),
        ):
            found = getattr(counts, name)
            if found > bound * total:
                raise DataRejected(
                    f"{found} of {counts.prompts} answers so far are {name}: more than {bound:.0%} of {total}; change "
                    f"the prompt or synthesis.max_new_tokens, or raise synthesis.limits.max_{name}"
                )

    return check
