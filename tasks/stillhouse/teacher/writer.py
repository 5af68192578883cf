"""Whoever answers prompts: a model on this machine, or a server. What they have in common."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from stillhouse.models.answers import Answer, Prompt
from stillhouse.recipe.synthesis import Writing


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a next token is chosen, and when an answer ends."""

    temperature: float
    """0 takes the most probable token at each step."""
    top_p: float
    max_new_tokens: int
    seed: int

    @classmethod
    def of(cls, writing: Writing) -> Self:
        """Return what the recipe says about answers."""
        return cls(
            temperature=writing.temperature,
            top_p=writing.top_p,
            max_new_tokens=writing.max_new_tokens,
            seed=writing.seed,
        )

    @classmethod
    def greedy(cls, *, max_new_tokens: int) -> Self:
        """Return how reviews are written: the most probable token at each step."""
        return cls(temperature=0.0, top_p=1.0, max_new_tokens=max_new_tokens, seed=0)

    @property
    def identity(self) -> dict[str, Any]:
        """What of it decides an answer. Greedy answers depend on no seed."""
        bound: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature}
        return bound if self.temperature == 0 else bound | {"top_p": self.top_p, "seed": self.seed}


class Writer(Protocol):
    """Answers prompts.

    An answer belongs to `identity` and to the prompt's text, system message and sample number, and to nothing else:
    not to the prompt's row, its batch, its shard or its place. Prompts that are equal but for the row get one answer.
    """

    @property
    def identity(self) -> Mapping[str, Any]:
        """Plain data that with a prompt decides its answer: who writes (digest of the weights and the chat template, or
        server and model) and `Decoding.identity`. How fast or how safely it is asked is no part of it."""
        ...

    def write(self, prompts: Sequence[Prompt], *, on_answer: Callable[[Answer], None]) -> int:
        """Answer prompts, all different from one another.

        Args:
            prompts: Not yet answered, in any number.
            on_answer: Told each answer once, as soon as it is there, in any order and maybe from several threads at
                once. ``Answer.prompt`` is one of ``prompts``. What it raises ends the writing and is raised again.

        Returns:
            How many requests were sent, failed tries included; of a model on this machine the number of prompts.

        Raises:
            StillhouseError: It can't go on. What ``on_answer`` was told is not lost.
        """
        ...
