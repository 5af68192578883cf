"""The connection to one server: who is sent what, and for how long."""

import time
from collections.abc import Mapping
from typing import Any

import httpx2
import openai

from stillhouse.recipe import ApiConfig
from stillhouse.teacher.api.key import read_key

REQUEST_ID = "X-Client-Request-Id"
"""Servers and proxies that know it send it back."""


def connect(config: ApiConfig) -> openai.OpenAI:
    """Return the official client, without anything that it would do of its own accord.

    It follows no redirect, so that neither prompts nor the key go to another host; takes no organisation, project or
    address from the environment; and tries nothing twice.

    Raises:
        ConfigurationError: The key is not where the recipe says.
        NotPermitted: The key may not be read.
    """
    key = read_key(config.key)
    unnamed: dict[str, Any] = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}

    def withhold(request: httpx2.Request) -> None:
        request.headers.pop("Authorization", None)

    return openai.OpenAI(
        base_url=config.base_url,
        api_key=key or "none",  # the client insists on one
        default_headers=unnamed,
        max_retries=0,
        timeout=config.timeout_seconds,
        http_client=openai.DefaultHttpxClient(
            follow_redirects=False,
            event_hooks={} if key else {"request": [withhold]},
            limits=httpx2.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
        ),
    )


def exchange(
    client: openai.OpenAI, endpoint: str, body: Mapping[str, Any], *, request_id: str, seconds: float
) -> tuple[bytes, Mapping[str, str]]:
    """Post ``body`` and return the body and the headers of the answer.

    Args:
        client: Of `connect`.
        endpoint: ``chat`` or ``completions``.
        body: The request.
        request_id: Sent as `REQUEST_ID`.
        seconds: After which the answer must be whole. A server that then sends nothing at all is given up after as long
            again at most.

    Raises:
        openai.OpenAIError: The server refuses, or can't be reached.
        httpx2.HTTPError: The connection broke, or the time is over.
    """
    resource: Any = client.chat.completions if endpoint == "chat" else client.completions
    deadline = time.monotonic() + seconds
    parts = []
    with resource.with_streaming_response.create(**body, extra_headers={REQUEST_ID: request_id}) as response:
        for part in response.iter_bytes():
            parts.append(part)
            if time.monotonic() > deadline:
                raise httpx2.ReadTimeout("the answer came too slowly")
        return b"".join(parts), response.headers
