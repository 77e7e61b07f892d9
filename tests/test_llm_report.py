"""The page of a run: from a folder of tables to words, on a small run made up here with known truth."""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_runs import BATCH, ROUNDS, close, made_up
from scipy import stats

from bandits.runs.directory import VOLATILE
from bandits.runs.files import write_json
from bandits.runs.stats import share
from llm_loop import tables
from llm_loop.report import findings
from llm_loop.report import page as report
from llm_loop.studies import page as study
from llm_loop.studies.plans import STUDIES
from llm_loop.studies.read import read as read_table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_up(tmp_path_factory.mktemp("run"), {"random": 0.15, "activedpo-normalised": 0.17})
    report.write(folder)
    return folder


def page_of(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.mark.campaign
def test_the_page_is_one_file_that_loads_nothing(run: Path) -> None:
    page = page_of(run)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") or source == "timing.html" for source in sources)
    assert not re.search(r"https?://|<script|@import|url\(", page)
    assert page.count("data:image/svg") == len(list((run / "figures").glob("*.svg"))) == 5
    assert page.rstrip().endswith("</html>")


def test_the_page_escapes_what_models_and_data_say(run: Path) -> None:
    page = page_of(run)
    assert "Prompt &lt;0&gt; &amp; so on" in page
    assert "Prompt <0>" not in page


def test_the_page_says_what_was_measured(run: Path) -> None:
    """The main numbers of the page, computed here again from the cells' files, the slow way."""
    page, cells = page_of(run), run / "cells"
    means = {}
    for strategy, r in itertools.product(("random", "activedpo-normalised"), (0, ROUNDS)):
        values = []
        for seed in range(3):
            frame = tables.frame(tables.Evaluation, cells / f"{strategy}--seed{seed}")
            values.append(float(frame[frame["round"] == r]["reward"].mean()))
        means[strategy, r] = values
    for strategy in ("random", "activedpo-normalised"):
        start, end = np.mean(means[strategy, 0]), np.mean(means[strategy, ROUNDS])
        assert (
            f"{strategy}: held-out reward rose, from {start:.2f} to {end:.2f} after 24 labels: +{end - start:.2f} ["
            in page
        )
    differences = np.subtract(means["activedpo-normalised", ROUNDS], means["random", ROUNDS])
    said = f"{np.mean(differences):+.3f}".replace("-", "−")
    assert f'<td class="n">{said}</td>' in page
    assert "gains anything over random is undecided" in page
    assert "sentiment valence" in page
    assert "<td>initial model against itself</td>" in page
    assert "The win rate of the initial model against itself, which is to be 50 %: reward" in page
    assert "length, chosen ÷ rejected" in page
    assert "activedpo-normalised 1.2 in round 1, 1.2 in round 4" in page
    assert "it can be gamed" in page


def test_the_page_gives_reward_at_equal_kl(run: Path) -> None:
    """From the cells' files again, by plain loops: both curves at the smaller last KL, where they first come to it."""
    gaps, levels = [], []
    for seed in range(3):
        curves = []
        for strategy in ("activedpo-normalised", "random"):
            frame = tables.frame(tables.Evaluation, run / "cells" / f"{strategy}--seed{seed}")
            rounds = [frame[frame["round"] == r] for r in range(ROUNDS + 1)]
            curves.append([(float((own["log_ratio"] / 12).mean()), float(own["reward"].mean())) for own in rounds])
        levels.append(min(curve[-1][0] for curve in curves))
        read = []
        for curve in curves:
            after = next(r for r in range(1, ROUNDS + 1) if curve[r][0] >= levels[-1])
            (low, below), (high, above) = curve[after - 1], curve[after]
            read.append(below + (above - below) * (levels[-1] - low) / (high - low))
        gaps.append(read[0] - read[1])
    mean, half = np.mean(gaps), stats.t.ppf(0.975, 2) * np.std(gaps, ddof=1) / np.sqrt(3)
    interval = findings.span(mean - half, mean + half)
    said = (
        "Reward at equal KL from the initial model, less random's, 3 paired seeds: "
        f"activedpo-normalised {findings.number(mean)} {interval} at {np.mean(levels):.2f} nats a token (undecided"
    )
    found = json.loads((run / "findings.json").read_text())
    assert f"{said})." in found[0]
    assert sum(line.startswith(f"{said}; about ") and line.endswith("an effect of this size).") for line in found) == 1
    assert pd.read_csv(run / "frontier.csv")["difference"].tolist() == [pytest.approx(mean)]


def test_many_strategies_at_equal_kl_are_counted() -> None:
    words = ["better", "worse", "undecided", "better"]
    rows = pd.DataFrame({"strategy": list("abcd"), "verdict": words, "reason": ""})
    equal = rows.assign(kl=0.1, difference=0.2, low=0.1, high=0.3, seeds=8)
    assert findings.frontier(equal, "random") == (
        "At equal KL from the initial model, 2 did better, 1 did worse than random of 4; the others are undecided."
    )
    assert findings.frontier(equal, "random", reasons=True).count("at 0.10 nats a token") == 4


@pytest.mark.campaign
def test_a_strategy_that_is_better_or_worse_is_called_so(tmp_path: Path) -> None:
    for slope, word in ((0.6, "better"), (0.0, "worse")):
        folder = made_up(tmp_path / word, {"random": 0.3, "activedpo": slope}, seeds=6)
        report.write(folder)
        said = json.loads((folder / "findings.json").read_text())
        assert f"activedpo did {word} than random." in said[0]
        verdicts = pd.read_csv(folder / "comparison.csv")["verdict"]
        assert set(verdicts) <= {word, "undecided"}
        assert word in set(verdicts)


@pytest.mark.parametrize(
    ("measure", "change", "words"),
    [
        ("degenerate", 0.04, ""),
        ("degenerate", 0.06, "random: more responses are empty or repetitive, 7% by the end."),
        ("distinct_2", -0.04, ""),
        ("distinct_2", -0.06, "random: responses repeat themselves more, −0.06 distinct pairs."),
    ],
)
def test_a_sign_of_repetition_takes_more_than_a_twentieth(measure: str, change: float, words: str) -> None:
    """Each change lies beyond its interval."""
    still = {"mean": 0.01, "change": 0.0, "change_low": 0.0, "change_high": 0.0}
    names = ("kl_per_token", "degenerate", "distinct_2", "corpus_distinct_2", "tokens", "judge", "fluency", "ended")
    last = dict.fromkeys(names, still) | {"reward": still | {"change_low": 0.1}, "judge": still | {"change_low": 0.1}}
    last |= {measure: {"mean": 0.01 + change, "change": change, "change_low": change, "change_high": change}}
    last["corpus_distinct_2"] = first = {"mean": 0.9}
    each = pd.DataFrame({"seed": [0], "fluency_change": [0.0], "kl_per_token": [0.1]})
    row = {"strategy": "random", "last": last, "first": {"corpus_distinct_2": first, "fluency": still}, "each": each}
    fit = pd.DataFrame({"chosen_log_ratio": [0.1], "chosen_fell_share": [0.4], "chosen_length": [12.0]})
    row |= {"fit": fit, "longer": share(12, 24), "wins": {"rate": 0.5}}
    said = findings.health([row | {"bits": (1.2, 1.2), "start": {"tokens": 12.0}}])
    assert said[1:] == ([words] if words else [])
    assert said[0].startswith("There are signs of gaming" if words else "No sign of gaming in this run")


@pytest.mark.campaign
@pytest.mark.parametrize(("lost", "sign"), [(0.01, False), (0.2, True)])
def test_repetition_is_a_sign_where_it_is_more_than_a_hundredth(lost: float, sign: bool, tmp_path: Path) -> None:
    """The same for every response, so that the interval excludes 0 in either case."""
    folder = made_up(tmp_path, {"random": 0.3})
    for cell in (folder / "cells").iterdir():
        rows = tables.read(tables.Evaluation, cell)
        changed = [replace(row, distinct_2=0.9 - lost * (row.round == ROUNDS)) for row in rows]
        tables.write(tables.Evaluation, cell, changed)
        close(cell)
    report.write(folder)
    page = page_of(folder)
    assert ("repeat themselves more" in page) == sign
    assert ("There are signs of gaming in this run." in page) == sign


@pytest.mark.campaign
def test_a_gamed_reward_is_called_so(tmp_path: Path) -> None:
    folder = made_up(tmp_path, {"random": 0.3}, judge_follows=False, pool="ours.jsonl")
    for cell in (folder / "cells").iterdir():
        evaluations = tables.read(tables.Evaluation, cell)
        worse = [replace(row, distinct_2=0.3, tokens=20) if row.round == ROUNDS else row for row in evaluations]
        tables.write(tables.Evaluation, cell, worse)
        samples = tables.read(tables.Sample, cell)
        rounds = tables.read(tables.Round, cell)
        tables.write(tables.Round, cell, [replace(row, bits_per_byte=1.2 + 0.05 * row.round) for row in rounds])
        alike = [replace(row, response="great great great") if row.round == ROUNDS else row for row in samples]
        tables.write(tables.Sample, cell, alike)
        close(cell)
    report.write(folder)
    page = page_of(folder)
    assert "There are signs of gaming in this run." in page
    assert "The pool’s responses were there before" in page
    for sign in (
        "the judge did not follow",
        "empty or repetitive, 100%",
        "repeat themselves more",
        "foretells what people wrote at 1.40 bits a byte, the initial model at 1.20",
        "grew alike",
        "changed in length by +8.0 tokens",
    ):
        assert sign in page
    assert "it takes random and one other" in page


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("nats", "verdict", "words"),
    [
        (-5.70, "The text degenerated in this run", "the text broke down"),
        (-4.20, "The text degenerated in this run", "the text lost fluency"),
        (-3.57, "No sign of gaming in this run", "random −3.67 → −3.57"),
    ],
)
def test_text_that_the_initial_model_finds_unlikely_is_called_degenerate(
    tmp_path: Path, nats: float, verdict: str, words: str
) -> None:
    """The reward rises, the judge follows and no word is repeated: only fluency tells broken text from whole."""
    folder = made_up(tmp_path, {"random": 0.3})
    for cell in (folder / "cells").iterdir():
        told = [
            replace(row, reference_log_prob=row.tokens * ((nats if row.round == ROUNDS else -3.67) + 0.1 * sign))
            for place, row in enumerate(tables.read(tables.Evaluation, cell))
            for sign in [(-1) ** place]
        ]
        tables.write(tables.Evaluation, cell, told)
        close(cell)
    report.write(folder)
    said = json.loads((folder / "findings.json").read_text())
    assert verdict in " ".join(said)
    assert words in page_of(folder)
    broken = nats < -4
    assert ("No sign of gaming" in page_of(folder)) == (not broken)
    assert ("degenerated" in said[0]) == broken


