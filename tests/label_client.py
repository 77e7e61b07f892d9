"""What tests of the label page share: one who speaks as its script does, a server, a full disk."""

import contextlib
import http.client
import json
import resource
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from labelling import server
from labelling.desk import Desk


@dataclass
class Client:
    """One who has the page's address, and speaks as its script does."""

    port: int
    token: str

    def ask(
        self, path: str, body: object = None, headers: dict[str, str] | None = None, method: str = ""
    ) -> tuple[int, Any, dict[str, str]]:
        own = f"127.0.0.1:{self.port}"
        given = {"Host": own} | ({"Origin": f"http://{own}", "Content-Type": "application/json"} if body else {})
        given = {name: value for name, value in (given | (headers or {})).items() if value is not None}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            content = json.dumps(body) if body is not None and not isinstance(body, str) else body
            connection.request(method or ("GET" if body is None else "POST"), path, content, given)
            reply = connection.getresponse()
            text = reply.read().decode()
            found = {name.lower(): value for name, value in reply.getheaders()}
        return reply.status, json.loads(text) if "json" in found.get("content-type", "") else text, found

    def state(self, name: str = "ada") -> dict[str, Any]:
        status, content, _ = self.ask(f"/{self.token}/state?annotator={name}")
        assert status == 200, content
        return content["state"]

    def answer(self, state: dict[str, Any], choice: str, **changed: object) -> tuple[int, Any]:
        duel = state["duel"]
        said = {"annotator": state["annotator"], "query": duel["id"], "hash": duel["hash"], "seen": duel["seen"]}
        return self.ask(f"/{self.token}/answer", said | {"answer": choice} | changed)[:2]

    def undo(self, state: dict[str, Any]) -> tuple[int, Any]:
        return self.ask(f"/{self.token}/undo", {"annotator": state["annotator"]} | state["undo"])[:2]


@contextlib.contextmanager
def served(desk: Desk, question: str = "Which?") -> Iterator[Client]:
    with contextlib.closing(server.listen("127.0.0.1", 0)) as sock:
        started = threading.Event()
        app = server.application(desk, "secret", question, server.names("127.0.0.1"), lambda line: None)
        running = server.Server(app, started.set)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        assert started.wait(20)
        yield Client(sock.getsockname()[1], "secret")
        running.should_exit = True
        thread.join(20)


@contextlib.contextmanager
def full(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
