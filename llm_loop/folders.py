"""Owns how a model that a user brings is found, checked and read: policies and reward models alike.

What a folder can have wrong is told in one line before it costs any time.  No weight is made up, no pickle is opened,
no code of a folder runs unless it is trusted, and nothing is asked on the terminal.  Knows nothing of adapters that are
trained, tokens that are drawn or rewards.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.runs.text import lines
from llm_loop.seeding import seeded

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""Patterns of the files that are read of a folder."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
ADAPTER = "adapter_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode and its tokenizer."""

    model: Any
    tokenizer: Any


def locate(name: str, what: str, known: Sequence[str], trust: bool = False) -> Path:
    """Return the folder of a model: a directory, or a hub id's snapshot, from the local cache if it is there.

    ``what`` and ``known`` serve the ``InputError`` for a name that is neither.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise InputError(f"{what} {name!r} is a file; give the directory of a model (config, safetensors, tokenizer)")
    parent = name.partition("/")[0]
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/") or Path(parent).is_dir():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*") if p.is_dir()], 1)
        raise InputError(
            f"{what} {name!r}: there is no such directory" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    reason = ""
    for offline in (True, False):
        try:
            patterns = [*FILES, "*.py"] if trust else list(FILES)
            found = snapshot_download(name, local_files_only=offline, allow_patterns=patterns, ignore_patterns="*/*")
        except Exception as error:  # the hub's library raises what its transports raise: a dozen unrelated classes
            reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        else:
            if any(Path(found).glob("*.safetensors")) or not offline:
                return Path(found)
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}? It" if near else "It"
    raise InputError(
        f"cannot load {what} {name!r}: {hint} is no name known here ({', '.join(known)}) and no directory, and the hub "
        f"does not give it ({reason[:120]})"
    )


def load(auto: Any, folder: Path, what: str, dtype: str = "float32", trust: bool = False, **more: Any) -> Loaded:
    """Return a folder's model and tokenizer; an adapter (PEFT) is merged into the model it was made for.

    ``auto`` is the library's class that builds the model.  Raises ``InputError`` for what cannot be used: weights that
    are missing, left over, misshapen, cut short, pickled, quantised or not finite, and code that is not trusted.
    """
    if (folder / ADAPTER).exists():
        return _merged(auto, folder, what, dtype, trust)
    model, missing = _model(auto, folder, what, dtype, trust, **more)
    _none_missing(missing, folder, what)
    return Loaded(model, load_tokenizer(folder, what, trust))


def load_tokenizer(folder: Path, what: str, trust: bool = False) -> Any:
    """Return a folder's tokenizer; of an adapter without one, that of what it was made for."""
    lineage = _lineage(folder, what)
    own = next((one for one in lineage if any((one / name).exists() for name in TOKENIZER)), lineage[-1])
    with _told(f"{what} {folder}: its tokenizer cannot be loaded"):
        return AutoTokenizer.from_pretrained(own, local_files_only=True, trust_remote_code=trust)


def load_config(folder: Path, what: str, trust: bool = False) -> Any:
    """Return the library's config of a folder's model; of an adapter, of the model that it was made for."""
    base = _lineage(folder, what)[-1]
    settings(base, what)
    with _told(f"{what} {folder}: its config.json cannot be read"):
        return AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=trust)


def fingerprint(folder: Path) -> str:
    """Return a SHA-256 over the names and contents of all files that are read of a model's folder.

    Of an adapter's folder, the files of what it was made for count too.
    """
    digest = hashlib.sha256()
    for one in _lineage(folder, "model"):
        for file in sorted({file for pattern in FILES for file in one.glob(pattern)}):
            with file.open("rb") as content:
                digest.update(file.name.encode() + b"\0" + hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def settings(folder: Path, what: str) -> dict[str, Any]:
    """Return what a folder's config.json holds."""
    return _json(folder / "config.json", what)


def check_finite(model: nn.Module, what: str) -> None:
    """Raise ``InputError`` if a weight is not a finite number."""
    bad = [name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())]
    if bad:
        raise InputError(f"{what} has weights that are not finite numbers: {_first(bad)}")


