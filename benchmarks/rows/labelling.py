"""Row: what a person waits for on the label page, from the answer to the next duel."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.harness.row import Answer, Check, Contender, Row, Target, register
from labelling import queries
from labelling.answers import Answer as Said
from labelling.answers import Answers
from labelling.queries import Query

COUNT = 10_000


def page() -> Callable[[], Answer]:
    """The server over HTTP, with half of the duels answered by one person and all of them by another."""
    from labelling import server
    from labelling.desk import Desk, Source

    folder = Path(tempfile.mkdtemp(prefix="labelling-"))
    made = [Query.of("01", f"prompt {n}", f"first {n} " * 40, f"second {n} " * 40, bool(n % 2)) for n in range(COUNT)]
    queries.write(folder / "q.jsonl", made)
    answers = Answers(folder / "q.answers.jsonl")
    answers.extend(Said.of(query, "ada", "left") for query in made[: COUNT // 2])
    answers.extend(Said.of(query, "bob", "right") for query in made)
    sock = server.listen("127.0.0.1", 0)
    app = server.application(
        Desk(Source.at(folder / "q.jsonl")), "token", "Which?", server.names(""), lambda line: None
    )
    started = threading.Event()
    running = server.Server(app, started.set)
    threading.Thread(target=running.run, kwargs={"sockets": [sock]}, daemon=True).start()
    started.wait(30)
    own = f"127.0.0.1:{sock.getsockname()[1]}"

    def ask(method: str, path: str, content: object = None) -> dict[str, object]:
        with contextlib.closing(http.client.HTTPConnection(own, timeout=30)) as connection:
            headers = {"Origin": f"http://{own}", "Content-Type": "application/json"}
            connection.request(method, f"/token/{path}", json.dumps(content), headers)
            state: dict[str, object] = json.loads(connection.getresponse().read())["state"]
        return state

    state = ask("GET", "state?annotator=ada")

    def answer() -> Answer:
        nonlocal state
        duel = state["duel"]
        assert isinstance(duel, dict)
        said = {"annotator": "ada", "query": duel["id"], "hash": duel["hash"], "seen": duel["seen"], "answer": "tie"}
        state = ask("POST", "answer", said)
        after = state["duel"]
        assert isinstance(after, dict)
        with (folder / "q.answers.jsonl").open("rb") as file:
            file.seek(-300, os.SEEK_END)
            last = json.loads(file.read().splitlines()[-1])
        return {"kept": float(last["query"] == duel["id"]), "step": float(after["place"] - duel["place"])}

    return answer


def check(answers: Mapping[str, Answer]) -> Check:
    """The answer is the file's last line, and the next duel is the one after it in the queries."""
    (found,) = answers.values()
    passed = found["kept"] == 1 and found["step"] == 1
    return Check(passed, "the answer is the last line on disk, and the duel shown is the next without one")


register(
    Row(
        name="label-page",
        title="An answer on the label page",
        workload=f"answer a duel and be shown the next, {COUNT} duels, {COUNT * 3 // 2} answers on disk",
        ours=Contender("ours", page),
        check=check,
        targets=(Target("seconds", 0.05, "< 50 ms at 10,000 duels"),),
        repetitions=20,
        profiled=False,
    )
)
