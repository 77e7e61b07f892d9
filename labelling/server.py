"""Owns the label page's server: one desk over HTTP, for the people who have its address.

``GET /TOKEN/`` is the page, ``state`` and ``people`` below it are read, ``answer`` and ``undo`` written, all as JSON.
The token in the address is what lets people in.  A request must name this machine as its host (so that no other site's
name can be pointed here), and what writes must come from the page itself: same origin, JSON.  Texts go out as JSON and
enter the page as text; the page may load nothing but its own three files, and no other site may frame it.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Callable
from contextlib import closing
from importlib import resources
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bandits.core.errors import InputError
from bandits.runs.files import WriteError
from bandits.runs.text import dumps, loads
from labelling.desk import Desk, StaleError, Standing
from llm_loop.data.chat import to_json

FILES = {"": "page.html", "page.css": "page.css", "page.js": "page.js", "icon.svg": "icon.svg"}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
LARGEST = 65_536  # bytes of a request's body: an answer has a few hundred
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Lets through what comes from this machine's own page, and puts ``HEADERS`` on every answer."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or hand it on."""

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        wrong = self.wrong(scope["method"], Headers(scope=scope)) if scope["type"] == "http" else ""
        app: ASGIApp = PlainTextResponse(wrong + "\n", 403) if wrong else self.app
        await app(scope, receive, dressed)

    def wrong(self, method: str, headers: Headers) -> str:
        """Return why a request is refused; empty if it is not."""
        host = headers.get("host", "")
        if not self.known(host):
            return f"this server is not called {host[:80]!r}; open the address that activedpo label printed"
        followed = method == "GET" and headers.get("sec-fetch-mode") == "navigate"  # a link to the page, with its token
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not followed:
            return "this request comes from another site"
        if method not in ("GET", "HEAD"):
            if headers.get("origin") not in (f"http://{host}", f"https://{host}"):
                return "this request does not come from the label page"
            if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return "this request is not JSON"
        return ""

    def known(self, host: str) -> bool:
        """Whether a Host header names this machine: an address, or a name that it was given; ports do not matter."""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        name = name.strip("[]").lower()
        if name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def application(desk: Desk, token: str, question: str, hosts: frozenset[str], tell: Callable[[str], None]) -> ASGIApp:
    """Return the server as an ASGI application; ``tell`` hears in one line of answers that could not be kept."""

    def reply(status: int, **content: object) -> Response:
        return Response(dumps(content), status, media_type="application/json")

    def whole(standing: Standing) -> dict[str, Any]:
        return to_state(standing, question)

    async def state(request: Request) -> Response:
        name = request.query_params.get("annotator", "")
        return await attempt(name, lambda: {"state": whole(desk.standing(name))})

    async def people(request: Request) -> Response:
        return await attempt("", lambda: {"state": {"people": _people(desk.people())}})

    async def answer(request: Request) -> Response:
        said = await body(request, annotator=str, query=str, hash=str, seen=int, answer=str)

        def keep() -> dict[str, Any]:
            standing = desk.answer(said["annotator"], said["query"], said["hash"], said["seen"], said["answer"])
            return {"state": whole(standing), "done": f"Saved: {said['answer']}"}

        return await attempt(said["annotator"], keep)

    async def undo(request: Request) -> Response:
        said = await body(request, annotator=str, query=str, seen=int)

        def take_back() -> dict[str, Any]:
            return {"state": whole(desk.undo(said["annotator"], said["query"], said["seen"])), "done": "Taken back"}

        return await attempt(said["annotator"], take_back)

    async def attempt(name: str, act: Callable[[], dict[str, Any]]) -> Response:
        return await run_in_threadpool(tried, name, act)

    def tried(name: str, act: Callable[[], dict[str, Any]]) -> Response:
        try:
            return reply(200, **act())
        except StaleError as error:
            return reply(409, error=_sentence(error), state=whole(desk.standing(name)))
        except WriteError as error:
            tell(str(error))
            return reply(507, error=f"{_sentence(error)} Free some space, then answer again; no other answer is lost.")
        except InputError as error:
            return reply(400, error=_sentence(error))

    async def malformed(request: Request, error: Exception) -> Response:
        return reply(400, error=_sentence(error))

    def file(name: str) -> Callable[[Request], Response]:
        content = resources.files("labelling").joinpath("web", name).read_bytes()
        kind = KINDS[name[name.rindex(".") :]]
        return lambda request: Response(content, media_type=kind)

    routes = [
        *(Route(f"/{path}", file(name)) for path, name in FILES.items()),
        Route("/state", state),
        Route("/people", people),
        Route("/answer", answer, methods=["POST"]),
        Route("/undo", undo, methods=["POST"]),
    ]
    app = Starlette(routes=[Mount(f"/{token}", routes=routes)], exception_handlers={MalformedError: malformed})
    return Guard(app, hosts)


