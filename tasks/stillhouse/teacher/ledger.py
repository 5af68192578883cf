"""Every answer is paid for once: answers in the object store, found by who wrote them and what was asked.

The key of an answer is the hash of the writer's identity, the system message, the prompt and the sample number. Shards,
machines and runs that share a store share its answers. An answer is stored, whole or not at all, before anybody counts
it.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError

from stillhouse.contract import AnswerCounts, FinishReason, StageBug, canonical_json, sha256_of
from stillhouse.models.answers import Answer, Prompt, TokenChoices
from stillhouse.recipe import Config, PricesConfig, Sha256
from stillhouse.store import ObjectStore
from stillhouse.teacher.writer import Writer

logger = logging.getLogger(__name__)

_READERS = 16  # a bucket answers in tens of milliseconds, whatever the number of questions


class StoredAnswer(Config):
    """One answer in the store. It names no row: whoever asks the same gets the same."""

    model_config = ConfigDict(str_strip_whitespace=False)  # tokens begin with spaces

    schema_id: Literal["stillhouse/ledger/1"] = "stillhouse/ledger/1"
    key: Sha256
    text: str
    finish: FinishReason
    prompt_tokens: int
    answer_tokens: int
    choices: tuple[tuple[str, dict[str, float]], ...] = ()
    """Token, and its alternatives' log-probabilities in nats."""
    sha256: Sha256
    """Of all other fields."""

    @property
    def intact(self) -> bool:
        """Whether the fields are those that were written."""
        return self.sha256 == _digest(self.model_dump(exclude={"sha256"}))

    @classmethod
    def of(cls, key: str, answer: Answer) -> "StoredAnswer":
        """Return what is stored of ``answer``."""
        body: dict[str, Any] = {
            "schema_id": "stillhouse/ledger/1",
            "key": key,
            "text": answer.text,
            "finish": answer.finish,
            "prompt_tokens": answer.prompt_tokens,
            "answer_tokens": answer.answer_tokens,
            "choices": tuple((choice.token, choice.alternatives) for choice in answer.choices),
        }
        return cls(**body, sha256=_digest(body))

    def answer(self, prompt: Prompt) -> Answer:
        """Return it as the answer to ``prompt``."""
        return Answer(
            prompt=prompt,
            text=self.text,
            finish=self.finish,
            prompt_tokens=self.prompt_tokens,
            answer_tokens=self.answer_tokens,
            choices=tuple(TokenChoices(token=token, alternatives=found) for token, found in self.choices),
        )


class Ledger:
    """The answers of all writers in one store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def find(self, key: str) -> StoredAnswer | None:
        """Return an earlier answer, or None; of a damaged one, None after a warning.

        Raises:
            TryAgain: The store is away.
        """
        place = _place(key)
        try:
            stored = StoredAnswer.model_validate_json(self._store.get(place))
        except FileNotFoundError:
            return None
        except ValidationError:
            stored = None
        if stored is None or stored.key != key or not stored.intact:
            logger.warning("%s is damaged; its prompt is asked again", self._store.uri(place))
            return None
        return stored

    def find_all(self, keys: Sequence[str]) -> dict[str, StoredAnswer]:
        """Return the earlier answers among ``keys``.

        Raises:
            TryAgain: The store is away.
        """
        with ThreadPoolExecutor(_READERS) as readers:
            return {key: stored for key, stored in zip(keys, readers.map(self.find, keys), strict=True) if stored}

    def keep(self, key: str, answer: Answer) -> StoredAnswer:
        """Store an answer.

        Raises:
            TryAgain: The store is away or full.
        """
        stored = StoredAnswer.of(key, answer)
        self._store.put(_place(key), canonical_json(stored))
        return stored


def answer_key(identity: Mapping[str, Any], prompt: Prompt) -> str:
    """Return the hash that an answer is found by."""
    asked = {"system": prompt.system, "text": prompt.text, "sample": prompt.sample}
    return sha256_of(canonical_json({"writer": dict(identity), "prompt": asked}))


def ask(
    prompts: Sequence[Prompt],
    writer: Writer,
    ledger: Ledger,
    *,
    prices: PricesConfig | None = None,
    check: Callable[[AnswerCounts], None] = lambda counts: None,
    on_progress: Callable[[AnswerCounts], None] = lambda counts: None,
) -> tuple[list[Answer], AnswerCounts]:
    """Answer prompts from the ledger, and ask the writer what it lacks.

    Args:
        prompts: N. Those that are equal but for their rows get one answer and count once each.
        writer: Asked nothing that was answered before.
        ledger: Where answers are found and kept.
        prices: For the cost; None where there is none.
        check: Told the counts of the answers so far (requests apart), once for those of the ledger and after each new
            one; it may raise to end the asking. One call at a time.
        on_progress: Told the same before it.

    Returns:
        N answers in the order of the prompts, and their counts.

    Raises:
        StillhouseError: From the writer, the store or ``check``. Every answer that had come is in the ledger.
    """
    keys = [answer_key(writer.identity, prompt) for prompt in prompts]
    places: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        places.setdefault(key, []).append(index)
    found = ledger.find_all(list(places))
    tally = _Tally(prices=prices or PricesConfig(), check=check, on_progress=on_progress)
    tally.add([stored for key, stored in found.items() for _ in places[key]], from_ledger=True)
    # Of several rows that ask the same, the first one stands for all.
    wanted = [prompts[indices[0]] for key, indices in places.items() if key not in found]

    def take(answer: Answer) -> None:
        key = answer_key(writer.identity, answer.prompt)
        found[key] = ledger.keep(key, answer)
        tally.add([found[key]] * len(places[key]))

    requests = writer.write(wanted, on_answer=take) if wanted else 0
    if len(found) < len(places):
        raise StageBug(f"the writer left {len(places) - len(found)} prompts unanswered and gave no reason")
    answers = [found[key].answer(prompt) for key, prompt in zip(keys, prompts, strict=True)]
    return answers, tally.counts.plus(AnswerCounts(requests=requests))


class _Tally:
    """Counts answers as they come, from any thread."""

    def __init__(
        self,
        *,
        prices: PricesConfig,
        check: Callable[[AnswerCounts], None],
        on_progress: Callable[[AnswerCounts], None],
    ) -> None:
        self._prices, self._check, self._on_progress = prices, check, on_progress
        self._lock = threading.Lock()
        self.counts = AnswerCounts()

    def add(self, answers: Sequence[StoredAnswer], *, from_ledger: bool = False) -> None:
        with self._lock:
            for stored in answers:
                self.counts = self.counts.plus(_counts(stored, self._prices, from_ledger=from_ledger))
            if answers:
                self._on_progress(self.counts)
                self._check(self.counts)


def _counts(stored: StoredAnswer, prices: PricesConfig, *, from_ledger: bool) -> AnswerCounts:
    """Return the counts of one answer. One that was declined does not count as empty."""
    return AnswerCounts(
        prompts=1,
        from_ledger=int(from_ledger),
        refused=int(stored.finish == "refusal"),
        truncated=int(stored.finish == "length"),
        empty=int(stored.finish != "refusal" and not stored.text.strip()),
        prompt_tokens=stored.prompt_tokens,
        answer_tokens=stored.answer_tokens,
        cost=prices.cost(prompt_tokens=stored.prompt_tokens, answer_tokens=stored.answer_tokens),
    )


def _place(key: str) -> str:
    return f"answers/{key[:2]}/{key}.json"


def _digest(body: Mapping[str, Any]) -> str:
    return sha256_of(canonical_json(dict(body)))
