"""A real S3 server, and a proxy in front of it that does harm."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from buckets import bucket, s3, s3_environment
from proxies import Fault, Proxy, Request, fault_proxy
from servers import Server

__all__ = ["bucket", "s3", "s3_environment"]


def s3_error(request: Request, fault: Fault) -> bytes:
    """Return an S3 server's own way to say what is wrong, or a page of another server's."""
    if fault["status"] == 200:
        return b"<html>Welcome</html>"
    return f"<?xml version='1.0'?><Error><Code>{fault['code']}</Code><Message>no</Message></Error>".encode()


@pytest.fixture
def harmed(s3_environment: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Proxy]]:
    """Put a proxy with a script between this process and the server, until the test ends."""
    with ExitStack() as stack:

        def harm(*script: Fault, **how: Any) -> Proxy:
            proxy = stack.enter_context(fault_proxy(s3_environment.url, *script, explain=s3_error, **how))
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
            return proxy

        yield harm
