"""A proxy that does harm between a client and a real HTTP server on loopback."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any

PACE_SECONDS = 0.02
_NOT_PASSED_ON = ("connection", "content-length", "expect", "keep-alive", "transfer-encoding")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the client is told."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Fault = Mapping[str, Any]
"""What happens to one request; empty for nothing. ``status``, with ``code`` and ``headers``: the proxy itself answers.
``before`` and ``after``: a function that is called before the server is asked, or between its answer and the client's.
``do``, one of:

- ``drop``, ``drop-after``: the connection ends before the server is asked, or when it has answered;
- ``cut-upload``: half the body arrives, then both connections end; ``corrupt-upload``: one byte of it is another;
- ``cut-download``: half the answer arrives; ``short-download``: the same, and its length says that this is all;
  ``corrupt-download``: one byte of it is another; ``paced``: it comes in many small pieces;
- ``dribble``: a byte comes now and then and never an end; ``stall``: nothing comes;
- ``replay``: the last answer comes again, and the server is not asked;
- a name in the proxy's ``changes``."""
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass
class Proxy:
    """Passes requests on, and does to each that it harms what its script says; when that is over, ``then``."""

    target: str
    script: Iterator[Fault]
    then: Fault
    harms: Callable[[Request], bool]
    explain: Callable[[Request, Fault], bytes]
    """Returns the body of an answer of the proxy's own."""
    changes: Mapping[str, Callable[["Proxy", Reply], Reply]]
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    """In the order of their arrival, without bodies."""
    last: bytes = b""
    """Body of the server's last answer."""
    replied: int = 0
    away: bool = False
    """While true, every connection ends before it is answered."""
    closed: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def seen(self) -> int:
        """How many requests have arrived."""
        return len(self.requests)

    def wait_until_replied(self, count: int) -> None:
        """Return when so many replies have been sent."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.replied >= count, timeout=120)

    def fault(self, request: Request) -> Fault:
        """Take note of a request and return what is to happen to it."""
        with self.changed:
            self.requests.append(request)
            if self.away:
                return {"do": "drop"}
            return next(self.script, self.then) if self.harms(request) else {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # clients are killed here, and hang up
            super().handle()

    def handle_any(self) -> None:
        size = int(self.headers.get("content-length") or 0)
        request = Request(method=self.command, path=self.path, headers=dict(self.headers))
        fault = self.proxy.fault(request)
        if fault.get("do") == "cut-upload":
            with suppress(HTTPException, OSError):
                self.forward(replace(request, body=self.rfile.read(size // 2)), size=size)
            self.hang_up()
            return
        self.answer(replace(request, body=self.rfile.read(size)), fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = handle_any  # noqa: N815

    def answer(self, request: Request, fault: Fault) -> None:
        do = fault.get("do")
        if "status" in fault:
            self.reply(
                Reply(status=fault["status"], headers=fault.get("headers", {}), body=self.explain(request, fault))
            )
        elif do == "drop":
            self.hang_up()
        elif do == "dribble":
            self.dribble()
        elif do == "replay":
            self.reply(Reply(status=200, headers={}, body=self.proxy.last))
        elif do == "stall":
            self.proxy.closed.wait()
            self.hang_up()
        else:
            self.pass_on(request, fault)

    def explain(self, request: Request, fault: Fault) -> bytes:
        return b"" if request.method == "HEAD" else self.proxy.explain(request, fault)

    def pass_on(self, request: Request, fault: Fault) -> None:
        do = fault.get("do")
        if do == "corrupt-upload":
            request = replace(request, body=_corrupt(request.body))
        fault.get("before", lambda: None)()
        try:
            reply = self.forward(request)
        except (HTTPException, OSError):  # the server is gone, too
            self.hang_up()
            return
        self.proxy.last = reply.body
        fault.get("after", lambda: None)()
        if do == "drop-after":
            self.hang_up()
        elif do == "cut-download":
            self.reply(reply, sent=reply.body[: len(reply.body) // 2])
            self.hang_up()
        elif do == "short-download":
            self.reply(replace(reply, body=reply.body[: len(reply.body) // 2]))
        elif do == "corrupt-download":
            self.reply(replace(reply, body=_corrupt(reply.body)))
        elif do == "paced":
            self.reply(reply, pieces=64)
        else:
            self.reply(self.proxy.changes[do](self.proxy, reply) if do in self.proxy.changes else reply)

    def forward(self, request: Request, size: int | None = None) -> Reply:
        """Ask the server; with a ``size`` above the body's, it waits for the rest in vain."""
        connection = HTTPConnection(self.proxy.target.removeprefix("http://"), timeout=120)
        try:
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() not in _NOT_PASSED_ON:
                    connection.putheader(name, value)
            if request.body or request.method in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(request.body) if size is None else size))
            connection.endheaders(request.body)
            if size is not None:
                return Reply(status=0, headers={}, body=b"")
            response = connection.getresponse()
            headers = {k: v for k, v in response.getheaders() if k.lower() not in _NOT_PASSED_ON}
            if request.method == "HEAD" and (length := response.getheader("content-length")):
                headers["content-length"] = length
            return Reply(status=response.status, headers=headers, body=response.read())
        finally:
            connection.close()

    def reply(self, reply: Reply, *, sent: bytes | None = None, pieces: int = 1) -> None:
        """Send an answer, or only the bytes ``sent`` of its body."""
        self.send_response_only(reply.status)
        for name, value in {"content-length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        body = reply.body if sent is None else sent
        step = -(-len(body) // pieces) or 1
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            if pieces > 1:
                time.sleep(PACE_SECONDS)
        with self.proxy.changed:
            self.proxy.replied += 1
            self.proxy.changed.notify_all()

    def hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def dribble(self) -> None:
        """Send a byte now and then, each in time, and never an end."""
        self.send_response(200)
        self.send_header("content-length", "1000000")
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):
            while not self.proxy.closed.wait(0.05):
                self.wfile.write(b" ")
                self.wfile.flush()


def _corrupt(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: whoever hung up was killed on purpose."""


@contextmanager
def fault_proxy(
    target: str,
    *script: Fault,
    then: Fault = NOTHING,
    harms: Callable[[Request], bool] = lambda request: True,
    explain: Callable[[Request, Fault], bytes] = lambda request, fault: b"",
    changes: Mapping[str, Callable[[Proxy, Reply], Reply]] = NOTHING,
) -> Iterator[Proxy]:
    """Run a proxy in front of ``target``, ``http://HOST:PORT``, until the block ends."""
    proxy = Proxy(target=target, script=iter(script), then=then, harms=harms, explain=explain, changes=changes)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield proxy
    finally:
        proxy.closed.set()
        server.shutdown()
        server.server_close()