def _model(auto: Any, folder: Path, what: str, dtype: str, trust: bool, **more: Any) -> tuple[Any, list[str]]:
    """Return the model of a folder, and the names of weights that it has and the files have not."""
    config = settings(folder, what)
    if config.get("quantization_config"):
        method = dict(config["quantization_config"]).get("quant_method", "some kind")
        raise InputError(f"{what} {folder} is quantised ({method}); gradients need the weights in full: bring those")
    for file in _weights(folder, what):
        _check_weights(file, what)
    with _told(f"{what} {folder} cannot be loaded"), seeded(Key(0)):  # the library draws what it finds missing
        known = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust, **more)
        model, report = auto.from_pretrained(
            folder,
            config=known,
            dtype=DTYPES[dtype],
            local_files_only=True,
            trust_remote_code=trust,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    if report["mismatched_keys"]:
        name, found, wanted = sorted(report["mismatched_keys"])[0]
        raise InputError(
            f"{what} {folder}: {len(report['mismatched_keys'])} weights do not fit its config.json, first {name}: "
            f"{list(found)} in the files, {list(wanted)} in the model"
        )
    # A reward adapter brings its head, and has no use for the output layer of the language model it was made for.
    unused = ("lm_head.", "embed_out.") if "num_labels" in more else ()
    if names := sorted(name for name in report["unexpected_keys"] if not name.startswith(unused)):
        raise InputError(
            f"{what} {folder}: its files hold {len(names)} weights that a {type(model).__name__} does not have: "
            f"{_first(names)}; give them the names of that class"
        )
    check_finite(model, f"{what} {folder}")
    return model.eval(), sorted(report["missing_keys"])


def _none_missing(missing: Sequence[str], folder: Path, what: str) -> None:
    if missing:
        raise InputError(
            f"{what} {folder}: its files lack {len(missing)} weights of the model: {_first(missing)}; none is made up"
        )


def _merged(auto: Any, folder: Path, what: str, dtype: str, trust: bool) -> Loaded:
    """Return the model that a PEFT folder belongs to, with the adapter, and those it was made for, merged into it."""
    *adapters, base = _lineage(folder, what)
    brought = {adapter: _Brought.of(adapter, what) for adapter in adapters}
    heads = [one.labels for one in brought.values() if one.kind.task_type == "SEQ_CLS"]
    model, missing = _model(auto, base, what, dtype, trust, **({"num_labels": heads[0]} if heads else {}))
    known = {name for one in brought.values() for name in one.shapes}
    _none_missing([name for name in missing if f"base_model.model.{name}" not in known], base, what)
    for adapter, one in reversed(brought.items()):
        model = one.merged_into(model, what, adapter)
    check_finite(model, f"{what} {folder}")
    return Loaded(model.eval(), load_tokenizer(folder, what, trust))


@dataclass(frozen=True)
class _Brought:
    """What an adapter's folder holds."""

    kind: PeftConfig
    shapes: dict[str, list[int]]

    @classmethod
    def of(cls, folder: Path, what: str) -> _Brought:
        """Read a folder, but for its weights."""
        file = folder / "adapter_model.safetensors"
        if not file.exists():
            raise InputError(f"{what} {folder} has no {file.name}" + _pickled(folder))
        _check_weights(file, what)
        with safe_open(file, "pt") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 (no mapping)
        with _told(f"{what} {folder}: its adapter cannot be read"):
            kind = PeftConfig.from_pretrained(folder)
        if kind.is_prompt_learning:
            raise InputError(
                f"{what} {folder}: an adapter of kind {kind.peft_type.value} cannot be merged into weights"
            )
        return cls(kind, shapes)

    @property
    def labels(self) -> int:
        """How many a classifier's adapter has."""
        heads = [shape[0] for name, shape in self.shapes.items() if "lora_" not in name and len(shape) == 2]
        return min(heads, default=1)

    def merged_into(self, model: Any, what: str, folder: Path) -> Any:
        """Return the model with the adapter in its weights."""
        with _told(f"{what} {folder}: its adapter does not fit the model it was made for"), seeded(Key(0)):
            adapted: Any = PeftModel.from_pretrained(model, folder, config=self.kind)
            names = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
            if odd := sorted(names ^ set(self.shapes)):
                raise InputError(
                    f"{what} {folder}: {len(odd)} weights are only in the adapter or the model: {_first(odd)}"
                )
            return adapted.merge_and_unload()


def _lineage(folder: Path, what: str) -> list[Path]:
    """Return a model's folder; of an adapter, its folder, that of what it was made for, and so on to a model."""
    found = [folder]
    while (found[-1] / ADAPTER).exists():
        base = _base(found[-1], what)
        if base.resolve() in {one.resolve() for one in found}:
            raise InputError(f"{what} {folder} is an adapter that was made, in the end, for itself")
        found.append(base)
    return found


def _base(folder: Path, what: str) -> Path:
    """Return the folder of what an adapter was made for."""
    name = _json(folder / ADAPTER, what).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InputError(f"{what} {folder} is an adapter that does not say which model it was made for")
    beside = folder / name
    return beside if beside.is_dir() else locate(name, f"{what} {folder} was made for, model", ())


def _weights(folder: Path, what: str) -> list[Path]:
    """Return the files that hold a folder's weights."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if not index.exists():
        raise InputError(f"{what} {folder} has no {whole.name}" + _pickled(folder))
    shards = _json(index, what).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{what}: {index} names no weights")
    return [folder / Path(name).name for name in sorted(set(shards.values()))]


def _pickled(folder: Path) -> str:
    found = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    return (
        f" but {found[0]}, a pickle, which may run code when it is opened; convert it to safetensors" if found else ""
    )


def _check_weights(file: Path, what: str) -> None:
    """Raise ``InputError`` if a file of weights is not whole."""
    try:
        with file.open("rb") as content:
            start = content.read(64)
    except OSError as error:
        raise InputError(f"{what}: cannot read {file}: {error.strerror}") from None
    _no_pointer(start, file, what)
    try:
        with safe_open(file, "pt"):
            pass
    except Exception as error:  # safetensors has no public base class of its errors
        size = file.stat().st_size
        raise InputError(f"{what}: {file} ({size} bytes) is empty, cut short or damaged: {_reason(error)}") from None


def _no_pointer(start: bytes, file: Path, what: str) -> None:
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{what}: {file} is a git-LFS pointer, not the file itself; run: git lfs pull")


def _json(file: Path, what: str) -> dict[str, Any]:
    try:
        content = file.read_bytes()
        _no_pointer(content, file, what)
        value = json.loads(content)
    except OSError as error:
        raise InputError(f"{what} {file.parent}: cannot read its {file.name}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what}: {file} is not JSON") from None
    if not isinstance(value, dict):
        raise InputError(f"{what}: {file} holds no settings")
    return value


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn whatever a library raises over a foreign folder into one line, and let it print nothing of its own."""
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a foreign folder can break the libraries in any manner
        if "trust_remote_code" in str(error):
            raise InputError(f"{what}: it needs code of its own, which runs only with --trust-remote-code") from None
        raise InputError(f"{what}: {_reason(error)}") from None
    finally:
        transformers.utils.logging.set_verbosity(level)


def _reason(error: Exception) -> str:
    told = [line.strip() for line in lines(str(error)) if line.strip()]
    return (told[0] if told else type(error).__name__)[:200]


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
