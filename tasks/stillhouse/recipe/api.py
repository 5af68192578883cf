"""Section ``teacher.api``: a teacher of which nothing is known but its answers."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from stillhouse.recipe.base import Config


class PricesConfig(Config):
    """What a server charges, in the currency of the deployment."""

    prompt: float = Field(default=0.0, ge=0)
    """For a million tokens that it reads."""
    answer: float = Field(default=0.0, ge=0)
    """For a million tokens that it writes."""

    def cost(self, *, prompt_tokens: int, answer_tokens: int) -> float:
        """Return what so many tokens cost."""
        return (prompt_tokens * self.prompt + answer_tokens * self.answer) / 1_000_000


class CeilingConfig(Config):
    """Hard bounds of a whole run, over all shards and tries. Reaching one stops the stage with exit code 77."""

    requests: int = Field(default=100_000, ge=1)
    tokens: int = Field(default=100_000_000, ge=1)
    """Read and written."""
    cost: float | None = Field(default=None, gt=0)
    """In the currency of the prices; None where there are none."""


class ApiConfig(Config):
    """A server that speaks the OpenAI protocol."""

    base_url: str = Field(pattern=r"^https?://[^/@\s]+(/[^\s]*)?$")
    """Up to and with ``/v1``. It holds no credentials."""
    model: str
    """As the server calls it."""
    key: str | None = Field(default=None, pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+)$")
    """Where the key is found: ``env:NAME`` or ``file:/path``. Never the key itself. None sends none."""
    endpoint: Literal["chat", "completions"] = "chat"
    batch: bool = False
    """Submit files to the server's batch endpoint, wait, and collect: slower, and often half the price."""
    concurrency: int = Field(default=8, ge=1, le=1024)
    """Requests under way at a time, of one shard."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """For one answer."""
    attempts: int = Field(default=8, ge=1, le=100)
    """Tries of a request that meets 429, a server's error or a broken connection, with growing, random pauses."""
    top_logprobs: int = Field(default=0, ge=0, le=20)
    """Alternatives that the server reports for each token; from 1 on they are what the student imitates (grey-box)."""
    prices: PricesConfig = PricesConfig()
    ceiling: CeilingConfig = CeilingConfig()

    @property
    def host(self) -> str:
        """Who answers, as ``host`` or ``host:port``."""
        return urlsplit(self.base_url).netloc