RECORDED = {  # nats a token by the initial model, at first and at last; nats of KL for 20 tokens
    "activedpo-normalised": (-3.67, -5.70, 29.0),
    "random": (-3.67, -5.29, 23.0),
}
HEALTHY = {"activedpo-normalised": (-3.67, -3.60, 6.0), "random": (-3.67, -3.57, 5.0)}


@pytest.mark.slow
@pytest.mark.parametrize(("recorded", "well"), [(RECORDED, False), (HEALTHY, True)])
def test_a_reward_bought_with_broken_text_is_called_so_from_a_recorded_run(
    tmp_path: Path, recorded: dict[str, tuple[float, float, float]], well: bool
) -> None:
    """Of a seed that wrote "ubergirsmomma...Bali...Bali": reward and judge rose, and no pair of words recurred."""
    folder = made_up(tmp_path, dict.fromkeys(recorded, 0.3), seeds=1)
    for name, (first, last, kl) in recorded.items():
        cell = folder / "cells" / f"{name}--seed0"
        told = []
        for place, row in enumerate(tables.read(tables.Evaluation, cell)):
            share = row.round / ROUNDS
            nats = first + share * (last - first) + 0.2 * (-1) ** place
            told.append(replace(row, tokens=20, reference_log_prob=20 * nats, log_ratio=share * kl))
        tables.write(tables.Evaluation, cell, told)
        close(cell)
    run = report.read(folder)
    said = findings.health(report.summary(run, report.measures(run)))
    if well:
        assert said[0].startswith("No sign of gaming in this run")
        assert "activedpo-normalised −3.67 → −3.60, random −3.67 → −3.57" in said[0]
        return
    assert said[0] == "The text degenerated in this run, so a higher reward is no gain."
    assert "activedpo-normalised: the text broke down. The initial model gives these responses −5.70" in " ".join(said)
    assert "perplexity 39 → 299" in " ".join(said)
    assert "random: the text broke down. The initial model gives these responses −5.29" in " ".join(said)
    for name, kl in (("activedpo-normalised", "1.45"), ("random", "1.15")):
        assert any(line.startswith(f"{name}: the policy is {kl} nats a token (KL)") for line in said)