class MalformedError(InputError):
    """A request is not one that the page makes."""


async def body(request: Request, **kinds: type) -> dict[str, Any]:
    """Return the fields of a request; ``MalformedError`` unless each is there and of its kind."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > LARGEST:
            raise MalformedError(f"the request is longer than {LARGEST} bytes")
    try:
        said = loads(content.decode())
    except ValueError as error:
        raise MalformedError(f"the request is not JSON ({error})") from None
    for name, kind in kinds.items():
        if not isinstance(said, dict) or type(said.get(name)) is not kind:
            raise MalformedError(f"the request has no {name} of the right kind")
    return dict(said)


def to_state(standing: Standing, question: str) -> dict[str, Any]:
    """Return what the page shows."""
    duel, agreement = standing.duel, standing.agreement
    return {
        "question": question,
        "annotator": standing.annotator,
        "people": _people(standing.people),
        "answered": standing.answered,
        "total": standing.total,
        "counts": standing.counts,
        "undo": standing.undo and {"query": standing.undo[0], "seen": standing.undo[1]},
        "agreement": agreement and {"duels": agreement.units, "share": agreement.share, "alpha": agreement.alpha},
        "duel": duel
        and {
            "id": duel.query.id,
            "hash": duel.query.digest,
            "seen": duel.seen,
            "place": duel.place + 1,
            "prompt": to_json(duel.query.prompt),
            "left": duel.query.left,
            "right": duel.query.right,
        },
    }


def _people(counts: Any) -> list[dict[str, Any]]:
    return [{"name": name, "answered": count} for name, count in counts]


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket (port 0: any that is free); ``InputError`` if there is none to be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot listen on {host} port {port}: {reason}; choose another --port (0: any that is free) or --host"
        ) from None


def names(host: str) -> frozenset[str]:
    """Return the names by which people may call this machine, beside its addresses."""
    own = socket.gethostname().lower()
    return frozenset({"localhost", host.lower(), own, own.partition(".")[0]})


def token() -> str:
    """Return a fresh secret for the address: 128 bits."""
    return secrets.token_urlsafe(16)


def serve(
    desk: Desk,
    question: str,
    host: str,
    port: int,
    say: Callable[[str], None],
    tell: Callable[[str], None],
    opened: Callable[[str], object] = lambda address: None,
) -> None:
    """Serve until Ctrl-C; ``say`` hears the address when it can be opened."""
    secret = token()
    with closing(listen(host, port)) as sock:
        place = f"[{host}]" if ":" in host else host
        address = f"http://{place}:{sock.getsockname()[1]}/{secret}/"

        def started() -> None:
            say(address)
            opened(address)

        server = Server(application(desk, secret, question, names(host), tell), started)
        server.run(sockets=[sock])


class Server(uvicorn.Server):
    """uvicorn, which says when it has started; its own log would hold the token."""

    def __init__(self, app: ASGIApp, started: Callable[[], object]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="critical",
                access_log=False,
                lifespan="off",
                http="h11",
                ws="none",
                loop="asyncio",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._told = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, then say so."""
        await super().startup(sockets)
        if self.started:
            self._told()
