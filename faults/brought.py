"""Cases: texts, prompt files and models as people bring them; each runs to its page or is refused in one line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.harness import Case, contents, play

SMALL = (
    *("--strategies", "random", "--rounds", "1", "--heldout", "2", "--heldout-duels", "1"),
    *("--heldout-between", "1", "--probes", "1"),
)
PROMPTS = [
    f"The film number {i} is about a {word} who"
    for i, word in enumerate(["baker", "sailor", "clerk", "judge", "cook"] * 6)
]

TEXTS = {
    "U+2028": "one\u2028two",
    "U+2029": "one\u2029two",
    "U+0085": "one\u0085two",
    "a carriage return": "one\rtwo\r\nthree",
    "NUL": "one\0two",
    "right-to-left marks": "one \u202ethree\u202c \u200ftwo",
    "markup": "<script>alert(1)</script> & \"quotes\" 'too'",
    "a comma and a quote": 'one, "two", three',
    "a byte order mark": "\ufeffone",
    "combining marks": "e\u0301" * 40,
    "emoji": "a family: \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "NA": "NA",
}


def _lines(rows: list[object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FILES: dict[str, tuple[str, bytes, bool | None]] = {
    # name: file, content, whether it must run (None: either, but never a traceback)
    "a byte order mark before the file": ("p.jsonl", b"\xef\xbb\xbf" + _lines([{"prompt": p} for p in PROMPTS]), True),
    "CRLF line ends": ("p.jsonl", _lines([{"prompt": p} for p in PROMPTS]).replace(b"\n", b"\r\n"), True),
    "compressed": ("p.jsonl.gz", gzip.compress(_lines([{"prompt": p} for p in PROMPTS])), True),
    ".ndjson": ("p.ndjson", _lines([{"prompt": p} for p in PROMPTS]), True),
    ".JSONL": ("p.JSONL", _lines([{"prompt": p} for p in PROMPTS]), True),
    "messages": ("p.jsonl", _lines([{"prompt": [{"role": "user", "content": p}]} for p in PROMPTS]), None),
    "UTF-16": ("p.jsonl", _lines([{"prompt": p} for p in PROMPTS]).decode().encode("utf-16"), False),
    "empty": ("p.jsonl", b"", False),
    "binary": ("p.jsonl", bytes(range(256)) * 8, False),
    "cut within a row": ("p.jsonl", _lines([{"prompt": p} for p in PROMPTS])[:-20], False),
    "nested 100,000 deep": ("p.jsonl", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", False),
    "a lone surrogate": ("p.jsonl", b'{"prompt": "half \\ud83d of a pair"}\n' * 30, False),
    "no such field": ("p.jsonl", _lines([{"query": p} for p in PROMPTS]), False),
    "numbers for prompts": ("p.jsonl", _lines([{"prompt": i} for i in range(30)]), False),
    "null prompts": ("p.jsonl", _lines([{"prompt": None}] * 30), False),
    "NaN": ("p.jsonl", b'{"prompt": NaN}\n' * 30, False),
}


def cases() -> Iterator[Case]:
    """Yield all of them."""
    for name, text in TEXTS.items():

        def spoken(folder: Path, text: str = text) -> str:
            (folder / "p.jsonl").write_bytes(_lines([{"prompt": f"{p} {text}"} for p in PROMPTS]))
            outcome = play("align", ["smoke", "--prompts", "p.jsonl", *SMALL, "--jobs", "1"], folder)
            if (
                not outcome.status
                and (again := play("align", ["smoke", "--prompts", "p.jsonl", *SMALL], folder)).failed
            ):
                return f"read again: {again.failed}"
            return "" if not outcome.failed else outcome.refused

        yield Case("text", f"align: {name} in every prompt", spoken)
    for name, (file, content, runs) in FILES.items():

        def given(folder: Path, file: str = file, content: bytes = content, runs: bool | None = runs) -> str:
            (folder / file).write_bytes(content)
            outcome = play("align", ["smoke", "--prompts", file, *SMALL, "--jobs", "1"], folder)
            if runs or (runs is None and not outcome.status):
                return outcome.failed
            left = [n for n in contents(folder) if n != file]
            return outcome.refused or (f"refused, but left {left[0]}" if left else "")

        yield Case("file", f"align: a prompt file, {name}", given)
    for name, make in MODELS.items():

        def loaded(folder: Path, make: Callable[[Path], None] = make) -> str:
            (folder / "model").mkdir()
            make(folder / "model")
            outcome = play("align", ["smoke", "--model", "model", *SMALL, "--jobs", "1"], folder)
            left = [n for n in contents(folder) if not n.startswith("model/")]
            return outcome.refused or (f"refused, but left {left[0]}" if left else "")

        yield Case("file", f"align: a model folder, {name}", loaded)


def _empty(folder: Path) -> None:
    """Leave it empty."""


def _pointers(folder: Path) -> None:
    _config(folder)
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (folder / "model.safetensors").write_text(text, encoding="ascii")


def _config(folder: Path) -> None:
    settings = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "vocab_size": 64}
    settings |= {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps(settings), encoding="ascii")


def _pickle(folder: Path) -> None:
    _config(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")


def _foreign(folder: Path) -> None:
    (folder / "config.json").write_text(
        json.dumps({"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "strange.Strange"}}), encoding="ascii"
    )
    code = "raise SystemExit('foreign code ran')\n"
    (folder / "strange.py").write_text(code, encoding="ascii")


def _noise(folder: Path) -> None:
    (folder / "config.json").write_bytes(bytes(range(256)))


MODELS: dict[str, Callable[[Path], None]] = {
    "empty": _empty,
    "a config and no weights": _config,
    "pointers in place of weights": _pointers,
    "a pickle": _pickle,
    "foreign code": _foreign,
    "noise": _noise,
}
