"""Labelling over HTTP: what is kept, who is let in; tabs, people, kills and full disks lose no answer."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_client import Client, full, served

from bandits.core.errors import InputError
from bandits.runs import stats
from labelling import label, queries, server
from labelling.answers import Answer, Answers
from labelling.desk import Desk, Source, StaleError
from labelling.project import Project
from labelling.queries import Query

NASTY = "<script>document.title = 'owned'</script> & \"quotes\" \u202eright to left\u202c"


def batch(path: Path, count: int = 4) -> Path:
    made = [Query.of("01", f"prompt {n}", f"first {n} {NASTY}", f"second {n}", n % 2 == 1) for n in range(count)]
    queries.write(path, made)
    return path


def kept(path: Path) -> list[tuple[str, str]]:
    return [(answer.annotator, answer.answer) for answer in Answers(path).all]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return batch(tmp_path / "q.jsonl")


@pytest.fixture
def client(file: Path) -> Iterator[Client]:
    with served(Desk(Source.at(file))) as found:
        yield found


class TestAnswers:
    def test_an_answer_is_on_disk_before_the_next_duel_is_shown(self, client: Client, file: Path) -> None:
        state = client.state()
        assert (state["answered"], state["total"], state["undo"]) == (0, 4, None)
        answers = file.with_name("q.answers.jsonl")
        for count, choice in enumerate(("left", "right", "tie", "skip"), start=1):
            before = state["duel"]["id"]
            status, reply = client.answer(state, choice)
            assert status == 200
            assert len(kept(answers)) == count
            state = reply["state"]
            assert state["duel"] is None or state["duel"]["id"] != before
        assert kept(answers) == [("ada", choice) for choice in ("left", "right", "tie", "skip")]
        assert state["duel"] is None
        assert state["counts"] == {"left": 1, "right": 1, "tie": 1, "skip": 1}

    def test_undo_shows_the_duel_again_and_goes_back_step_by_step(self, client: Client, file: Path) -> None:
        first = client.state()
        second = client.answer(first, "left")[1]["state"]
        third = client.answer(second, "tie")[1]["state"]
        back = client.undo(third)[1]["state"]
        assert back["duel"]["id"] == second["duel"]["id"]
        back = client.undo(back)[1]["state"]
        assert back["duel"]["id"] == first["duel"]["id"]
        assert (back["answered"], back["undo"]) == (0, None)
        assert client.answer(back, "right")[0] == 200
        assert Answers(file.with_name("q.answers.jsonl")).of("ada") == {first["duel"]["id"]: "right"}

    def test_a_tab_that_lags_behind_changes_nothing_and_is_told(self, client: Client, file: Path) -> None:
        one = other = client.state()
        client.answer(one, "left")
        status, reply = client.answer(other, "right")
        assert status == 409
        assert "already answered (left)" in reply["error"]
        assert reply["state"]["answered"] == 1
        assert kept(file.with_name("q.answers.jsonl")) == [("ada", "left")]
        now = reply["state"]
        client.undo(now)
        assert client.undo(now)[0] == 409
        assert client.answer(other, "left")[0] == 409  # the duel is open again, but not as this tab saw it

    def test_a_request_whose_reply_got_lost_may_be_sent_again(self, client: Client, file: Path) -> None:
        state = client.state()
        assert [client.answer(state, "left")[0] for _ in range(2)] == [200, 200]
        assert kept(file.with_name("q.answers.jsonl")) == [("ada", "left")]

    def test_two_people_have_their_own_queues_and_their_agreement_is_counted(self, client: Client) -> None:
        for name, choices in (("ada", ("left", "right", "left", "left")), ("bob", ("left", "right", "right", "skip"))):
            state = client.state(name)
            for choice in choices:
                state = client.answer(state, choice)[1]["state"]
        assert {person["name"]: person["answered"] for person in state["people"]} == {"ada": 4, "bob": 4}
        assert state["agreement"]["duels"] == 3
        assert state["agreement"]["share"] == pytest.approx(2 / 3)

    @pytest.mark.slow
    def test_answers_at_once_are_all_kept(self, tmp_path: Path) -> None:
        file = batch(tmp_path / "q.jsonl", 12)
        with served(Desk(Source.at(file))) as client:

            def work(name: str) -> None:
                state = client.state(name)
                while state["duel"]:
                    state = client.answer(state, "left")[1]["state"]

            threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c", "a")]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        said = Answers(tmp_path / "q.answers.jsonl")
        assert len(said.all) == len(said.latest) == 36

    def test_a_name_is_the_same_with_other_capitals_and_blanks(self, client: Client) -> None:
        client.answer(client.state("Ada"), "left")
        state = client.state("%20ada%20")
        assert (state["annotator"], state["answered"]) == ("Ada", 1)

    @pytest.mark.parametrize("name", ["", "%20", "a%07b", "x" * 61, "a%E2%80%AEb"])
    def test_what_is_no_name_is_refused(self, client: Client, name: str) -> None:
        status, content, _ = client.ask(f"/secret/state?annotator={name}")
        assert status == 400
        assert "name" in content["error"]

    @pytest.mark.parametrize(
        ("changed", "status"),
        [
            ({"answer": "both"}, 400),
            ({"seen": "0"}, 400),
            ({"query": "none"}, 409),
            ({"hash": "old"}, 409),
            ({"annotator": ""}, 400),
            ({"answer": None}, 400),
        ],
    )
    def test_what_the_page_never_sends_is_refused(
        self, client: Client, file: Path, changed: dict[str, object], status: int
    ) -> None:
        assert client.answer(client.state(), "left", **changed)[0] == status
        assert not file.with_name("q.answers.jsonl").exists()

    def test_a_shared_queue_gives_each_duel_to_as_many_people_as_it_needs(self, file: Path) -> None:
        now = [0.0]
        desk = Desk(Source.at(file), each=1, clock=lambda: now[0])
        ada, bob = desk.standing("ada"), desk.standing("bob")
        assert (ada.duel.place, bob.duel.place) == (0, 1)
        bob = desk.answer("bob", bob.duel.query.id, bob.duel.query.digest, 0, "left")
        assert bob.duel.place == 2  # 0 is before ada
        now[0] += 1000
        assert desk.standing("bob").duel.place == 0  # who has gone away

    def test_a_skip_leaves_a_duel_to_others(self, file: Path) -> None:
        desk = Desk(Source.at(file), each=1)
        duel = desk.standing("ada").duel
        desk.answer("ada", duel.query.id, duel.query.digest, 0, "skip")
        assert desk.standing("bob").duel.place == 0


class TestDoor:
    def test_the_page_and_its_parts_are_there_and_carry_the_policy(self, client: Client) -> None:
        for path in server.FILES:
            status, content, headers = client.ask(f"/secret/{path}")
            assert status == 200
            assert content
            assert "script-src 'self'" in headers["content-security-policy"]
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert "server" not in headers

    def test_the_page_fetches_nothing_from_elsewhere_and_runs_nothing_inline(self) -> None:
        page = (Path(server.__file__).parent / "web" / "page.html").read_text()
        assert not re.search(r"https?://|\son\w+=|<script>|style=", page)

    @pytest.mark.parametrize("path", ["/", "/state?annotator=ada", "/wrong/", "/wrong/state?annotator=ada", "/page.js"])
    def test_without_the_token_there_is_nothing(self, client: Client, path: str) -> None:
        assert client.ask(path)[0] == 404

    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "localhost.evil"]
    )
    def test_another_sites_name_is_refused(self, client: Client, host: str) -> None:
        assert client.ask("/secret/state?annotator=ada", headers={"Host": host})[0] == 403

    @pytest.mark.parametrize("host", ["localhost", "localhost:99", "127.0.0.1", "[::1]:80", "192.168.0.3:1"])
    def test_this_machine_may_be_called_by_its_addresses(self, client: Client, host: str) -> None:
        assert client.ask("/secret/state?annotator=ada", headers={"Host": host})[0] == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": None},
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/x-www-form-urlencoded"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"},
        ],
    )
    def test_another_site_cannot_answer(self, client: Client, file: Path, headers: dict[str, str]) -> None:
        duel = client.state()["duel"]
        said = {"annotator": "ada", "query": duel["id"], "hash": duel["hash"], "seen": 0, "answer": "left"}
        assert client.ask("/secret/answer", said, headers)[0] == 403
        assert not file.with_name("q.answers.jsonl").exists()

    def test_a_link_may_lead_to_the_page_but_no_script_of_another_site_to_its_data(self, client: Client) -> None:
        site = {"Sec-Fetch-Site": "cross-site"}
        assert client.ask("/secret/", headers=site | {"Sec-Fetch-Mode": "navigate"})[0] == 200
        assert client.ask("/secret/state?annotator=ada", headers=site | {"Sec-Fetch-Mode": "cors"})[0] == 403

    @pytest.mark.parametrize(
        ("body", "status"), [("{", 400), ("[]", 400), ('"x"', 400), ("{}", 400), ("x" * 70_000, 400)]
    )
    def test_what_is_no_answer_is_one_line(self, client: Client, body: str, status: int) -> None:
        found, content, _ = client.ask("/secret/answer", body)
        assert found == status
        assert "\n" not in content["error"]

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "GET"])
    def test_answers_are_posted(self, client: Client, method: str) -> None:
        assert client.ask("/secret/answer", {"x": 1}, method=method)[0] in (403, 405)


class TestFiles:
    def test_an_edited_query_is_noticed_before_and_while_people_label(self, file: Path) -> None:
        desk = Desk(Source.at(file))
        with served(desk) as client:
            first = client.state()
            second = client.answer(first, "left")[1]["state"]
            rows = file.read_text().splitlines(keepends=True)
            file.write_text("".join([rows[0], rows[1].replace("prompt 1", "another"), *rows[2:]]))
            status, reply = client.answer(second, "left")
            assert status == 409
            assert "edited" in reply["error"]
            assert reply["state"]["duel"]["prompt"] == "another"
            assert client.answer(reply["state"], "left")[0] == 200
            file.write_text("".join([rows[0].replace("prompt 0", "changed"), *rows[1:]]))
            status, reply = client.answer(reply["state"], "left")
            assert status == 400
            assert "was edited since" in reply["error"]
        with pytest.raises(InputError, match="was edited since"):
            Desk(Source.at(file))
        asked = Desk(Source.at(file), again=True)
        assert asked.standing("ada").duel.query.prompt == "changed"
        assert "asked again" in asked.notes()[0]

    def test_another_process_may_add_answers(self, file: Path) -> None:
        desk, other = Desk(Source.at(file)), Desk(Source.at(file))
        for turn in (desk, other, desk, other):
            duel = turn.standing("ada").duel
            turn.answer("ada", duel.query.id, duel.query.digest, 0, "tie")
        assert desk.standing("ada").duel is None

    def test_a_new_batch_of_a_project_is_shown_without_a_restart(self, tmp_path: Path) -> None:
        Project(tmp_path).begin({"model": "m", "settings": {"model": "m", "strategy": "random"}})
        batch(tmp_path / "queries" / "01.jsonl", 1)
        desk = Desk(Source.at(tmp_path))
        duel = desk.standing("ada").duel
        assert desk.answer("ada", duel.query.id, duel.query.digest, 0, "left").duel is None
        queries.write(tmp_path / "queries" / "02.jsonl", [Query.of("02", "new", "a", "b", False)])
        assert desk.standing("ada").duel.query.prompt == "new"
        lone = Source.at(tmp_path / "queries" / "02.jsonl")
        assert (lone.answers, len(lone.files)) == (tmp_path / "answers.jsonl", 1)

    def test_answers_to_other_duels_are_named_and_stay(self, file: Path) -> None:
        stranger = Query.of("99", "x", "a", "b", False)
        Answers(file.with_name("q.answers.jsonl")).append(Answer.of(stranger, "ada", "left"))
        desk = Desk(Source.at(file))
        assert "1 lines" in desk.notes()[0]
        assert desk.standing("ada").answered == 0

    @pytest.mark.parametrize(
        ("make", "words"),
        [(lambda at: at / "nothing.jsonl", "neither a file of queries nor a project"), (lambda at: at, "no project")],
    )
    def test_what_is_no_place_to_label_is_one_line(self, tmp_path: Path, make: Any, words: str) -> None:
        with pytest.raises(InputError, match=words):
            Source.at(make(tmp_path))

    def test_a_full_disk_is_one_message_and_the_same_answer_can_be_given_again(
        self, client: Client, file: Path
    ) -> None:
        state = client.answer(client.state(), "left")[1]["state"]
        answers = file.with_name("q.answers.jsonl")
        before = answers.read_bytes()
        with full(len(before) + 20):
            status, reply = client.answer(state, "right")
        assert status == 507
        assert "Free some space" in reply["error"]
        assert "\n" not in reply["error"]
        assert answers.read_bytes() == before
        assert client.answer(state, "right")[0] == 200

    def test_a_port_in_use_is_one_line(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with contextlib.closing(server.listen("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
            with pytest.raises(InputError, match=rf"cannot listen on 127.0.0.1 port {port}: .* choose another --port"):
                label.main([str(file), "--port", str(port)])

    def test_a_stale_desk_says_so_to_its_caller(self, file: Path) -> None:
        desk = Desk(Source.at(file))
        with pytest.raises(StaleError, match="no duel"):
            desk.answer("ada", "none", "", 0, "left")


def alpha(units: list[list[int]]) -> float:
    """Krippendorff's α by its definition, over pairs of answers."""
    within, values = [], [value for unit in units if len(unit) > 1 for value in unit]
    for unit in units:
        if len(unit) > 1:
            pairs = [(a, b) for i, a in enumerate(unit) for j, b in enumerate(unit) if i != j]
            within += [(a != b) / (len(unit) - 1) for a, b in pairs]
    anywhere = [a != b for i, a in enumerate(values) for j, b in enumerate(values) if i != j]
    return 1 - (sum(within) / len(values)) / (sum(anywhere) / len(anywhere))


