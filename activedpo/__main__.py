"""The command line of all programs: ``activedpo PROGRAM …``, the same as ``python -m`` of the program's package."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import bandits
from bandits import __version__
from bandits.core.errors import InputError, unknown
from bandits.runs import command


@dataclass(frozen=True)
class Program:
    """Where a program lives, what it is for, and which extra installs what it needs."""

    module: str
    about: str
    extra: str = ""


PROGRAMS = {
    "simulate": Program("bandits.__main__", "which duels are worth a label? strategies against each other"),
    "map": Program("bandits.map", "what choosing saves, over pools and answers of many kinds"),
    "align": Program("llm_loop.__main__", "align a language model, actively and at random", "llm"),
    "select": Program("labelling.select", "on your own pool: which duels to have answered next", "llm"),
    "train": Program("labelling.train", "train your model on the answered duels, by DPO", "llm"),
    "loop": Program("labelling.loop", "where a project stands, and its next command", "llm"),
    "theory": Program("theory_checks.__main__", "check the theory: claims, verdicts, controls that must fail"),
    "bench": Program("benchmarks.__main__", "measure the hot paths against public peers (in a checkout)"),
    "assets": Program("llm_loop.data.assets", "fetch and check the models, ratings and prompts", "llm"),
    "label": Program("labelling.label", "have duels answered by people: a page, a terminal, imports", "llm"),
    "report": Program("llm_loop.report.page", "write the pages of finished alignment runs again", "llm"),
}
SHELLS = ("bash", "zsh", "fish")


def usage() -> list[str]:
    """Return what there is, a line each."""
    return [
        "usage: activedpo PROGRAM ...\n\nprograms:",
        *(f"  {name:<10}{program.about}" for name, program in PROGRAMS.items()),
        "\nactivedpo PROGRAM --help shows more; activedpo --version; activedpo --completion bash|zsh|fish prints a",
        "script that completes programs, presets and options.",
    ]


def load(name: str) -> Any:
    """Import a program; ``InputError`` with what to install if it, or what it needs, is not there."""
    program = PROGRAMS[name]
    home = Path(bandits.__file__).parents[1]
    if name == "bench" and (home / "benchmarks").is_dir():
        sys.path.append(str(home))  # a checkout, whose benchmarks no installation has
    try:
        return importlib.import_module(program.module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == program.module.partition(".")[0]:
            raise InputError(f"activedpo {name} works in a checkout of the repository, not from the wheel") from None
        extra = f"[{program.extra}]" if program.extra else ""
        raise InputError(f"activedpo {name} needs {missing!r}: pip install 'activedpo-testbed{extra}'") from None


def completion(shell: str) -> None:
    """Print a shell's completion script, from the same presets and options that the programs parse.

    A program names them as ``COMMAND``, with presets, or as ``OPTIONS``, without.
    """
    import tyro

    if shell not in SHELLS:
        raise unknown("shell", shell, SHELLS)
    programs = []
    for name, program in PROGRAMS.items():
        try:
            module = load(name)
        except InputError:
            continue
        if options := getattr(module, "OPTIONS", None):
            programs.append(Annotated[options, tyro.conf.subcommand(name, description=program.about)])
        found = getattr(module, "COMMAND", None)
        if found is None:
            continue
        presets = [
            Annotated[
                command.Options.__class_getitem__(type(settings)),  # type: ignore[attr-defined]
                tyro.conf.subcommand(preset, default=command.Options(settings=settings), description=text),
            ]
            for preset, (text, settings) in found.presets.items()
        ]
        whole = Union.__getitem__(tuple(presets))
        programs.append(Annotated[whole, tyro.conf.subcommand(name, description=program.about)])
    tree: Any = Union.__getitem__(tuple(programs))
    tyro.cli(tree, prog="activedpo", args=["--tyro-print-completion", shell])


def run(arguments: Sequence[str]) -> int:
    """Run the program that the first word names."""
    if not arguments or arguments[0] in ("-h", "--help"):
        command.say(*usage())
        return 0
    name, *rest = arguments
    if name == "--version":
        command.say(f"activedpo {__version__}")
        return 0
    if name == "--completion":
        if len(rest) != 1:
            raise InputError(f"--completion takes one shell: {', '.join(SHELLS)}")
        completion(rest[0])
        return 0
    if name not in PROGRAMS:
        raise unknown("program", name, PROGRAMS)
    module = load(name)
    if hasattr(module, "COMMAND"):
        return command.run(dataclasses.replace(module.COMMAND, program=f"activedpo {name}"), rest)
    status: int = module.main(rest)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return command.guard(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