def test_one_broken_seed_among_eight_whole_ones_is_named(tmp_path: Path) -> None:
    """The means over seeds are within both limits: −0.20 nats a token of fluency, 0.22 of KL."""
    folder = made_up(tmp_path, {"random": 0.3}, seeds=8)

    def ends_at(fluency: float, kl: float) -> list[str]:
        cell = folder / "cells" / "random--seed3"
        told = [
            replace(row, reference_log_prob=12 * fluency, log_ratio=12 * kl) if row.round == ROUNDS else row
            for row in tables.read(tables.Evaluation, cell)
        ]
        tables.write(tables.Evaluation, cell, told)
        close(cell)
        report.write(folder)
        return json.loads((folder / "findings.json").read_text())

    said = ends_at(-5.70, 1.45)
    assert "Single seeds are beyond the limits of health, where a higher reward is no gain" in said[0]
    assert not any("No sign of gaming" in line for line in said)
    lost, far = said[2:4]
    assert re.fullmatch(r"1 of 8 seeds of random \(seed 3\) lost 2\.1\d nats a token of fluency, beyond 0\.3\.", lost)
    assert far == "1 of 8 seeds of random (seed 3) went 1.45 nats a token (KL) from the initial model, beyond 0.5."
    said = ends_at(-3.8, 0.45)
    assert said[1].startswith("No sign of gaming in this run")


