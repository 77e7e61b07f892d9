"""Owns where the files of a project are, and what makes a directory one.

``project.json`` (what the project is: its model and settings, fixed when it begins), ``pool.jsonl``,
``queries/01.jsonl``, ``queries/02.jsonl``, … (the batches), ``answers.jsonl``, ``question.txt`` (what people are asked,
where it is not the default), ``features/`` (what can be computed again), ``models/01/``, … (the model after each batch,
as PEFT folders), ``preferences.jsonl`` and ``index.html``.
Knows nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bandits.core.errors import InputError
from bandits.runs.files import read_json, write_json
from labelling import queries
from labelling.answers import Answers
from labelling.queries import Query

MANIFEST = "project.json"
FORMAT = 1
OWN = ("pool.jsonl", "features", "drawn", "labelled.jsonl")
"""What a command that was killed may leave behind before the manifest is there."""


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
        content: dict[str, Any] = read_json(self.manifest_path, dict)
        if content.get("format") != FORMAT:
            raise InputError(
                f"{self.manifest_path} is of format {content.get('format')!r}, and this version reads {FORMAT}"
            )
        return content

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


def located(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which the project is positional, where it may be ``--project``'s as for ``select``."""
    return [word.removeprefix("--project=") for word in arguments if word != "--project"]
