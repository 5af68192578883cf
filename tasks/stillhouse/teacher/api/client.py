"""A teacher behind a server, asked through the official client of the OpenAI protocol."""

import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import Any

import openai

from stillhouse.models.answers import Answer, Prompt
from stillhouse.recipe import ApiConfig
from stillhouse.store import ObjectStore
from stillhouse.teacher.api.batch import BatchDesk
from stillhouse.teacher.api.bodies import Asking
from stillhouse.teacher.api.connection import REQUEST_ID, connect, exchange
from stillhouse.teacher.api.replies import Fingerprints, Misfit, Reply, read_reply
from stillhouse.teacher.api.retrying import Declined, Retrying, Stopped
from stillhouse.teacher.api.spending import Amount, Spending
from stillhouse.teacher.writer import Decoding

logger = logging.getLogger(__name__)


class ApiWriter:
    """A `stillhouse.teacher.writer.Writer` over HTTP: one request for each answer, or batch files.

    Prompts go to ``base_url`` and nowhere else: redirects are not followed, and of the client's environment variables
    (organisation, project, headers, addresses) none is used. Neither prompts nor answers nor the key are ever logged.

    Args:
        config: The server.
        decoding: How it is to choose its words.
        spending: The run's account.
        store: Where batches under way are remembered.

    Raises:
        ConfigurationError: The key is not where the recipe says.
        NotPermitted: The key may not be read.
    """

    def __init__(self, config: ApiConfig, decoding: Decoding, *, spending: Spending, store: ObjectStore) -> None:
        self._config, self._spending, self._store = config, spending, store
        self._asking = Asking(config=config, decoding=decoding)
        self._client = connect(config)
        self._lock = threading.Lock()
        self._sent = 0
        self._fingerprints = Fingerprints()

    @property
    def identity(self) -> Mapping[str, Any]:
        """Server, model, endpoint, alternatives and decoding. The server's chat template is its own, unseen."""
        return self._asking.identity

    def write(self, prompts: Sequence[Prompt], *, on_answer: Callable[[Answer], None]) -> int:
        """Answer prompts; see `stillhouse.teacher.writer.Writer`.

        What is under way when something fails is waited for and kept, since it is paid.

        Raises:
            NotPermitted: The ceiling is reached, or the server wants another key or money.
            ConfigurationError: The server knows no such model or parameter.
            IntegrityError: The server answers other requests than it is sent.
            TryAgain: The server is away.
        """
        stop, self._sent = threading.Event(), 0
        retrying = Retrying(self._config, stop)
        try:
            if self._config.batch:
                desk = BatchDesk(self._client, self._asking, retrying, self._spending, self._store, stop)
                return desk.write(prompts, on_answer=on_answer)
            self._write_each(prompts, on_answer, retrying, stop)
        finally:
            stop.set()
            self._spending.close()
            if retrying.failures:
                what = ", ".join(f"{count} x {cause}" for cause, count in retrying.failures.most_common())
                logger.warning("%s: failed tries: %s", self._config.host, what)
        return self._sent

    def _write_each(
        self, prompts: Sequence[Prompt], on_answer: Callable[[Answer], None], retrying: Retrying, stop: threading.Event
    ) -> None:
        waiting: SimpleQueue[Prompt] = SimpleQueue()
        for prompt in prompts:
            waiting.put(prompt)
        errors: list[BaseException] = []

        def work() -> None:
            try:
                while not stop.is_set():
                    on_answer(self._answer(waiting.get_nowait(), retrying))
            except (Empty, Stopped):
                return
            except BaseException as error:
                errors.append(error)
                stop.set()
                raise

        count = min(self._config.concurrency, len(prompts))
        with ThreadPoolExecutor(count, thread_name_prefix="ask") as pool:
            try:
                wait([pool.submit(work) for _ in range(count)], return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
        if errors:
            raise errors[0]

    def _answer(self, prompt: Prompt, retrying: Retrying) -> Answer:
        try:
            return retrying.call(lambda: self._send(prompt))
        except Declined:
            return self._asking.declined(prompt)

    def _send(self, prompt: Prompt) -> Answer:
        most = self._asking.most(prompt, self._spending)
        self._spending.reserve(most)
        with self._lock:
            self._sent += 1
        spent = most  # a request that broke off may have been charged
        try:
            answer = self._asking.answer(prompt, self._exchange(prompt))
            spent = self._asking.cost_of(answer, self._spending)
        except openai.APIStatusError:
            spent = Amount(requests=1)
            raise
        finally:
            self._spending.settle(most, spent)
        return answer

    def _exchange(self, prompt: Prompt) -> Reply:
        config, request_id = self._config, uuid.uuid4().hex
        body, headers = exchange(
            self._client,
            config.endpoint,
            self._asking.body(prompt),
            request_id=request_id,
            seconds=config.timeout_seconds,
        )
        if headers.get(REQUEST_ID, request_id) != request_id:
            raise Misfit("a reply to another request")
        reply = read_reply(body, endpoint=config.endpoint, model=config.model, top_logprobs=config.top_logprobs)
        self._fingerprints.check(reply, asked=(prompt.system, prompt.text, prompt.sample))
        return reply
