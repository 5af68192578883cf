"""Servers that others wrote, and the one that this project lends to recipes: what they answer is the model's own."""

import importlib.util
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import uvicorn
from servers import answers as speaks
from servers import free_ports, running
from teacher_server import GREEDY, prompts
from tiny_language import save, tiny_causal, tiny_tokenizer

from stillhouse.contract import ConfigurationError
from stillhouse.models import load_model, load_tokenizer
from stillhouse.store import FileStore
from stillhouse.teacher.api import ApiWriter
from stillhouse.teacher.ledger import Ledger, ask
from stillhouse.teacher.local import LocalWriter

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
SERVER = Path(__file__).parents[3] / "infra" / "teacher_server.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return save(tiny_causal(layers=1), tokenizer, tmp_path / "tiny")


def own_answers(folder: Path, count: int, store: FileStore) -> list[str]:
    model, tokenizer = load_model(folder, task="causal-lm"), load_tokenizer(folder)
    writer = LocalWriter(model, tokenizer, weights_sha256="a" * 64, decoding=GREEDY, batch_size=4)
    return [answer.text for answer in ask(prompts(count), writer, Ledger(store))[0]]


@pytest.mark.slow
def test_transformers_serve(
    folder: Path, tmp_path: Path, store: FileStore, writer_of: Callable[..., ApiWriter]
) -> None:
    port = free_ports(1)[0]
    binary = shutil.which("transformers", path=str(Path(sys.executable).parent))
    assert binary
    command = [binary, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "server").mkdir()
    with running(
        [*command, "--dtype", "float32"],
        folder=tmp_path / "server",
        url=url,
        ready=lambda: speaks(f"{url}/health"),
        environment={**os.environ, "HF_HUB_OFFLINE": "1"},
    ):
        writer = writer_of(f"{url}/v1", model=str(folder), timeout_seconds=120.0)
        answers, counts = ask(prompts(4), writer, Ledger(store))
    assert counts.requests == 4
    assert [answer.text for answer in answers] == own_answers(folder, 4, store)
    assert all(answer.answer_tokens > 0 and answer.prompt_tokens > 0 for answer in answers)


@pytest.fixture
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("infra_teacher_server", SERVER)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # pydantic looks types up there
    spec.loader.exec_module(loaded)
    return loaded


@contextmanager
def serving(module: ModuleType, folder: Path) -> Iterator[str]:
    port = free_ports(1)[0]
    app = module.build(module.Desk(folder))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join(timeout=60)


def test_our_own_server_answers_together_what_it_would_answer_alone(
    module: ModuleType, folder: Path, store: FileStore, writer_of: Callable[..., ApiWriter]
) -> None:
    sizes: list[int] = []
    answer = module.Desk._answer

    def watched(desk: object, batch: list[object]) -> None:
        sizes.append(len(batch))
        answer(desk, batch)

    module.Desk._answer = watched
    with serving(module, folder) as url:
        answers, _ = ask(prompts(24), writer_of(url, model="smollm2", concurrency=12), Ledger(store))
    assert [found.text for found in answers] == own_answers(folder, 24, store)
    assert sum(sizes) == 24
    assert len(sizes) < 24
    assert max(sizes) <= module.BATCH


def test_what_our_own_server_can_not_do_it_refuses(
    module: ModuleType, folder: Path, writer_of: Callable[..., ApiWriter]
) -> None:
    with serving(module, folder) as url:
        for settings in ({"model": "another"}, {"top_logprobs": 2}):
            with pytest.raises(ConfigurationError):
                writer_of(url, **{"model": "smollm2", **settings}).write(prompts(1), on_answer=lambda answer: None)
