"""The batch endpoint: upload a file of requests, wait, collect. Killed and restarted, the same batch is collected.

What is under way is remembered in the store: a memory is written before a batch is made, and holds the mark by which
the batch is found at the server if this process is killed before it learns the batch's id.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import openai
from pydantic import ValidationError

from stillhouse.contract import (
    ConfigurationError,
    IntegrityError,
    TryAgain,
    canonical_json,
    pretty_json,
    sha256_of,
)
from stillhouse.models.answers import Answer, Prompt
from stillhouse.recipe import Config, Sha256
from stillhouse.store import ObjectStore
from stillhouse.teacher.api.bodies import Asking
from stillhouse.teacher.api.replies import BadReply, read_reply
from stillhouse.teacher.api.retrying import Retrying
from stillhouse.teacher.api.spending import Amount, Spending
from stillhouse.teacher.ledger import answer_key

logger = logging.getLogger(__name__)

MAX_REQUESTS = 50_000
MAX_BYTES = 100_000_000
"""Of one file; the original's limits are 50,000 and 200 MB."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0

_MARK = "stillhouse"
_OVER = ("completed", "expired", "cancelled", "failed")
_FILTERED = "content_filter"


class BatchMemory(Config):
    """A batch under way."""

    schema_id: Literal["stillhouse/batch/1"] = "stillhouse/batch/1"
    mark: Sha256
    """Names the batch at the server, in its metadata."""
    keys: tuple[Sha256, ...]
    """Of the answers that are wanted; each is the ``custom_id`` of its request."""
    batch_id: str | None = None
    """None until the server has named it."""


