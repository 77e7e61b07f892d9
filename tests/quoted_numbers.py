"""Compare the numbers that the documents quote with what their commands print.

``docs/numbers.toml`` lists commands; under each the quotes: a file, a text in it, and the beginning of the line that
prints the text's numbers, of the run's ``findings.json`` or of the committed ``page`` that the command wrote.  ``python
tests/quoted_numbers.py`` runs the cheap ones, with ``--all`` all (hours), with a word those commands that hold it.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
INTERVAL = re.compile(r"\[[^\]\[()]*\d[^\]\[()]*, [^\]\[()]*\d[^\]\[()]*\]")
NEAR = 0.03
"""How far a number may move from one processor to another, of itself; and one unit of the last digit quoted."""


@dataclass(frozen=True)
class Quote:
    """A text of a document, and the line that prints its numbers."""

    command: str
    cheap: bool
    file: str
    text: str
    line: str
    page: str = ""
    """a committed page that has the line, written by the command, which takes hours"""


def quotes() -> list[Quote]:
    """Return all quotes of ``docs/numbers.toml``."""
    table = tomllib.loads((ROOT / "docs/numbers.toml").read_text(encoding="utf-8"))
    return [
        Quote(c["run"], c.get("cheap", False), q["file"], q["text"], q["line"], c.get("page", ""))
        for c in table["command"]
        for q in c["quote"]
    ]


def complete() -> list[tuple[str, str]]:
    """Return (file, heading) of the sections whose every interval must be a quote's; no heading: the whole file."""
    table = tomllib.loads((ROOT / "docs/numbers.toml").read_text(encoding="utf-8"))
    return [(file, heading) for file, _, heading in (entry.partition("#") for entry in table["complete"])]


def flat(text: str) -> str:
    """Return a text on one line, with plain minus signs."""
    return " ".join(text.replace("−", "-").split())


def section(file: str, heading: str) -> str:
    """Return the part of a document under a heading of the second level that begins with these words."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if not heading:
        return text
    return next(part for part in re.split(r"^## ", text, flags=re.M) if part.startswith(heading))


def unlisted() -> list[str]:
    """Return intervals in complete sections that no quote lists."""
    listed = [flat(quote.text) for quote in quotes()]
    return [
        f"{file}: {interval}"
        for file, heading in complete()
        for interval in INTERVAL.findall(flat(section(file, heading)))
        if not any(interval in text for text in listed)
    ]


def agrees(text: str, printed: str) -> bool:
    """Whether the numbers of a text stand in a printed line in the same order, next to each other, near enough."""
    ours, theirs = NUMBER.findall(flat(text)), NUMBER.findall(flat(printed))

    def near(a: str, b: str) -> bool:
        digit = 10.0 ** -len(a.partition("e")[0].partition(".")[2])
        return abs(float(a) - float(b)) <= max(NEAR * abs(float(b)), 1.01 * digit)

    starts = range(len(theirs) - len(ours) + 1)
    return any(all(map(near, ours, theirs[start:])) for start in starts)


def check(command: str, output: Path) -> list[str]:
    """Run a command into a folder, or read its committed page; say which of its quotes it does not print."""
    asked = [quote for quote in quotes() if quote.command == command]
    if page := asked[0].page:
        lines = [line.lstrip("- ") for line in (ROOT / page).read_text("utf-8").splitlines()]
    else:
        _, *rest = shlex.split(command)
        given = [sys.executable, *rest, "--output", str(output)]
        subprocess.run(given, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        lines = [line for path in sorted(output.rglob("findings.json")) for line in json.loads(path.read_text("utf-8"))]
    wrong = []
    for quote in asked:
        printed = [line for line in lines if line.startswith(quote.line)]
        if not any(agrees(quote.text, line) for line in printed):
            wrong.append(f"{quote.file} quotes {quote.text!r}; printed: {printed or 'no such line'}")
    return wrong


def main(arguments: list[str]) -> int:
    """Check the commands asked for; return the exit status."""
    commands = dict.fromkeys(q.command for q in quotes() if q.cheap or q.page or "--all" in arguments)
    for word in arguments:
        commands |= dict.fromkeys(q.command for q in quotes() if word in q.command)
    wrong = [f"no quote lists {interval}" for interval in unlisted()]
    for command in commands:
        with tempfile.TemporaryDirectory() as folder:
            found = check(command, Path(folder))
        print(f"{command}: {'; '.join(found) or 'all quotes agree'}")
        wrong += found
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
