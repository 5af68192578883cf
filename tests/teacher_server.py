"""A real server of the OpenAI protocol around a real, tiny causal model, on loopback; and a proxy in front of it."""

import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from proxies import Fault, Proxy, Reply, fault_proxy
from proxies import Request as ProxiedRequest
from servers import free_ports
from tiny_language import tiny_causal, tiny_tokenizer

from stillhouse.models.answers import Prompt
from stillhouse.teacher.writer import Decoding

MODEL = "tiny-teacher"
GREEDY = Decoding.greedy(max_new_tokens=4)
SAMPLED = Decoding(temperature=0.8, top_p=0.9, max_new_tokens=4, seed=5)


def prompts(count: int, *, samples: int = 1, word: str = "good") -> list[Prompt]:
    """Return prompts that are all different."""
    return [Prompt(row=f"r{i}", sample=s, text=f"{word} film {i}") for i in range(count) for s in range(samples)]


@dataclass
class Teacher:
    """What the server knows, and what tests may ask of it."""

    key: str | None = None
    """That requests must carry."""
    polls: int = 1
    """How often a batch is looked at before it is done."""
    allowed: int | None = None
    """Answers that are given before all further requests are held; None holds none."""
    asked: Counter[str] = field(default_factory=Counter)
    """Requests by prompt and sample, single or in a batch."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    lose: int = 0
    """Lines that the next batches leave out of their answers."""
    held: int = 0
    answers_held: bool = False
    url: str = ""
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.model, self.tokenizer = tiny_causal(layers=1), tiny_tokenizer()
        self.generating = threading.Lock()

    def wait_until_held(self, count: int) -> None:
        """Return when so many requests are held: all answers before them have been taken in by whoever asked."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.held >= count, timeout=120)

    def release(self, *, answered: bool = False) -> None:
        """Answer everything from now on. What is held gets an answer or an error."""
        with self.changed:
            self.allowed, self.answers_held = None, answered
            self.changed.notify_all()

    def admit(self, body: Mapping[str, Any]) -> bool:
        """Count a request; False for one that was held and then let go."""
        with self.changed:
            self.bodies.append(dict(body))
            if self.allowed is not None and self.allowed <= 0:
                self.held += 1
                self.changed.notify_all()
                self.changed.wait_for(lambda: self.allowed is None, timeout=300)
                return self.answers_held
            if self.allowed is not None:
                self.allowed -= 1
            self.asked[question(body)] += 1
            return True

    def complete(self, body: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
        """Return the model's own answer, token by token."""
        text = " ".join(message["content"] for message in body["messages"]) if chat else body["prompt"]
        ids = self.tokenizer(text)["input_ids"]
        alternatives = (body.get("top_logprobs") if chat else body.get("logprobs")) or 0
        generator = torch.Generator().manual_seed(body.get("seed", 0))
        written: list[int] = []
        found: list[dict[str, float]] = []
        finish = "length"
        while len(written) < (body.get("max_tokens") or body["max_completion_tokens"]):
            with self.generating, torch.no_grad():
                scores_V = self.model(torch.tensor([ids + written])).logits[0, -1].log_softmax(-1)
            token = int(scores_V.argmax())
            if body["temperature"]:
                token = int((scores_V / body["temperature"]).softmax(-1).multinomial(1, generator=generator))
            if token == self.tokenizer.eos_token_id:
                finish = "stop"
                break
            best = scores_V.topk(max(alternatives, 1))
            found.append({self.tokenizer.convert_ids_to_tokens(int(i)): float(p) for p, i in zip(*best, strict=True)})
            written.append(token)
        tokens = self.tokenizer.convert_ids_to_tokens(written)
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(written)}
        envelope = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": MODEL, "usage": usage}
        return envelope | {"choices": [_choice(" ".join(tokens), tokens, found, finish, chat, bool(alternatives))]}

    def work_on(self, batch: dict[str, Any]) -> None:
        """Answer the requests of a batch."""
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        answers = []
        for line in lines:
            if self.lose:
                self.lose -= 1
                continue
            self.asked[question(line["body"])] += 1
            body = self.complete(line["body"], chat=line["url"].endswith("/chat/completions"))
            answers.append({"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}})
        batch |= {"status": "completed", "output_file_id": f"file-{uuid.uuid4().hex}"}
        self.files[batch["output_file_id"]] = "\n".join(map(json.dumps, answers)).encode()


def question(body: Mapping[str, Any]) -> str:
    """Return what tells one request from another: prompt and sample."""
    return json.dumps([body.get("messages"), body.get("prompt"), body.get("seed")])


def _choice(
    text: str, tokens: list[str], found: list[dict[str, float]], finish: str, chat: bool, probabilities: bool
) -> dict[str, Any]:
    pairs = list(zip(tokens, found, strict=True))
    if not chat:
        plain = {"tokens": tokens, "top_logprobs": found} if probabilities else None
        return {"index": 0, "text": text, "finish_reason": finish, "logprobs": plain}
    content = [
        {
            "token": token,
            "logprob": best[token] if token in best else min(best.values()),
            "top_logprobs": [{"token": t, "logprob": p} for t, p in best.items()],
        }
        for token, best in pairs
    ]
    message = {"role": "assistant", "content": text}
    logprobs = {"content": content} if probabilities else None
    return {"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}


def _error(status: int, code: str) -> JSONResponse:
    # Like real servers, this one repeats in its message what it was sent.
    return JSONResponse({"error": {"message": f"{code}: see prompt 'good film'", "code": code}}, status_code=status)


@dataclass
class _Routes:
    """What the server does at each address."""

    teacher: Teacher

    async def guard(self, request: Request, call_next: Any) -> Any:
        if self.teacher.key is not None and request.headers.get("authorization") != f"Bearer {self.teacher.key}":
            return _error(401, "invalid_api_key")
        response = await call_next(request)
        if name := request.headers.get("x-client-request-id"):
            response.headers["x-client-request-id"] = name
        return response

    def answer(self, body: dict[str, Any], *, chat: bool) -> Any:
        if body["model"] != MODEL:
            return _error(404, "model_not_found")
        if "forbidden" in json.dumps(body):
            return _error(400, "content_filter")
        return self.teacher.complete(body, chat=chat) if self.teacher.admit(body) else _error(503, "overloaded")

    def chat(self, body: dict[str, Any]) -> Any:
        return self.answer(body, chat=True)

    def completions(self, body: dict[str, Any]) -> Any:
        return self.answer(body, chat=False)

    async def upload(self, request: Request) -> Any:
        form = await request.form()
        name = f"file-{uuid.uuid4().hex}"
        self.teacher.files[name] = await form["file"].read()  # type: ignore[union-attr]
        return {"id": name, "object": "file", "purpose": "batch", "bytes": 1, "created_at": 1, "filename": "x"}

    def content(self, name: str) -> Any:
        return Response(self.teacher.files[name])

    def submit(self, body: dict[str, Any]) -> Any:
        name = f"batch-{len(self.teacher.batches)}"
        with self.teacher.changed:
            batch = {"id": name, "object": "batch", "status": "in_progress", "looked": 0, **body}
            self.teacher.batches[name] = batch
            self.teacher.changed.notify_all()
        return batch

    def listing(self) -> Any:
        return {"object": "list", "data": list(self.teacher.batches.values()), "has_more": False}

    def look(self, name: str) -> Any:
        batch = self.teacher.batches[name]
        with self.teacher.changed:
            batch["looked"] += 1
            if batch["status"] == "in_progress" and batch["looked"] > self.teacher.polls:
                self.teacher.work_on(batch)
            self.teacher.changed.notify_all()
        return batch


def build(teacher: Teacher) -> FastAPI:
    """Return the server's application."""
    app, routes = FastAPI(), _Routes(teacher)
    app.middleware("http")(routes.guard)
    app.post("/v1/chat/completions")(routes.chat)
    app.post("/v1/completions")(routes.completions)
    app.post("/v1/files")(routes.upload)
    app.get("/v1/files/{name}/content")(routes.content)
    app.post("/v1/batches")(routes.submit)
    app.get("/v1/batches")(routes.listing)
    app.get("/v1/batches/{name}")(routes.look)
    return app


@contextmanager
def teacher_server(**settings: Any) -> Iterator[Teacher]:
    """Run the server in a thread until the block ends."""
    teacher = Teacher(**settings)
    port = free_ports(1)[0]
    server = uvicorn.Server(uvicorn.Config(build(teacher), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    teacher.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield teacher
    finally:
        teacher.release()
        server.should_exit = True
        thread.join(timeout=60)


def _another_model(proxy: Proxy, reply: Reply) -> Reply:
    return replace(reply, body=reply.body.replace(MODEL.encode(), b"another-model"))


CHANGES = {
    "malformed": lambda proxy, reply: replace(reply, body=reply.body[: len(reply.body) // 2]),
    "rename": _another_model,
    "swap": lambda proxy, reply: replace(reply, headers={**reply.headers, "x-client-request-id": "somebody-else"}),
}
"""What the proxy can make of an answer, besides what `proxies` knows."""


def _echo(request: ProxiedRequest, fault: Fault) -> bytes:
    # Like real servers, the proxy repeats in its message what it was sent.
    return json.dumps({"error": {"message": request.body.decode(), "code": fault.get("code")}}).encode()


@contextmanager
def teacher_proxy(target: str, *script: Fault) -> Iterator[Proxy]:
    """Run a proxy in front of the server whose address is ``target``; see `proxies.fault_proxy`."""
    with fault_proxy(target.removesuffix("/v1"), *script, explain=_echo, changes=CHANGES) as proxy:
        proxy.url += "/v1"
        yield proxy
