"""A small HTTP server that answers as the documented endpoints of a MishikaLLM 1.68 proxy do, and otherwise.

Statuses and error types are those of its user_api_key_auth.py, auth_checks.py and _health_endpoints.py.
Like the real one it repeats keys and hashes in its messages, so that tests can see that nobody else does.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

import pytest

Standing = Literal[
    "good", "blocked", "team-blocked", "expired", "expired-401", "over-budget", "routes", "cached", "limited", "private"
]
Answer = tuple[int, object]
Misdeed = Callable[[BaseHTTPRequestHandler], None]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Those who do not trust the certificate, or have heard enough, hang up."""


class Proxy:
    """`keys` are the virtual keys and how they stand; `seen` the requests, as path and Authorization.

    `open` lets any key in: no master key. `database` may be `down` (allow_requests_on_db_unavailable is
    on: any key calls models), `lost` (it is off), or `none`. `instead[path]` answers in place of a route.
    """

    def __init__(self) -> None:
        self.master = "sk-master-of-the-proxy-0123"
        self.keys: dict[str, Standing] = {}
        self.open = False
        self.database: Literal["up", "down", "lost", "none"] = "up"
        self.prefix = ""
        self.instead: dict[str, Misdeed] = {}
        self.seen: list[tuple[str, str | None]] = []
        self.over = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.seen.append((self.path, self.headers["Authorization"]))
                path = urlsplit(self.path).path.removeprefix(proxy.prefix)
                if misdeed := proxy.instead.get(path):
                    misdeed(self)
                else:
                    send(self, *proxy.answer(path, self.headers["Authorization"] or ""))

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    def encrypt(self, context: ssl.SSLContext) -> None:
        """From now on it speaks TLS."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # -- what the real one answers ----------------------------------------------------------------

    def answer(self, path: str, authorization: str) -> Answer:
        if path == "/health/readiness":
            return self._readiness()
        key = authorization.removeprefix("Bearer ")
        routes = {"/v1/models": self._models, "/key/info": self._info}
        if path not in routes:
            return 404, {"detail": "Not Found"}
        return self._refusal(key) or routes[path](key)

    def _readiness(self) -> Answer:
        said: dict[str, object] = {
            "status": "healthy",
            "db": "connected",
            "cache": None,
            "mishikallm_version": "1.68.0",
        }
        if self.database == "none":
            return 200, {**said, "db": "Not connected"}
        if self.database == "lost":
            return 503, {"detail": "Service Unhealthy (Can't reach database server)"}
        # The cached state of the database is laid over the answer, its `status` over that of the proxy.
        status = "connected" if self.database == "up" else "unknown"
        return 200, {**said, "status": status, "last_updated": "2026-08-01T00:00:00"}

    def _refusal(self, key: str) -> Answer | None:
        if self.open or key == self.master or self.database == "down":
            return None
        if self.database == "none":
            return error(400, "no_db_connection", "No connected db.")
        if self.database == "lost":
            return error(401, "auth_error", "Authentication Error, Can't reach database server at `db:5432`")
        standing = self.keys.get(key)
        hashed = hashlib.sha256(key.encode()).hexdigest()
        refusals: dict[str | None, Answer] = {
            None: error(
                401, "token_not_found_in_db", f"Authentication Error, Invalid proxy server token passed. key={hashed}"
            ),
            "blocked": error(401, "auth_error", f"Authentication Error, Key is blocked. {key}"),
            "team-blocked": error(401, "auth_error", "Authentication Error, Team=t1 is blocked. Update via ..."),
            "expired": error(400, "expired_key", "Authentication Error - Expired Key.", param=hashed),
            "expired-401": error(401, "expired_key", "Authentication Error - Expired Key.", param=hashed),
            "over-budget": error(400, "budget_exceeded", f"Budget has been exceeded! {key}"),
            "routes": error(401, "auth_error", "Authentication Error, Virtual key is not allowed to call this route."),
            "limited": (429, {"detail": f"slow down {key}"}),
        }
        return refusals.get(standing)

    def _models(self, key: str) -> Answer:
        return 200, {"data": [{"id": f"model of {key}", "object": "model"}], "object": "list"}

    def _info(self, key: str) -> Answer:
        if self.database == "down":
            return error(500, "internal_server_error", f"Internal Server Error, no database for {key}")
        if self.keys.get(key) == "private":
            return error(403, "internal_server_error", "You are not allowed to access this key's info. Your role=x")
        if key not in self.keys or self.keys[key] == "cached":
            return error(404, "not_found_error", "Key not found in database", param="key")
        return 200, {"key": hashlib.sha256(key.encode()).hexdigest(), "info": {"key_alias": key, "blocked": None}}


def error(status: int, kind: str, message: str, *, param: str | None = None) -> Answer:
    return status, {"error": {"message": message, "type": kind, "param": param, "code": str(status)}}


# -- misdeeds -------------------------------------------------------------------------------------


def send(handler: BaseHTTPRequestHandler, status: int, body: object, **headers: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def says(status: int, body: object, **headers: str) -> Misdeed:
    return lambda handler: send(handler, status, body, **headers)


def hangs(proxy: Proxy) -> Misdeed:
    """Takes the request and never answers."""
    return lambda handler: _wait(proxy, handler)


def stops_midway(proxy: Proxy) -> Misdeed:
    """Half an answer, and then nothing."""

    def misdeed(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"{")
        handler.wfile.flush()
        _wait(proxy, handler)

    return misdeed


def never_ends(proxy: Proxy) -> Misdeed:
    """As fast as it is taken."""

    def misdeed(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        try:
            while not proxy.over.is_set():
                handler.wfile.write(b" " * 100_000)
        except OSError:
            pass  # the other end has seen enough

    return misdeed


def speaks_no_http(handler: BaseHTTPRequestHandler) -> None:
    """Repeats the key where the status belongs."""
    handler.wfile.write(f"{handler.headers['Authorization']} what?\r\n\r\n".encode())
    handler.close_connection = True


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def _wait(proxy: Proxy, handler: BaseHTTPRequestHandler) -> None:
    proxy.over.wait()
    handler.close_connection = True


def keys_of(proxy: Proxy) -> list[str]:
    """The keys that reached it."""
    return [authorization.removeprefix("Bearer ") for _, authorization in proxy.seen if authorization]


@pytest.fixture
def llm_proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()
