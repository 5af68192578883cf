"""What a training stage learns from: the teacher's weights and its scores, where its task is given them."""

from datasets import Dataset
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.models import load_model, load_tokenizer
from stillhouse.stages.context import StageContext
from stillhouse.training import OpenedCache, open_cache, open_server_cache


def read_teacher(context: StageContext) -> tuple[PreTrainedModel, Tokenizer] | tuple[None, None]:
    """Return the teacher's weights and tokenizer where the task learns from them.

    Raises:
        ConfigurationError: The folder can't be read.
    """
    if "teacher" not in context.request.inputs:
        return None, None
    recipe, folder = context.recipe, context.input("teacher")
    model = load_model(folder, task=recipe.task, labels=recipe.data.labels, precision=recipe.teacher.precision)
    return model, load_tokenizer(folder)


def read_cache(
    context: StageContext, rows: Dataset, scorer: PreTrainedModel, tokenizer: Tokenizer
) -> OpenedCache | None:
    """Return the teacher's verified scores where the task learns from them.

    Args:
        context: Of the task.
        rows: The frozen training set.
        scorer: The teacher; without its weights the student, whose tokens a server's answers are kept in.
        tokenizer: The scorer's.

    Raises:
        DataRejected: The cache is damaged or belongs to something else, or its canary fails.
    """
    folders = [path for _, path in context.inputs(r"cache-\d+")]
    if not folders:
        return None
    inputs = context.request.inputs
    data = inputs["train"].sha256
    if "teacher" not in inputs:
        return open_server_cache(context.recipe, folders, scorer, tokenizer, rows, data_sha256=data)
    return open_cache(
        context.recipe, folders, scorer, tokenizer, rows, teacher_sha256=inputs["teacher"].sha256, data_sha256=data
    )
