"""Owns where the files of a project are, and what makes a directory one.

``project.json`` (what the project is: its model and settings, fixed when it begins), ``pool.jsonl``,
``queries/01.jsonl``, ``queries/02.jsonl``, … (the batches), ``answers.jsonl``, ``question.txt`` (what people are asked,
where it is not the default), ``features/`` (what can be computed again), ``models/01/``, … (the model after each batch,
as PEFT folders), ``preferences.jsonl`` and ``index.html``.  ``ledger.json`` has the SHA-256 of what batches rest on and
the project alone writes: what is not as it was written is named, never used.  ``.lock`` keeps a second writer out.
Knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bandits.core.errors import InputError
from bandits.runs.directory import LEDGER, Ledger, alone
from bandits.runs.files import DamagedError, made, read_json, sweep, write_json
from labelling import queries
from labelling.answers import Answers
from labelling.queries import Query

MANIFEST = "project.json"
FORMAT = 1
OWN = ("pool.jsonl", "features", "drawn", "labelled.jsonl", LEDGER)
"""What a command that was killed may leave behind before the manifest is there."""
RELIED_ON = (
    *(MANIFEST, "pool.jsonl", "labelled.jsonl", "queries/*.jsonl", "drawn/*.json"),
    *("models/*/*.json", "models/*/*.safetensors"),
)
"""What the ledger lists: answers grow by lines that people bring, features have their own check, the rest is output."""
COPY = "put it back from a copy"


@dataclass(frozen=True)
class Project:
    """A directory of plain files."""

    root: Path

    @property
    def manifest_path(self) -> Path:
        """Where it says what the project is."""
        return self.root / MANIFEST

    @property
    def pool(self) -> Path:
        """The prompts and responses to choose from."""
        return self.root / "pool.jsonl"

    @property
    def answers_path(self) -> Path:
        """What people said of the queries."""
        return self.root / "answers.jsonl"

    @property
    def question(self) -> Path:
        """What people are asked, where it is not the default."""
        return self.root / "question.txt"

    @property
    def labelled(self) -> Path:
        """Duels that were answered before the project began."""
        return self.root / "labelled.jsonl"

    @property
    def features(self) -> Path:
        """The folder of sketched gradients."""
        return self.root / "features"

    @property
    def preferences(self) -> Path:
        """The answered duels, as TRL reads them."""
        return self.root / "preferences.jsonl"

    def queries(self, batch: int) -> Path:
        """Return the file of a batch, from 1."""
        return self.root / "queries" / f"{batch:02d}.jsonl"

    def drawn(self, batch: int) -> Path:
        """Return what the model drew for a batch, where the pool has prompts alone: as token ids, which texts lose."""
        return self.root / "drawn" / f"{batch:02d}.json"

    def model(self, batch: int) -> Path:
        """Return the PEFT folder of the model that was trained on the batches up to this one."""
        return self.root / "models" / f"{batch:02d}"

    def trained(self, batch: int) -> bool:
        """Whether that model is there, whole: its weights are written last."""
        return (self.model(batch) / "adapter_model.safetensors").exists()

    @property
    def exists(self) -> bool:
        """Whether the directory is a project."""
        return self.manifest_path.is_file()

    @property
    def batches(self) -> int:
        """How many batches there are; they are numbered without a gap."""
        found = sorted(path.stem for path in (self.root / "queries").glob("[0-9]*.jsonl"))
        missing = next((n for n, name in enumerate(found, start=1) if name != f"{n:02d}"), None)
        if missing is not None:
            raise InputError(f"{self.root / 'queries'} has {found[missing - 1]}.jsonl but no {missing:02d}.jsonl")
        return len(found)

    def read_queries(self, batch: int) -> list[Query]:
        """Return a batch's queries."""
        return queries.read(self.queries(batch))

    def read_answers(self) -> Answers:
        """Return the answers, which must be to the queries as they are now."""
        answers = Answers(self.answers_path)
        for batch in range(1, self.batches + 1):
            answers.check(self.read_queries(batch), self.queries(batch))
        return answers

    def manifest(self) -> dict[str, Any]:
        """Return what the project says of itself; ``InputError`` for what is no project of this format."""
        if not self.exists:
            raise InputError(f"{self.root} is no project: it has no {MANIFEST}; activedpo select --project begins one")
        content: dict[str, Any] = read_json(self.manifest_path, dict, COPY)
        if content.get("format") != FORMAT:
            raise InputError(
                f"{self.manifest_path} is of format {content.get('format')!r}, and this version reads {FORMAT}"
            )
        settings = content.get("settings")
        if not isinstance(settings, dict):
            raise DamagedError(f"{self.manifest_path} is damaged: it has no settings; {COPY}")
        for name, value in (
            ("model", content.get("model")),
            ("settings.model", settings.get("model")),
            ("settings.strategy", settings.get("strategy")),
        ):
            if not isinstance(value, str):
                raise DamagedError(f"{self.manifest_path} is damaged: its {name} is no text; {COPY}")
        return content

    # Who may write, and which files are as they were written.

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the project alone while the block runs; ``BusyError``, naming the holder, if another process has it.

        What killed writers left half-written is removed.  Of folders made here, those in which nothing was written are
        removed again.  Who only answers needs no hold.
        """
        self.suits()
        with held(self.root):
            sweep(self.root)
            yield

    def check(self, below: str = "") -> None:
        """Raise ``DamagedError`` for the first listed file (``below`` a folder) that is not as it was written.

        Whole batches and models may be removed by hand: they then have to be made again.
        """
        faults = self._faults(below) and self._faults(below)  # again: a running command may just have replaced one
        if faults:
            raise DamagedError(faults[0])

    def _faults(self, below: str) -> list[str]:
        ledger = Ledger(self.root)
        own = self.root / LEDGER
        if ledger.torn:
            return [f"{own} is damaged; {COPY}, or delete it, and all other files are taken as they are"]
        found = ledger.differing(name for name in ledger.files if name.startswith(below) and not self._removed(name))
        return [
            f"{self.root / name} is {fate} since the project wrote it; {self._mend(name)}"
            for name, fate in found.items()
        ]

    def _removed(self, name: str) -> bool:
        path = self.root / name
        owners = {"models": path.parent, "queries": path, "drawn": self.root / "queries" / f"{path.stem}.jsonl"}
        owner = owners.get(Path(name).parts[0])
        return owner is not None and not owner.exists()

    def _mend(self, name: str) -> str:
        kind, *rest = Path(name).parts
        if kind == "models":
            folder = self.root / kind / rest[0]
            return f"{COPY}, or delete {folder} and go on with: activedpo train {self.root}"
        return f"{COPY}; if the change is meant, delete {self.root / LEDGER}, and all files are taken as they are"

    @contextlib.contextmanager
    def writing(self, *paths: Path) -> Iterator[None]:
        """Let files, or all below a folder, be written, and list all that the project relies on and that is there.

        While they are written they are not listed: who is killed in between leaves no file that differs.  So what is
        not listed, also in a project from before there was a ledger, is taken up as it is.
        """
        ledger = Ledger(self.root)
        names = {path.relative_to(self.root).as_posix() for path in paths}
        ledger.drop(
            name for name in ledger.files if name in names or any(name.startswith(f"{folder}/") for folder in names)
        )
        yield
        there = (path.relative_to(self.root).as_posix() for glob in RELIED_ON for path in sorted(self.root.glob(glob)))
        ledger.add(*(name for name in there if not ledger.holds(name)))

    def waiting(self) -> list[str]:
        """Return the ids of the last batch's queries that nobody answered or skipped yet."""
        if not self.batches:
            return []
        said = {query for query, _ in self.read_answers().latest}
        return [query.id for query in self.read_queries(self.batches) if query.id not in said]

    def admit(self, content: dict[str, Any]) -> None:
        """Raise ``InputError`` if the directory is another project's or holds something else."""
        if self.exists:
            kept = self.manifest()
            if kept.get("model") != content["model"]:
                raise InputError(
                    f"{self.root} began with other model files than --model has now; put them back, or begin another "
                    "--project"
                )
            self.same(content)
        self.suits()

    def suits(self) -> None:
        """Raise ``InputError`` if the directory holds something else than a project."""
        if self.exists:
            return
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{self.root} is a file, not a folder; choose another --project")
        there = sorted(path.name for path in self.root.iterdir()) if self.root.exists() else []
        strange = [name for name in there if name not in OWN and not name.startswith(".")]
        if strange:
            raise InputError(f"{self.root} holds something else ({strange[0]}); choose another --project")

    def begin(self, content: dict[str, Any]) -> None:
        """Write the manifest, unless it is there; the rule of choice may be another than that of the last batch."""
        self.admit(content)
        if not self.exists or self.manifest()["settings"]["strategy"] != content["settings"]["strategy"]:
            write_json(self.manifest_path, {"format": FORMAT} | content)

    def same(self, content: dict[str, Any]) -> None:
        """Raise ``InputError`` if the project's own settings are not these, naming the first that differs.

        The strategy may differ: V counts the labelled duels, whoever chose them.
        """
        kept = self.manifest()
        kept["settings"] = kept["settings"] | {"strategy": content["settings"]["strategy"]}
        for name in sorted(content):
            if kept.get(name) != content[name]:
                before, now = kept.get(name), content[name]
                if isinstance(before, dict) and isinstance(now, dict):
                    name, before, now = next(
                        (f"{name}.{part}", before.get(part), now.get(part))
                        for part in sorted({*before, *now})
                        if before.get(part) != now.get(part)
                    )
                raise InputError(
                    f"{self.root} is a project with another {name} ({before!r}, not {now!r}); leave the option out or "
                    "choose another --project"
                )


@contextlib.contextmanager
def held(root: Path) -> Iterator[None]:
    """Hold a folder alone while the block runs; of folders made here, those in which nothing was written go again."""
    with made(root), alone(root):
        yield


def located(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which the project is positional, where it may be ``--project``'s as for ``select``."""
    return [word.removeprefix("--project=") for word in arguments if word != "--project"]
