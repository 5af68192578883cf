"""Reading what a server says: an answer, or the reason why there is none."""

import json
import threading
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stillhouse.contract import FinishReason, canonical_json, sha256_of
from stillhouse.models.answers import TokenChoices


class BadReply(Exception):
    """A reply that is not what was asked for. Its text never holds what a server or a user wrote."""


class Misfit(BadReply):
    """A reply that belongs to another request or another model."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer as the server gave it."""

    text: str
    finish: FinishReason
    prompt_tokens: int | None
    """None where the server doesn't count."""
    answer_tokens: int | None
    choices: tuple[TokenChoices, ...] = ()
    fingerprint: str | None = None
    """Of the server's id, the moment and the words; None where the server gives no id."""


class Fingerprints:
    """Notices a reply that comes a second time, for another request. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[str, Hashable] = {}

    def check(self, reply: Reply, *, asked: Hashable) -> None:
        """Remember the reply to ``asked``.

        Raises:
            Misfit: The same reply, id included, was given to another request.
        """
        if reply.fingerprint is None:
            return
        with self._lock:
            if self._asked.setdefault(reply.fingerprint, asked) != asked:
                raise Misfit("a reply that was given to another request before")


class _Loose(BaseModel):
    """Servers add fields of their own."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


class _Alternative(_Loose):
    token: str
    logprob: float


class _Token(_Alternative):
    top_logprobs: tuple[_Alternative, ...] = ()


class _ChatLogprobs(_Loose):
    content: tuple[_Token, ...] | None = None

    def choices(self) -> tuple[TokenChoices, ...]:
        return tuple(
            TokenChoices(
                token=_clean(token.token), alternatives={_clean(a.token): a.logprob for a in token.top_logprobs}
            )
            for token in self.content or ()
        )


class _TextLogprobs(_Loose):
    tokens: tuple[str, ...] = ()
    top_logprobs: tuple[dict[str, float] | None, ...] | None = None

    def choices(self) -> tuple[TokenChoices, ...]:
        if self.top_logprobs is None:
            return ()
        pairs = zip(self.tokens, self.top_logprobs, strict=True)
        return tuple(
            TokenChoices(token=_clean(token), alternatives={_clean(t): p for t, p in (found or {}).items()})
            for token, found in pairs
        )


class _Message(_Loose):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        """What was written. Some servers set the reasoning apart; here it stands where the model wrote it."""
        written = self.refusal or self.content or ""
        return f"<think>\n{self.reasoning_content}\n</think>\n\n{written}" if self.reasoning_content else written


class _ChatChoice(_Loose):
    message: _Message
    finish_reason: str | None = None
    logprobs: _ChatLogprobs | None = None


class _TextChoice(_Loose):
    text: str
    finish_reason: str | None = None
    logprobs: _TextLogprobs | None = None


class _Usage(_Loose):
    prompt_tokens: Annotated[int, Field(ge=0)]
    completion_tokens: Annotated[int, Field(ge=0)] = 0


class _Envelope(_Loose):
    id: str | None = None
    created: int | None = None
    model: str | None = None
    usage: _Usage | None = None


class _Chat(_Envelope):
    choices: tuple[_ChatChoice, ...] = Field(min_length=1)


class _Completion(_Envelope):
    choices: tuple[_TextChoice, ...] = Field(min_length=1)


def read_reply(body: bytes | dict[str, Any], *, endpoint: str, model: str, top_logprobs: int) -> Reply:
    """Return the answer in a server's reply.

    Args:
        body: JSON, or what was read from it.
        endpoint: ``chat`` or ``completions``.
        model: That was asked.
        top_logprobs: Alternatives for each token that were asked for.

    Raises:
        BadReply: It is no such reply, it comes from another model, or it lacks the alternatives.
    """
    kind = _Chat if endpoint == "chat" else _Completion
    try:
        reply = kind.model_validate(json.loads(body) if isinstance(body, bytes) else body)
    except (ValidationError, ValueError):
        raise BadReply("a reply that is not the JSON of an answer") from None
    if reply.model is not None and not _same_model(model, reply.model):
        raise Misfit("a reply of another model than was asked")
    choice = reply.choices[0]
    text = choice.message.text if isinstance(choice, _ChatChoice) else choice.text
    declined = isinstance(choice, _ChatChoice) and choice.message.refusal is not None
    finish = _finish("content_filter" if declined else choice.finish_reason)
    try:
        choices = choice.logprobs.choices() if top_logprobs and choice.logprobs else ()
    except ValueError:
        raise BadReply("a reply with other log-probabilities than tokens") from None
    if top_logprobs and text and not choices and finish != "refusal":
        raise BadReply("a reply without the log-probabilities that were asked for")
    usage = reply.usage
    return Reply(
        text=_clean(text),
        finish=finish,
        prompt_tokens=usage.prompt_tokens if usage else None,
        answer_tokens=usage.completion_tokens if usage else None,
        choices=choices,
        fingerprint=sha256_of(canonical_json([reply.id, reply.created, _clean(text)])) if reply.id else None,
    )


def _finish(reason: str | None) -> FinishReason:
    if reason == "content_filter":
        return "refusal"
    return "length" if reason == "length" else "stop"


def _same_model(asked: str, given: str) -> bool:
    """Tell whether a server means the model asked: providers leave a path out of its name, or add a date."""
    short, full = (name.casefold().rstrip("/").rpartition("/")[2] for name in (asked, given))
    return full.startswith(short) or short.startswith(full)


def _clean(text: str) -> str:
    """Replace halves of surrogate pairs, which no file can hold."""
    return text.encode(errors="replace").decode()