STUDIES_AT = Path(__file__).parents[1] / "docs" / "studies"


@pytest.mark.parametrize("name", ["1", "3", "4", "redundant", "regime"])
def test_every_seed_beyond_the_limits_in_a_recorded_study_is_named(name: str) -> None:
    """The seeds are found here again, the slow way: no name of a run whose seeds are all within the limits occurs."""
    table = read_table(STUDIES_AT / f"{'figure-' * name.isdigit()}{name}.csv")
    lost, far = {}, {}
    for row in table[table["round"] > 0].to_dict("records"):
        own = table[(table["part"] == row["part"]) & (table["strategy"] == row["strategy"])]
        if row["round"] == own["round"].max():
            first = own[(own["seed"] == row["seed"]) & (own["round"] == 0)]["fluency"].iloc[0]
            names = [row[column] for column in ("part", "strategy") if table[column].nunique() > 1]
            who = ", ".join(names or [row["strategy"]])
            lost.setdefault(who, {})[row["seed"]] = row["fluency"] - first < -0.3
            far.setdefault(who, {})[row["seed"]] = row["kl_per_token"] > 0.5
    said = " ".join(study.healthy(STUDIES[name], table))
    for limit, words in ((lost, "lost"), (far, "went")):
        for who, seeds in limit.items():
            over = sorted(seed for seed, beyond in seeds.items() if beyond)
            which = f"seed{'s' if len(over) > 1 else ''} {findings.named([str(seed) for seed in over] or [''])}"
            assert (f"{len(over)} of {len(seeds)} seeds of {who} ({which}) {words} " in said) == bool(over)
            assert over or not re.search(rf"seeds of {re.escape(who)} \([^)]*\) {words} ", said)
    assert ("in all runs and seeds" in said) == (not any(any(s.values()) for s in [*lost.values(), *far.values()]))


