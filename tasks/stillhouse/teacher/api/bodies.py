"""From a prompt to the body of a request, and from a reply to an answer."""

import hashlib
from dataclasses import dataclass
from typing import Any

from stillhouse.models.answers import Answer, Prompt
from stillhouse.recipe import ApiConfig
from stillhouse.teacher.api.replies import Reply
from stillhouse.teacher.api.spending import Amount, Spending
from stillhouse.teacher.writer import Decoding

_TEMPLATE_TOKENS = 256
"""More than a server's chat template and its default system message add to a prompt."""
_NEW_NAME_HOSTS = ("openai.com", "openai.azure.com")
"""Whose newer models refuse ``max_tokens``, the name that all other servers know."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How one server is asked."""

    config: ApiConfig
    decoding: Decoding

    @property
    def identity(self) -> dict[str, Any]:
        """What with a prompt decides an answer."""
        config = self.config
        return {
            "kind": "api",
            "base_url": config.base_url.rstrip("/"),
            "model": config.model,
            "endpoint": config.endpoint,
            "top_logprobs": config.top_logprobs,
            **self.decoding.identity,
        }

    @property
    def path(self) -> str:
        """Of the endpoint, below ``base_url``."""
        return "/chat/completions" if self.config.endpoint == "chat" else "/completions"

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Return the request's body. The completions endpoint knows no system message: it is put before the prompt."""
        config, decoding = self.config, self.decoding
        if config.endpoint == "chat":
            system = [{"role": "system", "content": prompt.system}] if prompt.system else []
            asked: dict[str, Any] = {"messages": [*system, {"role": "user", "content": prompt.text}]}
            alternatives: dict[str, Any] = {"logprobs": True, "top_logprobs": config.top_logprobs}
        else:
            asked = {"prompt": "\n\n".join(part for part in (prompt.system, prompt.text) if part)}
            alternatives = {"logprobs": config.top_logprobs}
        body = {"model": config.model, "temperature": decoding.temperature, **asked}
        body[self._name_of_the_bound] = decoding.max_new_tokens
        if decoding.temperature > 0:
            # Servers that keep seeds would give all samples of a prompt the same words.
            body["seed"] = _seed(decoding.seed, prompt.sample)
            if decoding.top_p < 1:
                body["top_p"] = decoding.top_p
        return body | (alternatives if config.top_logprobs else {})

    def most(self, prompt: Prompt, spending: Spending) -> Amount:
        """Return the most that one request can take. No token is shorter than a byte."""
        return spending.amount(
            prompt_tokens=self._most_prompt_tokens(prompt), answer_tokens=self.decoding.max_new_tokens
        )

    def cost_of(self, answer: Answer, spending: Spending) -> Amount:
        """Return what an answer took."""
        return spending.amount(prompt_tokens=answer.prompt_tokens, answer_tokens=answer.answer_tokens)

    def answer(self, prompt: Prompt, reply: Reply) -> Answer:
        """Return a reply as the answer to ``prompt``. A server that counts no tokens is taken to have used the most."""
        read, written = reply.prompt_tokens, reply.answer_tokens
        return Answer(
            prompt=prompt,
            text=reply.text,
            finish=reply.finish,
            prompt_tokens=self._most_prompt_tokens(prompt) if read is None else read,
            answer_tokens=self.decoding.max_new_tokens if written is None else written,
            choices=reply.choices,
        )

    def declined(self, prompt: Prompt) -> Answer:
        """Return the answer to a prompt that the server's filter refused."""
        return Answer(prompt=prompt, text="", finish="refusal", prompt_tokens=0, answer_tokens=0)

    @property
    def _name_of_the_bound(self) -> str:
        name = self.config.host.partition(":")[0]
        new = self.config.endpoint == "chat" and name.endswith(_NEW_NAME_HOSTS)
        return "max_completion_tokens" if new else "max_tokens"

    def _most_prompt_tokens(self, prompt: Prompt) -> int:
        return len(f"{prompt.system or ''}{prompt.text}".encode()) + _TEMPLATE_TOKENS


def _seed(seed: int, sample: int) -> int:
    """Return a seed that fits into 31 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{sample}".encode()).digest()[:4], "little") >> 1
