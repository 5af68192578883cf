from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import LABELS, NEUTRAL, POSITIVE, write_teacher
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from stillhouse.contract import ConfigurationError
from stillhouse.models import load_model, load_tokenizer, save_model, tokenizer_sha256
from stillhouse.student.vocabulary import trim_vocabulary

TEXTS = ["the plot was good", "the plot was great", "the actor was fine", "a scene of this film"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc", "ab", "abc", "##a", "##b", "##c", "##bc", "##cab"]
FRAMES = {
    "BertProcessing": processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
    "TemplateProcessing": processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    ),
}


def read(folder: Path) -> tuple[Any, Any]:
    return load_model(folder, task="text-classification", labels=LABELS), load_tokenizer(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_teacher(tmp_path / "teacher")


def logits(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    with torch.inference_mode():
        return model(**tokenizer(text, return_tensors="pt")).logits


def piece_tokenizer(frame: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = FRAMES[frame]
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{f"{key}_token": name for key, name in names.items()})


def piece_model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=len(PIECES), **shape)).eval()


def test_texts_of_kept_tokens_get_the_same_answers(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = read(folder)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    small, its_tokenizer = trim_vocabulary(model, tokenizer, ids, 18)
    assert small.config.vocab_size == len(its_tokenizer) == small.get_input_embeddings().num_embeddings == 18
    save_model(small, its_tokenizer, tmp_path / "small")
    loaded, loaded_tokenizer = read(tmp_path / "small")
    assert tokenizer_sha256(loaded_tokenizer) == tokenizer_sha256(its_tokenizer)
    for text in TEXTS:
        kept = loaded_tokenizer.convert_ids_to_tokens(loaded_tokenizer(text)["input_ids"])
        assert kept == tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        assert torch.equal(logits(loaded, loaded_tokenizer, text), logits(model, tokenizer, text))


def test_the_most_frequent_are_kept_and_the_others_become_unknown(folder: Path) -> None:
    model, tokenizer = read(folder)
    often, seldom = POSITIVE[0], NEUTRAL[3]
    ids = [tokenizer(f"{often} {often} {seldom}")["input_ids"]]
    _, small = trim_vocabulary(model, tokenizer, ids, 6)
    assert sorted(small.get_vocab()) == sorted(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", often])
    assert small.convert_ids_to_tokens(small(f"{seldom} {often}")["input_ids"]) == ["[CLS]", "[UNK]", often, "[SEP]"]


def test_the_model_and_the_random_state_are_left_alone(folder: Path) -> None:
    model, tokenizer = read(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size, digest = model.config.vocab_size, tokenizer_sha256(tokenizer)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    trim_vocabulary(model, tokenizer, [], 16)
    assert torch.equal(torch.rand(2), expected)
    assert model.config.vocab_size == size
    assert tokenizer_sha256(tokenizer) == digest
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@settings(deadline=None, max_examples=40)
@given(
    words=st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=5),
    size=st.integers(6, len(PIECES) - 1),
    frame=st.sampled_from(sorted(FRAMES)),
)
def test_word_pieces_that_are_kept_stay_the_longest_match(words: list[str], size: int, frame: str) -> None:
    tokenizer = piece_tokenizer(frame)
    text = " ".join(words)
    ids = tokenizer(text)["input_ids"]
    _, small = trim_vocabulary(piece_model(), tokenizer, [ids], size)
    found = small.convert_ids_to_tokens(small(text)["input_ids"])
    assert (found[0], found[-1]) == ("[CLS]", "[SEP]")
    if size >= len({*ids, 0, 1, 2, 3, 4}):
        assert found == tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("size", [4, len(PIECES), 1000])
def test_sizes_that_do_not_fit_are_refused(size: int) -> None:
    with pytest.raises(ConfigurationError, match=r"at least the 5 special tokens and less than the"):
        trim_vocabulary(piece_model(), piece_tokenizer("BertProcessing"), [], size)


def test_a_padding_token_that_would_move_is_refused() -> None:
    pieces = ["a", *(piece for piece in PIECES if piece != "a")]
    frame = processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.post_processor = frame
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    with pytest.raises(ConfigurationError, match="padding token does not come first"):
        trim_vocabulary(piece_model(), tokenizer, [[9, 10, 11]], 6)


def test_merges_are_not_trimmed() -> None:
    backend = Tokenizer(models.BPE({"[PAD]": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    with pytest.raises(ConfigurationError, match="BPE tokenizer can't be trimmed"):
        trim_vocabulary(piece_model(), PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]"), [], 3)
