"""Continuations are those of the plain model, and a sample belongs to its prompt, not to its batch."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_language import SPECIAL, WORDS, tiny_causal, tiny_tokenizer
from transformers import GenerationConfig

from stillhouse.contract import ConfigurationError, DataRejected, Progress
from stillhouse.models import (
    Document,
    PromptAnswers,
    Sampling,
    answer_prompts,
    continue_prompts,
    prompt_tokens,
    stream_continuations,
)
from stillhouse.models.documents import causal_documents
from stillhouse.models.generating import _nucleus

END = SPECIAL.index("<end>")
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "samples": 3, "temperature": 1.0, "seed": 4, "batch_size": 5}


def prompted(count: int = 12) -> list[Document]:
    prompts = [" ".join(WORDS[n : n + 1 + n % 5]) for n in range(count)]
    return causal_documents(tiny_tokenizer(), [f"q{n}" for n in range(count)], ["good"] * count, prompts, max_tokens=24)


def greedy_alone(model: Any, prompt: np.ndarray, steps: int) -> list[int]:
    """Take the most probable token again and again, without padding or cache."""
    ids = prompt.tolist()
    for _ in range(steps):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == END:
            break
    return ids[len(prompt) :]


def test_greedy_continuations_are_those_of_each_prompt_alone() -> None:
    model, tokenizer = tiny_causal(), tiny_tokenizer()
    # Every kind of end: at once, in the middle, not at all.
    with torch.no_grad():
        model.lm_head.weight[END] *= 1.5
    prompts = [prompt_tokens(document) for document in prompted()]
    written = continue_prompts(model, tokenizer, prompts, max_new_tokens=6, draws_RS=None)
    assert [row.tolist() for row in written] == [greedy_alone(model, prompt, 6) for prompt in prompts]
    assert {len(row) for row in written} > {6}


def test_model_with_adapters_writes_with_them() -> None:
    model, tokenizer = tiny_causal(), tiny_tokenizer()
    prompts = [prompt_tokens(document) for document in prompted()]
    before = [greedy_alone(model, prompt, 6) for prompt in prompts]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    written = continue_prompts(adapted, tokenizer, prompts, max_new_tokens=6, draws_RS=None)
    assert [row.tolist() for row in written] == [greedy_alone(adapted.eval(), prompt, 6) for prompt in prompts]
    assert [row.tolist() for row in written] != before


def test_settings_in_a_model_folder_change_nothing_but_may_add_an_end() -> None:
    model, tokenizer = tiny_causal(), tiny_tokenizer()
    prompts = [prompt_tokens(document) for document in prompted()]
    plain = continue_prompts(model, tokenizer, prompts, max_new_tokens=6, draws_RS=None)
    settings = GenerationConfig(repetition_penalty=9.0, no_repeat_ngram_size=1, max_length=3, suppress_tokens=[7, 8, 9])
    model.generation_config = settings
    same = continue_prompts(model, tokenizer, prompts, max_new_tokens=6, draws_RS=None)
    assert [row.tolist() for row in same] == [row.tolist() for row in plain]
    assert model.generation_config is settings
    stop = int(plain[0][2])
    model.generation_config = GenerationConfig(eos_token_id=[stop])
    (ended,) = continue_prompts(model, tokenizer, prompts[:1], max_new_tokens=6, draws_RS=None)
    assert ended.tolist() == plain[0][: plain[0].tolist().index(stop) + 1].tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_samples_depend_on_seed_document_and_number_alone(batch_size: int) -> None:
    model, tokenizer, documents = tiny_causal(), tiny_tokenizer(), prompted()
    whole = answer_prompts(model, tokenizer, documents, **OPTIONS)
    parts = answer_prompts(model, tokenizer, documents[::-1], **OPTIONS | {"batch_size": batch_size})
    assert parts[::-1] == whole
    assert answer_prompts(model, tokenizer, documents, **OPTIONS | {"samples": 1}) == [
        PromptAnswers(greedy=given.greedy, samples=given.samples[:1]) for given in whole
    ]
    other = answer_prompts(model, tokenizer, documents, **OPTIONS | {"seed": 5})
    assert [given.greedy for given in other] == [given.greedy for given in whole]
    assert [given.samples for given in other] != [given.samples for given in whole]
    assert sum(len(set(given.samples)) > 1 for given in whole) > 6


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_the_model_says(temperature: float) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_causal(vocab_size=len(tokenizer) + 16)
    prompt = prompt_tokens(prompted(1)[0])
    count = 4000
    # Evenly spaced draws: each token gets its share, to a draw.
    draws_RS = ((np.arange(count) + 0.5) / count)[:, None]
    written = continue_prompts(
        model, tokenizer, [prompt] * count, max_new_tokens=1, draws_RS=draws_RS, temperature=temperature
    )
    found = Counter(int(row[0]) for row in written)
    with torch.no_grad():
        logits_V = model(torch.from_numpy(prompt)[None].long()).logits[0, -1, : len(tokenizer)]
    expected_V = (logits_V.double() / temperature).softmax(-1).numpy() * count
    assert set(found) <= set(range(len(tokenizer)))
    np.testing.assert_allclose([found[token] for token in range(len(tokenizer))], expected_V, atol=1.01)


@pytest.mark.parametrize("batch_size", [3, 12])
def test_streamed_rows_are_those_written_alone_though_others_left_the_batch(batch_size: int) -> None:
    model, tokenizer = tiny_causal(max_position_embeddings=128), tiny_tokenizer()
    with torch.no_grad():
        model.lm_head.weight[END] *= 1.3
    prompts = [prompt_tokens(document) for document in prompted()]
    options: dict[str, Any] = {"keys": [f"k{n}" for n in range(12)], "max_new_tokens": 70, "batch_size": batch_size}
    greedy = list(stream_continuations(model, tokenizer, prompts, sampling=None, **options))
    assert sorted(index for index, _ in greedy) == list(range(12))
    assert {index: row.tolist() for index, row in greedy} == {
        index: greedy_alone(model, prompt, 70) for index, prompt in enumerate(prompts)
    }
    drawn = dict(stream_continuations(model, tokenizer, prompts, sampling=Sampling(seed=1, temperature=1.0), **options))
    lengths = [len(drawn[index]) for index in range(12)]
    assert len(set(lengths)) > 4
    assert max(lengths) > 32
    alone = dict(
        stream_continuations(
            model, tokenizer, prompts, sampling=Sampling(seed=1, temperature=1.0), **options | {"batch_size": 1}
        )
    )
    assert {index: row.tolist() for index, row in alone.items()} == {index: r.tolist() for index, r in drawn.items()}


def test_what_prompts_start_with_is_read_once_and_changes_nothing() -> None:
    model, tokenizer = tiny_causal(max_position_embeddings=128).train(), tiny_tokenizer()
    start = np.asarray([7 + n % 11 for n in range(20)], dtype=np.int32)
    prompts = [np.concatenate([start, prompt_tokens(document)]) for document in prompted()]
    prompts[0] = prompts[1].copy()
    widths: list[tuple[int, int]] = []
    model.model.register_forward_pre_hook(
        lambda _, __, inputs: widths.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    options: dict[str, Any] = {"keys": [f"k{n}" for n in range(12)], "max_new_tokens": 5, "sampling": None}
    together = dict(stream_continuations(model, tokenizer, prompts, batch_size=12, **options))
    assert widths[0] == (1, 20)
    assert widths[1] == (12, max(map(len, prompts)) - 20)
    assert model.training
    model.eval()
    assert {index: row.tolist() for index, row in together.items()} == {
        index: greedy_alone(model, prompt, 5) for index, prompt in enumerate(prompts)
    }
    same = dict(stream_continuations(model, tokenizer, [prompts[3]] * 12, batch_size=12, **options))
    assert {tuple(row.tolist()) for row in same.values()} == {tuple(together[3].tolist())}


def test_short_rows_are_handed_out_before_the_long_ones_of_their_batch_are_written() -> None:
    model, tokenizer = tiny_causal(max_position_embeddings=128), tiny_tokenizer()
    with torch.no_grad():
        model.lm_head.weight[END] *= 1.3
    prompts = [prompt_tokens(document) for document in prompted()]
    seen: list[int] = []
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    model.register_forward_hook(count)
    for _, row in stream_continuations(
        model,
        tokenizer,
        prompts,
        keys=[f"k{n}" for n in range(12)],
        max_new_tokens=70,
        sampling=Sampling(seed=1, temperature=1.0),
        batch_size=12,
    ):
        seen.append(steps)
        assert len(row) <= steps
    assert seen[0] < seen[-1]


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999999])
def test_a_nucleus_holds_the_fewest_tokens_that_reach_its_sum(top_p: float) -> None:
    model, tokenizer = tiny_causal(), tiny_tokenizer()
    prompt = prompt_tokens(prompted(1)[0])
    with torch.no_grad():
        probabilities_V = model(torch.from_numpy(prompt)[None].long()).logits[0, -1].double().softmax(-1).numpy()
    order = np.argsort(-probabilities_V)
    allowed = set(order[: int((np.cumsum(probabilities_V[order]) < top_p).sum()) + 1].tolist())
    drawn = stream_continuations(
        model,
        tokenizer,
        [prompt] * 600,
        keys=[f"k{n}" for n in range(600)],
        max_new_tokens=1,
        sampling=Sampling(seed=2, temperature=1.0, top_p=top_p),
        batch_size=200,
    )
    found = Counter(int(row[0]) for _, row in drawn)
    assert set(found) <= allowed
    likely = {token for token in allowed if probabilities_V[token] > 0.02}
    assert likely <= set(found)


def test_a_wide_nucleus_is_found_beyond_the_tokens_that_are_sorted_first() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities_RV = (torch.randn(3, 5000, generator=generator, dtype=torch.float64) * 0.1).softmax(-1)
    kept_RV = _nucleus(probabilities_RV, 0.5)
    for row, kept in zip(probabilities_RV, kept_RV, strict=True):
        ordered = row.sort(descending=True).values
        count = int((ordered.cumsum(-1) < 0.5).sum()) + 1
        assert int((kept > 0).sum()) == count > 256
        assert kept[kept > 0].min() == ordered[count - 1]


def test_model_keeps_its_mode_and_writing_takes_no_randomness() -> None:
    model, tokenizer = tiny_causal().train(), tiny_tokenizer()
    state = torch.random.get_rng_state()
    continue_prompts(model, tokenizer, [np.asarray([7, 8], dtype=np.int32)], max_new_tokens=2, draws_RS=None)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_answers_come_without_special_tokens_and_progress_counts_them() -> None:
    told: list[Progress] = []
    model, tokenizer = tiny_causal(), tiny_tokenizer()
    answers = answer_prompts(model, tokenizer, prompted(), **OPTIONS, on_progress=told.append)
    words = {word for given in answers for text in (given.greedy, *given.samples) for word in text.split()}
    assert words
    assert not words & set(tokenizer.all_special_tokens)
    assert told[-1].done == told[-1].total == 12 * 4


def test_prompt_and_answer_that_exceed_the_positions_are_refused_before_any_work() -> None:
    with pytest.raises(ConfigurationError, match="5 tokens and an answer of 60 exceed the model's 64 positions"):
        answer_prompts(tiny_causal(), tiny_tokenizer(), prompted(), **OPTIONS | {"max_new_tokens": 60})


def test_logits_that_are_no_numbers_are_refused() -> None:
    model = tiny_causal()
    with torch.no_grad():
        model.lm_head.weight[9] = torch.nan
    with pytest.raises(DataRejected, match="NaN or infinite logits while it wrote"):
        answer_prompts(model, tiny_tokenizer(), prompted(), **OPTIONS)