def test_a_recorded_regime_has_a_broken_setting_and_its_default_is_healthy() -> None:
    table = read_table(STUDIES_AT / "regime.csv")
    own, default = (table[table["part"] == part] for part in ("6 epochs", "rate 1.5e-3, β 0.1"))
    (said,) = study.healthy(STUDIES["regime"], own)
    assert said.startswith("Beyond the limits")
    (said,) = study.healthy(STUDIES["regime"], default)
    assert said.startswith("The text stayed language in all runs and seeds")


def test_a_seed_beyond_the_limits_of_a_matrix_is_named() -> None:
    gains = pd.DataFrame({"model": "plots", "chosen_by": ["plots"] * 4 + ["random"] * 4, "seed": [0, 1, 2, 3] * 2})
    whole = gains.assign(fluency_change=0.1, kl_per_token=0.1)
    assert study.matrix_healthy(whole).startswith("The text stayed language in all runs and seeds")
    broken = whole.assign(fluency_change=[0.1, 0.1, 0.1, -0.7] + [0.1] * 4, kl_per_token=[0.1] * 7 + [1.5])
    assert study.matrix_healthy(broken).startswith("The text stayed language in all runs, by the means over seeds")
    for seeds in ("by its own choice (seed 3) lost 0.70", "by chance (seed 3) went 1.50"):
        assert f"1 of 4 seeds of the model tuned on plots, {seeds}" in study.matrix_healthy(broken)
    assert study.matrix_healthy(whole.assign(kl_per_token=1.0)).startswith("Beyond the limits")


Change = Callable[[Any], dict[str, Any]]
"""from a row of the last round, what is other in it"""