class TestAgreement:
    def test_alpha_of_krippendorffs_example(self) -> None:
        """Four observers, twelve units, some missing; α for nominal data is 0.743 (Krippendorff 2011, section C)."""
        table = [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
            [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
        ]
        counts = np.array([[sum(row[unit] == value for row in table) for value in range(1, 6)] for unit in range(12)])
        assert stats.agreement(counts).alpha == pytest.approx(0.743, abs=5e-4)

    def test_alpha_is_its_definition(self) -> None:
        draws = np.random.default_rng(3)
        for _ in range(30):
            units = [list(draws.integers(0, 3, draws.integers(0, 5))) for _ in range(8)]
            counts = [[unit.count(value) for value in range(3)] for unit in units]
            found = stats.agreement(counts)
            if found is not None and not np.isnan(found.alpha):
                assert found.alpha == pytest.approx(alpha(units), abs=1e-12)

    def test_of_two_people_the_share_is_that_of_equal_answers(self) -> None:
        found = stats.agreement([[2, 0, 0], [1, 1, 0], [0, 0, 2], [0, 2, 0], [1, 0, 0]])
        assert (found.units, found.share) == (4, 0.75)

    def test_nothing_is_said_where_nothing_can_be(self) -> None:
        assert stats.agreement([[1, 0, 0], [0, 0, 0]]) is None
        assert np.isnan(stats.agreement([[2, 0, 0], [2, 0, 0]]).alpha)


@pytest.mark.slow
class TestProcess:
    def start(self, file: Path) -> tuple[subprocess.Popen[str], Client]:
        process = subprocess.Popen(
            [sys.executable, "-m", "activedpo", "label", str(file), "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        for line in process.stdout:
            found = re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]+)/", line)
            if found:
                return process, Client(int(found[1]), found[2])
        raise AssertionError("the server did not start")

    @pytest.mark.campaign
    def test_kill_9_at_any_moment_loses_no_answer_that_was_confirmed(self, tmp_path: Path) -> None:
        file = batch(tmp_path / "q.jsonl", 400)
        confirmed = 0
        for wait in (0.05, 0.21):
            process, client = self.start(file)
            timer = threading.Timer(wait, process.kill)
            state = client.state()
            assert state["answered"] >= confirmed
            confirmed = state["answered"]
            timer.start()
            with contextlib.suppress(OSError, http.client.HTTPException):
                while state["duel"]:
                    state = client.answer(state, "left")[1]["state"]
                    confirmed = state["answered"]
            process.wait(20)
            assert len(Answers(tmp_path / "q.answers.jsonl").latest) in (confirmed, confirmed + 1)
        assert confirmed > 0
        process, client = self.start(file)
        assert client.state()["answered"] in (confirmed, confirmed + 1)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "of 400 answered" in told
