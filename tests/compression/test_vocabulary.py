from pathlib import Path

import pytest
import torch
from tiny import LABELS, write_teacher
from tiny_language import texts, tiny_causal, tiny_tokenizer

from stillhouse.compression.base import Calibration, Subject
from stillhouse.compression.vocabulary import VocabularyTrimming
from stillhouse.contract import ConfigurationError
from stillhouse.models import encode, load_model, load_tokenizer, predict
from stillhouse.recipe.compression import VocabularyStep

TEXTS = ["the plot was good", "the plot was great", "the actor was fine", "a scene of this film"]


def trimming(size: int | None = None) -> VocabularyTrimming:
    return VocabularyTrimming(step=VocabularyStep(kind="trim-vocabulary", name="small", size=size))


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    folder = write_teacher(tmp_path / "teacher")
    model = load_model(folder, task="text-classification", labels=LABELS)
    return Subject(model=model, tokenizer=load_tokenizer(folder), task="text-classification", labels=LABELS)


def calibration(subject: Subject, rows: list[str]) -> Calibration:
    return Calibration(ids=encode(subject.tokenizer, rows, 32).ids)


def test_the_training_sets_tokens_stay_and_answers_with_them(subject: Subject, tmp_path: Path) -> None:
    operation = trimming()
    assert operation.rounds(subject) == 1
    cut = operation.cut(subject, calibration(subject, TEXTS), turn=1, rounds=1)
    assert "100.00% of those in the training set; 4 of 4 documents" in cut.did
    operation.write(cut.subject, tmp_path / "small")
    model = load_model(tmp_path / "small", task="text-classification", labels=LABELS)
    small = load_tokenizer(tmp_path / "small")
    words = {word for text in TEXTS for word in text.split()}
    assert set(small.get_vocab()) == words | {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    before = predict(subject.model, subject.tokenizer, TEXTS, batch_size=2, max_tokens=32)
    after = predict(model, small, TEXTS, batch_size=2, max_tokens=32)
    assert (before.logits_NC == after.logits_NC).all()
    assert model.num_parameters() < subject.model.num_parameters()


def test_a_size_says_what_went(subject: Subject) -> None:
    rows = ["the plot was good"] * 9 + ["lovely music"]
    cut = trimming(16).cut(subject, calibration(subject, rows), turn=1, rounds=1)
    assert cut.did.startswith(f"16 of {len(subject.tokenizer)} tokens stay, 100.00%")
    many = [" ".join(sorted(subject.tokenizer.get_vocab())[:20])]
    cut = trimming(16).cut(subject, calibration(subject, many), turn=1, rounds=1)
    assert "0 of 1 documents have kept tokens only" in cut.did
    assert "100.00%" not in cut.did


def test_a_language_model_is_trimmed_too() -> None:
    model, tokenizer = tiny_causal(), tiny_tokenizer()
    subject = Subject(model=model, tokenizer=tokenizer, task="causal-lm")
    ids = encode(tokenizer, list(texts(2)["text"]), 32).ids
    small = trimming().cut(subject, Calibration(ids=ids), turn=1, rounds=1).subject
    kept = tokenizer.convert_tokens_to_ids(small.tokenizer.convert_ids_to_tokens(range(len(small.tokenizer))))
    renumbered = [[kept.index(token) for token in row] for row in ids]
    with torch.inference_mode():
        for old, new in zip(ids, renumbered, strict=True):
            before = model(input_ids=torch.tensor([old])).logits
            torch.testing.assert_close(small.model(input_ids=torch.tensor([new])).logits, before[..., kept])


def test_a_tokenizer_that_reads_a_document_otherwise_is_refused(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stillhouse.compression import vocabulary

    trim = vocabulary.trim_vocabulary

    def with_other_numbers(*arguments: object) -> object:
        model, small = trim(*arguments)
        small.backend_tokenizer.post_processor = None
        return model, small

    monkeypatch.setattr(vocabulary, "trim_vocabulary", with_other_numbers)
    with pytest.raises(ConfigurationError, match="4 of 4 texts became other tokens"):
        trimming().cut(subject, calibration(subject, TEXTS), turn=1, rounds=1)
