"""A model on this machine answers prompts: each by itself, whatever batch it shares."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_language import SPECIAL, WORDS, tiny_causal, tiny_tokenizer

from stillhouse.contract import ConfigurationError
from stillhouse.models import continue_prompts
from stillhouse.models.answers import Answer, Prompt
from stillhouse.models.documents import question_tokens
from stillhouse.teacher.local import LocalWriter
from stillhouse.teacher.writer import Decoding

END = SPECIAL.index("<end>")
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
PROMPTS = [
    Prompt(row=f"r{number}", sample=sample, text=" ".join(WORDS[number : number + 1 + number % 4]))
    for number in range(8)
    for sample in range(3)
]


def writer(*, batch_size: int = 5, sha256: str = "0" * 64, template: str | None = None, **decoding: Any) -> LocalWriter:
    model, tokenizer = tiny_causal(), tiny_tokenizer()
    tokenizer.chat_template = template
    with torch.no_grad():
        model.lm_head.weight[END] *= 1.5
    chosen = Decoding(**{"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 40, "seed": 3} | decoding)
    return LocalWriter(model, tokenizer, weights_sha256=sha256, decoding=chosen, batch_size=batch_size)


def answers_of(local: LocalWriter, prompts: list[Prompt] = PROMPTS) -> dict[tuple[str, int], Answer]:
    given: list[Answer] = []
    assert local.write(prompts, on_answer=given.append) == len(prompts)
    assert len(given) == len(prompts)
    return {(answer.prompt.row, answer.prompt.sample): answer for answer in given}


def test_every_prompt_is_answered_once_and_ends_by_itself_or_at_the_bound() -> None:
    found = answers_of(writer(max_new_tokens=20))
    assert set(found) == {(prompt.row, prompt.sample) for prompt in PROMPTS}
    assert {answer.finish for answer in found.values()} == {"stop", "length"}
    for answer in found.values():
        words = len(answer.text.split())
        assert "<end>" not in answer.text
        assert answer.answer_tokens <= 20
        assert (answer.finish == "length") <= (answer.answer_tokens == 20)
        assert words <= answer.answer_tokens
        assert answer.prompt_tokens == len(answer.prompt.text.split())


def test_an_answer_depends_on_its_prompt_and_on_no_batch() -> None:
    whole = answers_of(writer())
    assert answers_of(writer(batch_size=1)) == whole
    assert answers_of(writer(batch_size=24), PROMPTS[::-1]) == whole
    renamed = [Prompt(row=f"x{p.row}", sample=p.sample, text=p.text) for p in PROMPTS]
    assert {a.text for a in answers_of(writer(), renamed).values()} == {a.text for a in whole.values()}
    assert {key: a.text for key, a in answers_of(writer(seed=4)).items()} != {k: a.text for k, a in whole.items()}
    assert len({whole["r0", sample].text for sample in range(3)}) > 1


def test_greedy_answers_are_the_most_probable_tokens() -> None:
    local = writer(temperature=0.0, max_new_tokens=7)
    prompts = [prompt for prompt in PROMPTS if prompt.sample == 0]
    found = answers_of(local, prompts)
    model, tokenizer = tiny_causal(), tiny_tokenizer()
    with torch.no_grad():
        model.lm_head.weight[END] *= 1.5
    ids = [np.asarray(question_tokens(tokenizer, prompt.text), dtype=np.int32) for prompt in prompts]
    expected = continue_prompts(model, tokenizer, ids, max_new_tokens=7, draws_RS=None)
    assert [found[p.row, 0].text for p in prompts] == tokenizer.batch_decode(expected, skip_special_tokens=True)


def test_a_system_message_goes_into_the_template_or_before_the_text() -> None:
    tokenizer = tiny_tokenizer()
    plain = question_tokens(tokenizer, WORDS[0], WORDS[1])
    assert tokenizer.decode(plain) == f"{WORDS[1]} {WORDS[0]}"
    tokenizer.chat_template = TEMPLATE
    with_system = question_tokens(tokenizer, WORDS[0], WORDS[1])
    assert tokenizer.convert_tokens_to_ids(WORDS[1]) in with_system
    assert len(with_system) == len(question_tokens(tokenizer, WORDS[0])) + 3
    prompts = [Prompt(row="a", sample=0, text=WORDS[0], system=system) for system in (None, WORDS[1])]
    asked = [answers_of(writer(template=TEMPLATE), [prompt])["a", 0] for prompt in prompts]
    assert asked[0].text != asked[1].text


def test_the_identity_follows_weights_and_decoding_but_not_the_batch() -> None:
    assert writer().identity == writer(batch_size=9).identity
    others = [writer(sha256="1" * 64), writer(seed=9), writer(top_p=0.9), writer(max_new_tokens=9)]
    assert len({str(local.identity) for local in (writer(), *others)}) == 5


def test_what_the_listener_raises_ends_the_writing() -> None:
    def full(answer: Answer) -> None:
        raise ConfigurationError("the ledger is full")

    with pytest.raises(ConfigurationError, match="the ledger is full"):
        writer().write(PROMPTS, on_answer=full)


def test_no_prompts_are_no_work() -> None:
    assert writer().write([], on_answer=lambda answer: None) == 0