def judged(plain: Path, folder: Path, kind: type[tables.Row], change: Change, seeds: int = 3) -> tuple[list[str], str]:
    """Return what is said of the health, and the remarks, of a whole run whose last round is changed in one table."""
    shutil.copytree(plain, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"]["seeds"] = seeds
    write_json(folder / "manifest.json", manifest)
    for cell in (folder / "cells").iterdir():
        rows = tables.read(kind, cell)
        tables.write(kind, cell, [replace(row, **change(row)) if row.round == ROUNDS else row for row in rows])
        close(cell)
    run = report.read(folder)
    summary = report.summary(run, report.measures(run))
    return findings.health(summary), " ".join(findings.remarks(summary))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up(tmp_path_factory.mktemp("plain"), {"random": 0.3})


@pytest.mark.parametrize(("cut", "sign", "remark"), [(1, False, False), (4, False, True), (6, True, True)])
def test_responses_that_no_longer_end_are_a_remark_and_many_a_sign(
    cut: int, sign: bool, remark: bool, plain: Path, tmp_path: Path
) -> None:
    """Of 24 responses every other one ended; one less is within the interval, six are more than a fifth."""
    said, told = judged(
        plain, tmp_path / "run", tables.Evaluation, lambda row: {"ended": row.ended and row.prompt_index >= 2 * cut}
    )
    share = f"50% → {(12 - cut) / 24:.0%}"
    assert said[1:] == ([f"random: fewer responses end by themselves, {share}; the others are cut."] if sign else [])
    assert said[0].startswith("There are signs of gaming" if sign else "No sign of gaming")
    assert (f"Fewer responses ended by themselves, beyond the interval over prompts: random {share}." in told) == remark


@pytest.mark.parametrize(
    ("ratio", "fell", "seeds", "sign", "remark"),
    [
        (+1.0, 0.2, 3, False, False),
        (-0.04, 0.8, 3, False, False),  # not beyond the interval over seeds
        (-1.0, 0.8, 3, False, True),
        (-3.5, 0.8, 3, False, True),
        (-4.0, 0.8, 3, True, True),  # 12 tokens at 0.3 nats are 3.6, and the interval has 0.12
        (-4.0, 0.4, 3, False, False),
        (-4.0, 0.8, 1, False, False),
    ],
)
def test_displaced_likelihood_is_a_remark_and_much_of_it_a_sign(
    ratio: float, fell: float, seeds: int, sign: bool, remark: bool, plain: Path, tmp_path: Path
) -> None:
    said, told = judged(
        plain,
        tmp_path / "run",
        tables.Round,
        lambda row: {"chosen_log_ratio": ratio + 0.05 * (row.seed - 1), "chosen_fell_share": fell},
        seeds,
    )
    assert any("likelihood displacement" in line for line in said) == sign
    assert said[0].startswith("There are signs of gaming") == sign
    assert ("Most preferred responses became less likely themselves" in told) == remark
    if sign:
        assert "In 80% of labelled pairs" in said[1]
        assert "mean log-ratio is −4.00 [−4.12, −3.88] nats" in said[1]


@pytest.mark.parametrize(("training", "seeds", "remark"), [(1.0, 3, True), (0.7, 3, False), (1.0, 1, False)])
def test_labels_learned_by_heart_are_a_remark(
    training: float, seeds: int, remark: bool, plain: Path, tmp_path: Path
) -> None:
    """Half of the held-out duels are ordered correctly, and all of them or 7 in 10 of the labelled ones."""
    whole = shutil.copytree(plain, tmp_path / "whole")
    for cell in (whole / "cells").iterdir():
        rows = tables.read(tables.Round, cell)
        accurate = training - 0.1 * (int(cell.name[-1]) == 2)
        tables.write(tables.Round, cell, [replace(row, training_accuracy=accurate) for row in rows])

    def half(row: tables.HeldoutDuel) -> dict[str, float]:
        return {"margin": row.true_margin * (-1) ** row.prompt_index}

    said, told = judged(whole, tmp_path / "run", tables.HeldoutDuel, half, seeds)
    assert said[0].startswith("No sign of gaming")
    assert told == (
        "Labels learned by heart: of the labelled duels and of held-out ones the last policy orders correctly random "
        "97% and 50% (gap +47 [+32, +61] points). The intervals over seeds lie above 25 points."
        if remark
        else ""
    )


@pytest.mark.parametrize(("longer", "by_length", "sign"), [(18, True, True), (18, False, False), (12, True, False)])
def test_a_reward_for_length_is_a_sign_where_answers_grow(
    longer: int, by_length: bool, sign: bool, plain: Path, tmp_path: Path
) -> None:
    """Answers of 14 tokens where 12 were; the others have 10.

    Where every answer is better the longer one wins less often than the policy's, and with as many shorter ones answers
    did not become longer.
    """
    whole = shutil.copytree(plain, tmp_path / "whole")
    for cell in (whole / "cells").iterdir():
        start = [replace(row, reward=0.0, judge=0.0) for row in tables.read(tables.Evaluation, cell)]
        tables.write(tables.Evaluation, cell, start)

    def answer(row: tables.Evaluation) -> dict[str, float]:
        tokens = 14 if row.prompt_index < longer else 10
        gain = 1.0 if tokens > 12 or not by_length else -0.1
        return {"tokens": tokens, "reward": gain, "judge": gain, "reference_log_prob": -3.6 * tokens}

    said, _ = judged(whole, tmp_path / "run", tables.Evaluation, answer)
    assert any("length may be what is rewarded" in line for line in said) == sign
    assert said[0].startswith("There are signs of gaming" if sign else "No sign of gaming")
    if sign:
        assert "in 100% [86%, 100%], more often than the policy's has (75%)" in said[1]


@pytest.mark.campaign
def test_a_page_is_not_called_healthy_from_too_few_prompts(tmp_path: Path) -> None:
    folder = made_up(tmp_path, {"random": 0.3})
    for cell in (folder / "cells").iterdir():
        told = [
            replace(row, reference_log_prob=row.tokens * (-3.6 + (row.round > 0) * 3 * (-1) ** row.prompt_index))
            for row in tables.read(tables.Evaluation, cell)
        ]
        tables.write(tables.Evaluation, cell, told)
        close(cell)
    report.write(folder)
    assert "too few prompts to rule out a loss of 0.3 nats a token" in page_of(folder)


@pytest.mark.campaign
def test_nothing_is_claimed_from_one_seed(tmp_path: Path) -> None:
    folder = made_up(tmp_path, {"random": 0.15, "activedpo": 0.6}, seeds=1)
    report.write(folder)
    said = json.loads((folder / "findings.json").read_text())
    assert any("That is no evidence either way" in line for line in said)
    assert "equal KL" not in said[0]
    assert any("nats a token (undecided; one seed gives no interval)." in line for line in said)
    assert "did better" not in said[0]
    assert "none from one seed" in page_of(folder)
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page_of(folder)).lower()


