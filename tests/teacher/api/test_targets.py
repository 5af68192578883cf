"""A server's log-probabilities become targets of a student with the same tokens, and of no other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from teacher_server import Teacher, prompts
from tiny_language import tiny_tokenizer

from stillhouse.contract import ConfigurationError
from stillhouse.models import Document, documents_of
from stillhouse.models.answers import Answer, TokenChoices
from stillhouse.store import FileStore
from stillhouse.teacher import CacheIdentity, SparseCache
from stillhouse.teacher.api import ApiWriter
from stillhouse.teacher.api.targets import write_server_cache
from stillhouse.teacher.ledger import Ledger, ask
from stillhouse.teacher.sampling import Records

TOP = 3
TOKENIZER = tiny_tokenizer()
IDENTITY = CacheIdentity(
    task="causal-lm",
    teacher_sha256="a" * 64,
    tokenizer_sha256="b" * 64,
    data_sha256="c" * 64,
    labels=(),
    max_tokens=32,
    hidden=False,
    method="top-k",
    samples=TOP,
    temperature=1.0,
    vocabulary_size=len(TOKENIZER),
)


@pytest.fixture
def answers(teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter]) -> list[Answer]:
    # The completions endpoint of a plain tokenizer sees what the student sees: the prompt, and no template.
    writer = writer_of(teacher.url, top_logprobs=TOP, endpoint="completions")
    return ask(prompts(5), writer, Ledger(store))[0]


def lessons(answers: list[Answer]) -> list[Document]:
    rows = Dataset.from_dict(
        {
            "id": [answer.prompt.row for answer in answers],
            "text": [answer.text for answer in answers],
            "prompt": [answer.prompt.text for answer in answers],
        }
    )
    return documents_of("causal-lm", TOKENIZER, rows, max_tokens=32, mask_share=0.1, seed=0)


def targets(folder: Path, answers: list[Answer], documents: list[Document]) -> list[Records]:
    choices = {answer.prompt.row: answer.choices for answer in answers}
    write_server_cache(folder, documents, choices, TOKENIZER, identity=IDENTITY)
    cache = SparseCache.open([folder], IDENTITY)
    return [cache.records([cache.find(document)]) for document in documents]


def test_the_targets_are_the_teachers_own_distribution(teacher: Teacher, answers: list[Answer], tmp_path: Path) -> None:
    documents = lessons(answers)
    for document, found in zip(documents, targets(tmp_path, answers, documents), strict=True):
        with torch.no_grad():
            logits_LV = teacher.model(torch.from_numpy(document.ids_L[None].astype(np.int64))).logits[0]
        best = logits_LV.softmax(-1)[document.targets_P].topk(TOP)
        sizes_P = np.diff(found.offsets_S)
        assert sizes_P[-1] == 0  # the server says nothing about the end
        assert set(sizes_P[:-1]) == {TOP}
        for place in range(len(sizes_P) - 1):
            part = slice(found.offsets_S[place], found.offsets_S[place + 1])
            expected = dict(zip(best.indices[place].tolist(), best.values[place].tolist(), strict=True))
            given = dict(zip(found.ids_K[part].tolist(), found.values_K[part].tolist(), strict=True))
            assert given == pytest.approx(expected, rel=2e-3)


def test_white_space_before_an_answer_costs_its_first_distribution_at_most(
    answers: list[Answer], tmp_path: Path
) -> None:
    documents = lessons(answers)
    spaced = [
        replace(
            answer,
            choices=(
                TokenChoices(token="\n", alternatives={}),
                replace(answer.choices[0], token=f" {answer.choices[0].token}"),
                *answer.choices[1:],
            ),
        )
        for answer in answers
    ]
    plain, found = targets(tmp_path / "a", answers, documents), targets(tmp_path / "b", spaced, documents)
    for one, other in zip(plain, found, strict=True):
        assert np.diff(other.offsets_S).tolist() == [0, *np.diff(one.offsets_S)[1:]]
        np.testing.assert_array_equal(one.values_K[TOP:], other.values_K)


def test_other_tokens_are_refused(answers: list[Answer], tmp_path: Path) -> None:
    shifted = [replace(answer, choices=answer.choices[1:]) for answer in answers]
    with pytest.raises(ConfigurationError, match="agrees with the teacher's on"):
        targets(tmp_path, shifted, lessons(answers))


def test_texts_that_the_server_did_not_write_have_no_targets(answers: list[Answer], tmp_path: Path) -> None:
    first, second, *_ = targets(tmp_path, answers[1:], lessons(answers))
    assert len(first.ids_K) == 0
    assert len(second.ids_K) > 0
