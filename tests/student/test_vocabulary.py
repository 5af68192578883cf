import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import LABELS, NEUTRAL, POSITIVE, write_teacher
from tiny_language import SPECIAL, tiny_causal, tiny_masked, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from stillhouse.contract import ConfigurationError
from stillhouse.models import load_model, load_tokenizer, save_model, tokenizer_sha256
from stillhouse.student.vocabulary import check_same_tokens, trim_vocabulary

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


def bpe_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return merges as of GPT-2, of Llama-3 (words are found whole) or of Llama-2 (bytes for what is unknown)."""
    corpus = [*CORPUS, "the cat sat on the mat with another cat", "lowest newest widest lower newer wider"] * 3
    backend = Tokenizer(models.BPE(unk_token="<unk>" if kind == "llama-2" else None, byte_fallback=kind == "llama-2"))
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))] if kind == "llama-2" else ["</s>"]
    if kind == "llama-2":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        alphabet = []
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    backend.train_from_iterator(corpus, trainer)
    state = json.loads(backend.to_str())
    if kind == "llama-2":  # As sentencepiece's: only three are special, and merges run through spaces.
        state["added_tokens"] = state["added_tokens"][:3]
        state["pre_tokenizer"] = None
    else:  # As GPT-2's and Llama-3's: the special ones come last.
        vocabulary = state["model"]["vocab"]
        last = len(vocabulary) - 1
        state["model"]["vocab"] = {name: token - 1 for name, token in vocabulary.items() if name != "</s>"}
        state["added_tokens"][0]["id"] = last
        state["model"]["ignore_merges"] = kind == "llama-3"
    end = state["added_tokens"][-1]["id"]
    backend = Tokenizer.from_str(json.dumps(state))
    frame = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", end)])
    backend.post_processor = processors.Sequence([processors.ByteLevel(), frame]) if kind == "llama-3" else frame
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="</s>", unk_token="<unk>" if kind == "llama-2" else None
    )


def causal(tokenizer: PreTrainedTokenizerFast, **config: Any) -> Any:
    end = tokenizer.eos_token_id
    return tiny_causal(vocab_size=len(tokenizer), eos_token_id=[end], pad_token_id=end, **config)


CORPUS = ["a lower bar is the lowest one", "the widest mat was newer", "another newest cat sat here"]
KINDS = ["gpt-2", "llama-3", "llama-2"]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_merges_of_kept_tokens_run_as_before(kind: str, data: st.DataObject) -> None:
    tokenizer = BPE[kind]
    words = st.sampled_from(" ".join(CORPUS).split()) | st.text(max_size=4)
    texts = data.draw(st.lists(st.lists(words, max_size=5).map(" ".join), min_size=1, max_size=4))
    _, small = trim_vocabulary(BPE_MODELS[kind], tokenizer, tokenizer(texts)["input_ids"], texts=texts)
    for text in texts:
        old, new = tokenizer(text)["input_ids"], small(text)["input_ids"]
        assert small.convert_ids_to_tokens(new) == tokenizer.convert_ids_to_tokens(old)
        assert small.decode(new) == tokenizer.decode(old)
    assert len(small) < len(tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_can_still_be_written_with_bytes(kind: str) -> None:
    tokenizer = BPE[kind]
    _, small = trim_vocabulary(BPE_MODELS[kind], tokenizer, tokenizer(["the cat"])["input_ids"])
    text = "wholly other: \u00e9\U0001f600"
    assert small.decode(small(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_keeps_the_most_frequent_tokens_with_their_parts(kind: str) -> None:
    tokenizer = BPE[kind]
    least = len(trim_vocabulary(BPE_MODELS[kind], tokenizer, [[]])[1])
    ids = tokenizer(["newest " * 9 + "cat"])["input_ids"]
    _, small = trim_vocabulary(BPE_MODELS[kind], tokenizer, ids, least + 12)
    assert len(small) == least + 12
    often = max(set(ids[0]) - set(tokenizer.all_special_ids), key=ids[0].count)
    assert tokenizer.convert_ids_to_tokens(often) in small.get_vocab()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_causal_model_says_the_same_of_kept_tokens(kind: str, tied: bool, tmp_path: Path) -> None:
    tokenizer = BPE[kind]
    model = causal(tokenizer, tie_word_embeddings=tied)
    text = CORPUS[0]
    small_model, small = trim_vocabulary(model, tokenizer, tokenizer(CORPUS[:2])["input_ids"])
    save_model(small_model, small, tmp_path / "small")
    loaded, loaded_tokenizer = load_model(tmp_path / "small", task="causal-lm"), load_tokenizer(tmp_path / "small")
    assert tokenizer_sha256(loaded_tokenizer) == tokenizer_sha256(small)
    kept = tokenizer.convert_tokens_to_ids(small.convert_ids_to_tokens(list(range(len(small)))))
    # A product of another width adds up in another order.
    torch.testing.assert_close(
        logits(loaded, loaded_tokenizer, text), logits(model, tokenizer, text)[..., kept], rtol=1e-5, atol=1e-5
    )
    assert loaded.config.eos_token_id == loaded.generation_config.eos_token_id == [small.eos_token_id]
    assert loaded.config.pad_token_id == small.pad_token_id
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied


def test_a_masked_model_says_the_same_of_kept_tokens_with_its_bias(tmp_path: Path) -> None:
    model, tokenizer = tiny_masked(), tiny_tokenizer(masked=True)
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    text = "the plot was good"
    small_model, small = trim_vocabulary(model, tokenizer, [tokenizer(text)["input_ids"]])
    save_model(small_model, small, tmp_path / "small")
    loaded = load_model(tmp_path / "small", task="masked-lm")
    kept = tokenizer.convert_tokens_to_ids(small.convert_ids_to_tokens(list(range(len(small)))))
    assert len(kept) == loaded.cls.predictions.bias.numel() == len(SPECIAL) - 1 + 4
    # A product of another width adds up in another order.
    torch.testing.assert_close(logits(loaded, small, text), logits(model, tokenizer, text)[..., kept])


def test_a_vocabulary_that_is_used_up_is_refused() -> None:
    tokenizer = piece_tokenizer("BertProcessing")
    with pytest.raises(ConfigurationError, match="all 15 tokens occur"):
        trim_vocabulary(piece_model(), tokenizer, [list(range(len(PIECES)))])


def test_a_text_that_becomes_other_tokens_is_found() -> None:
    tokenizer, other = piece_tokenizer("BertProcessing"), piece_tokenizer("BertProcessing")
    other.backend_tokenizer.normalizer = normalizers.Replace("ab", "a b")
    assert check_same_tokens(tokenizer, other, ["a b c", "bc"]) == 2
    with pytest.raises(ConfigurationError, match="1 of 2 texts became other tokens"):
        check_same_tokens(tokenizer, other, ["a b c", "ab"])


def test_scores_of_unigram_are_not_trimmed() -> None:
    backend = Tokenizer(models.Unigram([("[PAD]", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0))
    with pytest.raises(ConfigurationError, match="Unigram tokenizer can't be trimmed"):
        trim_vocabulary(piece_model(), PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]"), [], 3)


BPE = {kind: bpe_tokenizer(kind) for kind in KINDS}
BPE_MODELS = {kind: causal(tokenizer) for kind, tokenizer in BPE.items()}