@pytest.mark.campaign
def test_writing_again_gives_the_same_bytes_and_time_touches_one_page(run: Path, tmp_path: Path) -> None:
    before = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "index.html").unlink()
    for cell in (copy / "cells").iterdir():
        write_json(cell / "timing.json", {"generate": 1.0})
    assert report.main([str(copy)]) == 0
    for name, content in before.items():
        if name.name not in VOLATILE:
            assert (copy / name).read_bytes() == content, name
    assert (copy / "timing.html").read_bytes() != before[Path("timing.html")]


@pytest.mark.slow
def test_seconds_are_means_over_the_seeds_that_have_them(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    for seed, content in enumerate(('{"x": 1, "y": 2}', '{"x": 3, "y": 4}', "[]")):
        (copy / "cells" / f"random--seed{seed}" / "timing.json").write_text(content)
        (copy / "cells" / f"activedpo-normalised--seed{seed}" / "timing.json").unlink()
    found = report.seconds(report.read(copy), copy)
    assert found.loc["random"].tolist() == [2.0, 3.0, 5.0]
    assert list(found.index) == ["random"]


@pytest.mark.slow
def test_picks_name_their_nearest_pick_by_its_place(run: Path) -> None:
    why = report.why(report.read(run))
    assert why["strategy"] == "activedpo-normalised"
    assert (why["pool"], why["picked"]) == (30, BATCH)
    assert [pick["nearest"] for pick in why["picks"]] == [2, 1, 1, 1, 1]
    assert [pick["rank"] for pick in why["picks"]] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_samples_are_the_first_prompts_before_and_after(run: Path) -> None:
    read = report.read(run)
    shown = report.samples(read)
    assert [sample["prompt"] for sample in shown] == [f"Prompt <{p}> & so on" for p in range(report.SHOWN_SAMPLES)]
    for p, sample in enumerate(shown):
        who = [said["who"] for said in sample["responses"]]
        assert who == ["initial model", "activedpo-normalised", "random"]
        frame = tables.frame(tables.Evaluation, run / "cells" / "random--seed0")
        expected = frame[(frame["round"] == ROUNDS) & (frame["prompt_index"] == p)]["reward"].iloc[0]
        assert sample["responses"][2]["reward"] == pytest.approx(expected)


def test_a_response_that_reads_like_a_missing_value_stays_a_text(run: Path) -> None:
    texts = report.read(run).candidates["response_1"]
    assert (texts == "NA").any()
    assert (texts == "").any()
    assert all(isinstance(text, str) for text in texts)


@pytest.mark.slow
def test_bands_are_the_paired_change_s(run: Path) -> None:
    table = report.measures(report.read(run))
    found = report.bands(table).set_index(["strategy", "round", "measure"]).sort_index()
    start = found.loc[("random", 0, "reward")]
    last = found.loc[("random", ROUNDS, "reward")]
    assert start["low"] == start["high"] == pytest.approx(start["mean"])
    assert last["low"] == pytest.approx(start["mean"] + last["change_low"])
    plain = table.set_index(["strategy", "round", "measure"]).sort_index()
    for measure in ("win_rate", "accuracy"):
        for side in ("low", "high"):
            assert found.loc[("random", ROUNDS, measure), side] == plain.loc[("random", ROUNDS, measure), side]


def test_damaged_and_unfinished_runs_are_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(name: str) -> Path:
        return shutil.copytree(run, tmp_path / name)

    empty, lost, cut, fewer = tmp_path / "empty", broken("lost"), broken("cut"), broken("fewer")
    empty.mkdir()
    foreign = tmp_path / "foreign"
    write_json(foreign / "manifest.json", {"config": []})
    (lost / "cells" / "random--seed1" / "duels.jsonl").unlink()
    file = cut / "cells" / "random--seed1" / "samples.jsonl"
    file.write_text(file.read_text()[:-9])
    shutil.rmtree(fewer / "cells" / "random--seed1")
    for folder, message in (
        (empty, "manifest.json"),
        (foreign, "is not that of a language model's run"),
        (lost, "duels.jsonl is gone"),
        (cut, "samples.jsonl is cut or altered"),
        (fewer, "random--seed1 is not finished"),
    ):
        assert report.main([str(folder)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_a_foreign_folder_is_one_line_and_nothing_is_written_there(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    config = manifest["config"]
    foreign = ["noise", [], None, {}, 3, {"config": config}, {"config": {"strategies": ["a"], "seeds": 1}}]
    foreign += [manifest | {"config": config | change} for change in ({"strategies": []}, {"seeds": 0}, {"reward": 3})]
    foreign += [manifest | {"config": {k: v for k, v in config.items() if k != "labels"}}, manifest | {"parts": {}}]
    for number, content in enumerate(foreign):
        folder = tmp_path / str(number)
        shutil.copytree(run / "cells", folder / "cells")
        (folder / "manifest.json").write_text(content if content == "noise" else json.dumps(content))
        before = sorted(folder.rglob("*"))
        assert report.main([str(folder)]) == 2, content
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "manifest.json" in error
        assert error.count("\n") == 1
        assert sorted(folder.rglob("*")) == before
    (tmp_path / "file").write_text("hello")
    for name in ("file", "nowhere"):
        assert report.main([str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.campaign
def test_many_strategies_are_told_together(tmp_path: Path) -> None:
    slopes = {"random": 0.3, "activedpo": 0.6, "apo": 0.3, "aplp": 0.0, "ucb": 0.3}
    folder = made_up(tmp_path, slopes, seeds=6)
    report.write(folder)
    said = json.loads((folder / "findings.json").read_text())
    assert "Of 4 ways to choose the duels, 1 did better, 1 did worse than random; the others are undecided." in said[0]
    start = next(place for place, line in enumerate(said) if "between" in line)
    assert [line.partition(":")[0] for line in said[start + 1 : start + 4]] == [
        "After the last round, better than random",
        "After the last round, worse than random",
        "After the last round, undecided against random",
    ]
    assert "activedpo (" in said[start + 1]
    assert "aplp (" in said[start + 2]


def test_a_comparison_that_is_not_fair_is_told() -> None:
    fair, unfair = ({"rate": rate, "low": rate - 0.1, "high": rate + 0.1} for rate in (0.53, 0.7))
    (said,) = findings.null({"reward": fair, "judge": fair})
    assert said.endswith("which is to be 50 %: reward 53% [43%, 63%], judge 53% [43%, 63%].")
    (said,) = findings.null({"reward": fair, "judge": unfair})
    assert said.endswith("judge 70% [60%, 80%]; by the judge it is not, so distrust the win rates.")
    assert findings.null({}) == [
        "A win rate of the initial model against itself, which is to be 50 %, takes two seeds."
    ]


def test_texts_that_were_read_in_part_are_told() -> None:
    names = ("pool_cut", "heldout_cut", "judge_cut")
    assert findings.partly(pd.DataFrame([dict.fromkeys(names, value) for value in (0, 0, float("nan"))])) == []
    (line,) = findings.partly(pd.DataFrame([dict(zip(names, row, strict=True)) for row in ([1, 2, 0], [3, 0, 1])]))
    assert "4 responses that duels were made of and 2 held-out answers by the reward model, 1 held-out" in line


def test_numbers_have_true_minus_signs_and_no_minus_zero() -> None:
    assert findings.number(-0.001) == "+0.00"
    assert findings.number(-1.5, 1) == "−1.5"
    assert findings.number(1.5, 1, sign=False) == "1.5"
    assert findings.span(-1, 2, 0) == "[−1, +2]"
    assert findings.span(float("nan"), 2) == "–"
    assert findings.named(["a", "b", "c"]) == "a, b and c"