class BatchDesk:
    """Answers prompts by batches.

    Args:
        client: Of `stillhouse.teacher.api.connection.connect`.
        asking: How the server is asked.
        retrying: Of the calls of the endpoint.
        spending: The run's account.
        store: Where batches are remembered.
        stop: Set when nothing is wanted any more.
    """

    def __init__(
        self,
        client: openai.OpenAI,
        asking: Asking,
        retrying: Retrying,
        spending: Spending,
        store: ObjectStore,
        stop: threading.Event,
    ) -> None:
        self._client, self._asking, self._retrying = client, asking, retrying
        self._spending, self._store, self._stop = spending, store, stop
        self._prefix = f"batches/{sha256_of(canonical_json(asking.identity))[:16]}/"

    def write(self, prompts: Sequence[Prompt], *, on_answer: Callable[[Answer], None]) -> int:
        """Answer prompts; see `stillhouse.teacher.writer.Writer`.

        Raises:
            NotPermitted: The ceiling is reached, or the server wants another key or money.
            ConfigurationError: The server refuses the file, or a request in it.
            IntegrityError: The server answers requests that were not in the file.
            TryAgain: The server is away, or failed some requests again and again.
        """
        wanted = {answer_key(self._asking.identity, prompt): prompt for prompt in prompts}
        requests = 0
        for memory in self._remembered(wanted):
            left = [key for key in memory.keys if key in wanted]
            for key in left:
                self._spending.take_over(self._most(wanted[key]))
            self._collect(memory, wanted, on_answer)
        for _ in range(self._asking.config.attempts):
            for part in self._parts(wanted):
                requests += len(part)
                memory = self._submit({key: wanted[key] for key in part})
                self._collect(memory, wanted, on_answer)
            if not wanted:
                return requests
        raise TryAgain(
            f"{self._asking.config.host} left {len(wanted)} requests of its batches unanswered, "
            f"{self._asking.config.attempts} times in a row; run again later"
        )

    def _most(self, prompt: Prompt) -> Amount:
        return self._asking.most(prompt, self._spending)

    def _parts(self, wanted: Mapping[str, Prompt]) -> list[list[str]]:
        """Divide what is wanted into files."""
        parts: list[list[str]] = []
        size = 0
        for key, prompt in wanted.items():
            line = len(self._line(key, prompt))
            if not parts or len(parts[-1]) == MAX_REQUESTS or size + line > MAX_BYTES:
                parts.append([])
                size = 0
            parts[-1].append(key)
            size += line
        return parts

    def _line(self, key: str, prompt: Prompt) -> bytes:
        url = f"/v1{self._asking.path}"
        request = {"custom_id": key, "method": "POST", "url": url, "body": self._asking.body(prompt)}
        return json.dumps(request).encode() + b"\n"

    def _submit(self, part: Mapping[str, Prompt]) -> BatchMemory:
        # One reservation for the whole file: either all of it fits under the ceiling, or none is sent.
        self._spending.reserve(_sum(self._most(prompt) for prompt in part.values()))
        data = b"".join(self._line(key, prompt) for key, prompt in part.items())
        file = self._retrying.call(
            lambda: self._client.files.create(file=("prompts.jsonl", data), purpose="batch"),
        )
        memory = BatchMemory(mark=sha256_of(canonical_json([file.id, *part])), keys=tuple(part))
        self._remember(memory)
        endpoint: Any = f"/v1{self._asking.path}"
        batch = self._retrying.call(
            lambda: self._client.batches.create(
                input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={_MARK: memory.mark}
            )
        )
        memory = memory.model_copy(update={"batch_id": batch.id})
        self._remember(memory)
        return memory

    def _collect(self, memory: BatchMemory, wanted: dict[str, Prompt], on_answer: Callable[[Answer], None]) -> None:
        """Wait for a batch and take its answers out of ``wanted``; then forget it."""
        batch = self._wait(memory)
        left = {key for key in memory.keys if key in wanted}
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                self._read(self._retrying.call(partial(self._download, file_id)), memory, wanted, on_answer)
        for key in left & wanted.keys():
            self._spending.settle(self._most(wanted[key]), Amount(requests=1))
        self._store.delete(self._place(memory))
        if batch.status == "failed":
            codes = sorted({str(error.code) for error in (batch.errors and batch.errors.data) or ()})
            raise ConfigurationError(
                f"{self._asking.config.host} refused the batch {batch.id} ({', '.join(codes)}); see its manual"
            )
        if batch.status == "cancelled":
            raise TryAgain(f"the batch {batch.id} was cancelled at the server; run again to submit what is left of it")

    def _download(self, file_id: str) -> bytes:
        return self._client.files.content(file_id).content

    def _wait(self, memory: BatchMemory) -> Any:
        pause, name = FIRST_PAUSE_SECONDS, str(memory.batch_id)
        while True:
            batch = self._retrying.call(lambda: self._client.batches.retrieve(name))
            if batch.status in _OVER:
                return batch
            counts = batch.request_counts
            logger.info(
                "batch %s: %s, %d of %d done", name, batch.status, counts.completed if counts else 0, len(memory.keys)
            )
            self._stop.wait(pause)
            pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)

    def _read(
        self,
        data: bytes,
        memory: BatchMemory,
        wanted: dict[str, Prompt],
        on_answer: Callable[[Answer], None],
    ) -> None:
        asked = set(memory.keys)
        for line in data.splitlines():
            try:
                record = json.loads(line)
                key, response, error = record["custom_id"], record.get("response") or {}, record.get("error") or {}
                status, body = int(response.get("status_code") or 0), response.get("body") or {}
            except (ValueError, KeyError, TypeError, AttributeError):
                self._retrying.failures["a line of a batch that is no reply"] += 1
                continue
            if key not in asked:
                raise IntegrityError(f"{self._asking.config.host}: batch {memory.batch_id} answers requests not in it")
            if key in wanted:
                answer = self._answer(wanted[key], status, body, str(error.get("code") or ""))
                if answer is not None:
                    self._spending.settle(self._most(wanted.pop(key)), self._asking.cost_of(answer, self._spending))
                    on_answer(answer)

    def _answer(self, prompt: Prompt, status: int, body: dict[str, Any], code: str) -> Answer | None:
        """Return one line's answer, or None if it must be asked again."""
        config = self._asking.config
        if status == 200:
            try:
                reply = read_reply(body, endpoint=config.endpoint, model=config.model, top_logprobs=config.top_logprobs)
            except BadReply as error:
                self._retrying.failures[str(error)] += 1
                return None
            return self._asking.answer(prompt, reply)
        problem = body.get("error")
        if status == 400 and _FILTERED in (code, problem.get("code") if isinstance(problem, dict) else None):
            return self._asking.declined(prompt)
        if 400 <= status < 500 and status not in (408, 409, 429):
            raise ConfigurationError(f"{config.host} refuses a request of a batch (status {status}); see its manual")
        self._retrying.failures[f"status {status} in a batch"] += 1
        return None

    def _remembered(self, wanted: Mapping[str, Prompt]) -> Iterator[BatchMemory]:
        """Yield the batches under way that answer something of what is wanted."""
        for place in self._store.keys(self._prefix):
            try:
                memory = BatchMemory.model_validate_json(self._store.get(place))
            except (FileNotFoundError, ValidationError):
                continue  # collected meanwhile by another, or damaged
            if not wanted.keys() & set(memory.keys):
                continue
            memory = memory if memory.batch_id else self._found_again(memory)
            if memory.batch_id:
                logger.info("batch %s is under way since an earlier try", memory.batch_id)
                yield memory
            else:
                self._store.delete(place)

    def _found_again(self, memory: BatchMemory) -> BatchMemory:
        """Return the memory of a batch whose maker was killed before it learned the id, with the id if there is one."""
        for batch in self._retrying.call(lambda: list(self._client.batches.list(limit=100))):
            if (batch.metadata or {}).get(_MARK) == memory.mark:
                memory = memory.model_copy(update={"batch_id": batch.id})
                self._remember(memory)
                break
        return memory

    def _remember(self, memory: BatchMemory) -> None:
        self._store.put(self._place(memory), pretty_json(memory))

    def _place(self, memory: BatchMemory) -> str:
        return f"{self._prefix}{memory.mark}.json"


def _sum(amounts: Iterator[Amount]) -> Amount:
    total = Amount()
    for amount in amounts:
        total = total.plus(amount)
    return total
