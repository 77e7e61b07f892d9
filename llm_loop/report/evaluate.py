"""Owns what may be said of a run's tables: held-out reward, win rate, accuracy, KL, repetition, strategies compared.

Pure functions of frames (their columns: ``llm_loop.config``).  Two kinds of interval are kept apart.  *Over
prompts*: these very policies, other held-out prompts; every prompt's value is first averaged over the seeds, since
seeds share prompts.  *Over seeds*: other runs of the same recipe, with other random numbers, on these prompts; it is
what a comparison of strategies needs, and it is wide when seeds are few.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from bandits.core.errors import InputError
from bandits.runs.stats import SAVINGS, Estimate, compare, decide, joint_level, mean, savings, share

Unit = Literal["prompt_index", "seed"]
KEYS = ["strategy", "round"]
REPETITIVE = 0.5
"""A response fewer of whose word pairs than this are distinct counts as degenerate."""
TOKENS = ["tokens_generated", "tokens_scored", "tokens_features", "tokens_trained"]
OUTCOMES = {"final": "after the last round", "area": "mean over all rounds"}


def distinct(text: str, n: int = 2) -> float:
    """Return the share of distinct n-grams among a text's words (lower case, split at blanks); 1 if it has none."""
    words = text.lower().split()
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def corpus_distinct(texts: pd.Series, n: int = 2) -> float:
    """Return the share of distinct n-grams among those of all texts: it falls when responses come to be alike."""
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = str(text).lower().split()
        grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 1.0


def degenerate(evaluations: pd.DataFrame) -> pd.Series:
    """Return 1 for a response that is empty (fewer than two tokens) or repeats itself, else 0."""
    empty, repetitive = evaluations["tokens"] < 2, evaluations["distinct_2"] < REPETITIVE
    return (empty | repetitive).astype(float)


def check_balanced(evaluations: pd.DataFrame) -> None:
    """Raise ``InputError`` unless all strategies were evaluated in the same rounds, seeds and prompts."""
    cells = {
        key: frozenset(zip(part["seed"], part["prompt_index"], strict=True)) for key, part in evaluations.groupby(KEYS)
    }
    rounds = {strategy: {r for s, r in cells if s == strategy} for strategy, _ in cells}
    alike = all(len({cells[s, r] for s, q in cells if q == r}) == 1 for _, r in cells)
    started = {s: cells.get((s, 0), frozenset()) for s in rounds}
    within = all(part <= started[strategy] for (strategy, _), part in cells.items() if 0 in rounds[strategy])
    if not (alike and within) or len({frozenset(r) for r in rounds.values()}) > 1:
        raise InputError("evaluations: strategies or rounds differ in their seeds or prompts; is the run complete?")
    if any(0 not in r for r in rounds.values()):
        raise InputError("evaluations: round 0, the initial model, is missing")


def per_token(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Return rows with ``kl_per_token`` and ``fluency`` (the initial model's log-probability) in nats a token."""
    return evaluations.assign(
        kl_per_token=evaluations["log_ratio"] / evaluations["tokens"],
        fluency=evaluations["reference_log_prob"] / evaluations["tokens"],
    )


def by_seed(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return how each seed ended, a row per ``keys`` and seed: ``fluency_change`` since round 0, and ``kl_per_token``.

    ``table`` has columns as ``per_token`` makes them, with any number of rows a round, which are averaged.
    """
    names = [*keys, "seed"]
    means = table.groupby([*names, "round"], sort=False)[["fluency", "kl_per_token"]].mean().reset_index()
    ordered = means.sort_values("round", kind="stable").groupby(names, sort=False)
    first, last = (rows.set_index(names) for rows in (ordered.head(1), ordered.tail(1)))
    found = last.assign(fluency_change=last["fluency"] - first["fluency"])[["fluency_change", "kl_per_token"]]
    return found.reset_index().sort_values("seed", kind="stable")


def intervals(evaluations: pd.DataFrame, measures: list[str], unit: Unit) -> pd.DataFrame:
    """Return each measure's mean and its paired change from the initial model, with Student's t intervals at 95 %.

    One row per strategy, round and measure.  With ``v_u`` the mean of all rows of unit ``u``, the columns ``mean``,
    ``low``, ``high`` are of ``v_u`` and ``change``, ``change_low``, ``change_high`` of ``v_u − v_u(round 0)``.  A round
    that asked some of the prompts is compared with round 0 on these, and its level is that of round 0 on all of them
    plus the change: prompts are in random order, so that is unbiased, and the curve has no jump of its own.
    """
    asked = evaluations.groupby(["strategy", "round"])["prompt_index"].nunique()
    few = asked[asked < asked.max()].index
    sides = []
    for (strategy, number), part in evaluations.groupby(KEYS, sort=False):
        if (strategy, number) in few:
            first = evaluations[(evaluations["strategy"] == strategy) & (evaluations["round"] == 0)]
            same = first[first["prompt_index"].isin(part["prompt_index"].unique())]
            part = part.assign(**{m: part[m] + first[m].mean() - same[m].mean() for m in measures})
            start = same.assign(**{m: same[m] + first[m].mean() - same[m].mean() for m in measures})
        else:
            start = evaluations[(evaluations["strategy"] == strategy) & (evaluations["round"] == 0)]
        sides.append((part, start.assign(round=np.full(len(start), number))))
    evaluations = pd.concat([part for part, _ in sides])
    means = evaluations.groupby([*KEYS, unit], sort=False)[measures].mean()
    start = pd.concat([first for _, first in sides]).groupby([*KEYS, unit], sort=False)[measures].mean()
    start = start.add_suffix(" at first")
    table = means.join(start).reset_index()
    rows = []
    for (strategy, number), part in table.groupby(KEYS, sort=False):
        for measure in measures:
            level, change = mean(part[measure]), mean(part[measure] - part[f"{measure} at first"])
            rows.append(
                {
                    "strategy": strategy,
                    "round": number,
                    "measure": measure,
                    "mean": level.value,
                    "low": level.low,
                    "high": level.high,
                    "change": change.value,
                    "change_low": change.low,
                    "change_high": change.high,
                    "units": len(part),
                }
            )
    return pd.DataFrame(rows)


def win_rates(evaluations: pd.DataFrame, measure: str = "reward") -> pd.DataFrame:
    """Return how often a round's response has more reward than the initial model's to the same prompt, seed and place.

    ``wins``, ``ties``, ``losses`` are counts over prompts and seeds; ``rate`` counts a tie as ½, and its interval
    (exact, 95 %) is over prompts: a prompt's result is its mean over the seeds.
    """
    table = evaluations.assign(place=evaluations.groupby([*KEYS, "seed", "prompt_index"]).cumcount())
    keys = ["strategy", "seed", "prompt_index", "place"]
    start = table[table["round"] == 0].set_index(keys)[measure].rename("start")
    table = table[table["round"] > 0].join(start, on=keys)
    table["win"] = (np.sign(table[measure] - table["start"]) + 1) / 2
    rows = []
    for (strategy, number), part in table.groupby(KEYS, sort=False):
        by_prompt = part.groupby("prompt_index")["win"].mean()
        rate = share(float(by_prompt.sum()), len(by_prompt))
        counts = {
            name: int((part["win"] == value).sum()) for name, value in (("wins", 1), ("ties", 0.5), ("losses", 0))
        }
        rows.append(
            {
                "strategy": strategy,
                "round": number,
                "measure": measure,
                **counts,
                "rate": rate.value,
                "low": rate.low,
                "high": rate.high,
                "prompts": rate.n,
            }
        )
    return pd.DataFrame(rows)


def same_policy(evaluations: pd.DataFrame, measure: str = "reward") -> pd.DataFrame:
    """Return the win rate of the initial model against itself, as ``win_rates`` has it, which is to be ½.

    One row: seeds are paired, the first with the second and so on, and each pair's answers of round 0 are compared,
    two draws of one policy.  Empty with one seed.
    """
    first = evaluations[(evaluations["round"] == 0) & (evaluations["strategy"] == evaluations["strategy"].iloc[0])]
    seeds = {seed: place for place, seed in enumerate(sorted(first["seed"].unique()))}
    place = first["seed"].map(seeds)
    twice = first.assign(strategy="initial model", seed=place // 2, round=place % 2)
    return win_rates(twice[place < len(seeds) // 2 * 2], measure)


def longer_wins(evaluations: pd.DataFrame) -> dict[str, Estimate]:
    """Return, by strategy, how often the longer of the initial and the last policy's response has more reward.

    A tie in reward counts ½; pairs of one length are left out.  The interval (exact, 95 %) is over prompts: a prompt's
    result is its mean over the seeds.  Near ½, length says nothing; NaN: no such pair.
    """
    keys = ["strategy", "seed", "prompt_index"]
    last = evaluations[evaluations["round"] == evaluations["round"].max()].set_index(keys)
    first = evaluations[evaluations["round"] == 0].set_index(keys)
    longer = np.sign(last["tokens"] - first["tokens"])
    agree = (longer * np.sign(last["reward"] - first["reward"]) + 1) / 2
    found = agree[longer != 0].groupby(["strategy", "prompt_index"], sort=False).mean().reset_index(name="won")
    by_prompt = {name: found["won"][found["strategy"] == name] for name in dict.fromkeys(evaluations["strategy"])}
    return {name: share(float(won.sum()), len(won)) for name, won in by_prompt.items()}


def accuracies(duels: pd.DataFrame) -> pd.DataFrame:
    """Return the share of held-out duels that the implicit reward orders as the true reward does.

    A margin of 0 counts ½ (the initial model has no other); duels that are truly tied are left out and counted.  A
    prompt's duels share responses, so the interval (exact, 95 %) is over prompts.
    """
    rows = []
    for (strategy, number), part in duels.groupby(KEYS, sort=False):
        untied = part[part["true_margin"] != 0]
        agree = (np.sign(untied["margin"]) * np.sign(untied["true_margin"]) + 1) / 2
        by_prompt = agree.groupby(untied["prompt_index"]).mean()
        accuracy = share(float(by_prompt.sum()), len(by_prompt))
        rows.append(
            {
                "strategy": strategy,
                "round": number,
                "accuracy": accuracy.value,
                "low": accuracy.low,
                "high": accuracy.high,
                "prompts": accuracy.n,
                "duels": len(untied),
                "tied": len(part) - len(untied),
            }
        )
    return pd.DataFrame(rows)


def fits(rounds: pd.DataFrame, duels: pd.DataFrame) -> pd.DataFrame:
    """Return what the last fit made of its labels, and of held-out duels, a row per strategy and seed.

    Columns ``chosen_log_ratio``, ``chosen_fell_share``, ``chosen_length`` and ``training_accuracy`` are the rounds'
    own, ``accuracy`` is held-out (``accuracies``).
    """
    kept = ["strategy", "seed", "chosen_log_ratio", "chosen_fell_share", "chosen_length", "training_accuracy"]
    ends = rounds.loc[rounds["round"] == rounds["round"].max(), kept]
    last = duels[duels["round"] == duels["round"].max()]
    right = pd.concat([accuracies(own).assign(seed=seed) for seed, own in last.groupby("seed")])
    return ends.merge(right[["strategy", "seed", "accuracy"]], on=["strategy", "seed"], how="left")


def against(evaluations: pd.DataFrame, baseline: str = "random", measure: str = "reward") -> pd.DataFrame:
    """Return each strategy's paired difference from a baseline, on the final measure and on its area under the curve.

    Pairs are seeds: a seed's strategies share prompts, initial model and key.  Intervals are Student's t over seeds,
    95 % jointly over all strategies and both outcomes (Bonferroni); the verdict is ``bandits.runs.stats.decide``'s.
    Empty without the baseline or without rivals; with one seed the interval is NaN and so nothing is claimed.
    """
    trained = evaluations[evaluations["round"] > 0]
    means = trained.groupby(["strategy", "seed", "round"], sort=False)[measure].mean().reset_index()
    last = means[means["round"] == means["round"].max()]
    outcomes = pd.concat([last.assign(truth="final"), means.assign(truth="area")], ignore_index=True)
    outcomes = outcomes.rename(columns={"strategy": "contender", "seed": "replicate"})
    if baseline not in set(outcomes["contender"]):
        outcomes = outcomes.iloc[:0]
    table = compare(outcomes, measure, baseline, lower_is_better=False)
    return table.rename(columns={"truth": "outcome", "contender": "strategy", "replicates": "seeds"})


def learning_curves(evaluations: pd.DataFrame, rounds: pd.DataFrame, measure: str = "reward") -> pd.DataFrame:
    """Return a measure by strategy, seed, round and labels bought, on all held-out prompts: columns of ``savings``.

    A round that asked some of the prompts has round 0's mean on all of them plus the mean change on those it asked.
    """
    keys = ["strategy", "seed"]
    start = evaluations[evaluations["round"] == 0].set_index([*keys, "prompt_index"])[measure]
    levels = start.groupby(keys).mean().rename("start")
    first = start.groupby([*keys, "prompt_index"]).mean().rename("first")
    table = evaluations.join(first, on=[*keys, "prompt_index"])
    table["change"] = table[measure] - table["first"]
    curves = table.groupby([*keys, "round"], sort=False)["change"].mean().reset_index().join(levels, on=keys)
    curves[measure] = curves["change"] + curves["start"]
    curves = curves.merge(rounds[[*keys, "round", "labels"]], on=[*keys, "round"], how="left")
    return curves.drop(columns=["change", "start"])


EQUAL = ["strategy", "kl", "difference", "low", "high", "seeds", "verdict", "reason"]


def first_at(kl: ArrayLike, reward: ArrayLike, level: float) -> float:
    """Return the reward with which a policy first is ``level`` of KL away, from rounds in order that begin at KL 0.

    ``level`` is from 0 to the last round's KL.  Both curves are straight between rounds.  KL is measured with noise and
    may fall from a round to the next; of several places with that KL the first counts.
    """
    away, rewards = np.asarray(kl, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    place = int((away >= level).argmax())
    if place == 0:
        return float(rewards[0])
    part = (level - away[place - 1]) / (away[place] - away[place - 1])
    return float(rewards[place - 1] + part * (rewards[place] - rewards[place - 1]))


def at_equal_kl(curves: pd.DataFrame, baseline: str = "random") -> pd.DataFrame:
    """Return each strategy's paired difference from a baseline in reward at equal KL from the initial model.

    ``curves`` has strategy, seed, round, reward and ``kl_per_token``, a row each.  Seed by seed, both rewards are read
    (``first_at``) at the smaller of the two last KLs, whose mean over seeds is ``kl``; a mean log-ratio below 0, which
    a KL cannot be, counts as 0.  Intervals are Student's t over seeds, 95 % jointly over the strategies; the verdict is
    ``bandits.runs.stats.decide``'s.  Empty without the baseline or rivals.
    """
    wide = curves.pivot(index=["strategy", "seed"], columns="round", values=["kl_per_token", "reward"])
    known = list(dict.fromkeys(curves["strategy"]))
    rivals = [name for name in known if name != baseline] if baseline in known else []
    level, rows = joint_level(len(rivals)), []
    for rival in rivals:
        ours, theirs = wide.loc[rival], wide.loc[baseline]
        seeds = ours.index.intersection(theirs.index)
        levels, gaps = [], []
        for seed in seeds:
            a, b = ours.loc[seed], theirs.loc[seed]
            levels.append(max(0.0, min(a["kl_per_token"].iloc[-1], b["kl_per_token"].iloc[-1])))
            reached = [first_at(one["kl_per_token"], one["reward"], levels[-1]) for one in (a, b)]
            gaps.append(reached[0] - reached[1])
        effect = mean(gaps, level)
        word, reason = decide(effect, lower_is_better=False, level=level)
        found = (float(np.mean(levels)), effect.value, effect.low, effect.high, effect.n, word, reason)
        rows.append({"strategy": rival} | dict(zip(EQUAL[1:], found, strict=True)))
    return pd.DataFrame(rows, columns=EQUAL)


def labels_saved(curves: pd.DataFrame, baseline: str = "random", measure: str = "reward") -> pd.DataFrame:
    """Return what share of a baseline's labels each strategy saves, from paired seeds' learning curves.

    Columns, intervals and the three verdicts are ``bandits.runs.stats.savings``'; the target is the baseline's mean
    after its last label.  Empty without the baseline or rivals.
    """
    table = curves.rename(columns={"strategy": "contender", "seed": "replicate"}).assign(truth="held-out")
    if baseline not in set(table["contender"]):
        return pd.DataFrame(columns=SAVINGS)
    return savings(table, measure, baseline, lower_is_better=False)


def totals(rounds: pd.DataFrame) -> pd.DataFrame:
    """Return per strategy and round, as means over seeds: labels, and tokens through the model up to that round.

    ``tokens`` sums what was generated, scored, run through for gradients and trained on.
    """
    table = rounds.sort_values(["strategy", "seed", "round"], kind="stable").copy()
    spent = table[TOKENS].fillna(0)
    table["tokens"] = spent.sum(axis=1)
    table["tokens"] = table.groupby(["strategy", "seed"])["tokens"].cumsum()
    return table.groupby(KEYS, sort=False)[["labels", "tokens"]].mean().reset_index()


def selection(candidates: pd.DataFrame) -> pd.DataFrame:
    """Return, per strategy and round, how the picked duels differ from the pool they were picked from.

    ``gap``: mean true reward difference, absolute; ``width``; ``agreement``: share of labels that name the response of
    more reward (below 1 because labels are sampled), ties aside.  Means over seeds of each seed's mean.  Duels that
    were not on offer, since a response repeats another, are no part of the pool.
    """
    table = candidates[candidates["offered"]]
    table = table.assign(picked=table["picked_position"].notna(), gap=(table["reward_1"] - table["reward_2"]).abs())
    right = (table["label"] > 0.5) == (table["reward_1"] > table["reward_2"])
    table["agreement"] = right.where(table["picked"] & (table["label"] != 0.5)).astype(float)
    rows = []
    for (strategy, number), part in table.groupby(KEYS, sort=False):
        seeds = part.groupby("seed")
        picked = part[part["picked"]].groupby("seed")
        rows.append(
            {
                "strategy": strategy,
                "round": number,
                "pool": float(seeds.size().mean()),
                "picked": float(picked.size().mean()),
                "gap": float(picked["gap"].mean().mean()),
                "gap_pool": float(seeds["gap"].mean().mean()),
                "width": float(picked["width"].mean().mean()),
                "width_pool": float(seeds["width"].mean().mean()),
                "agreement": float(picked["agreement"].mean().mean()),
            }
        )
    return pd.DataFrame(rows)


def authors(candidates: pd.DataFrame) -> pd.DataFrame:
    """Return, per strategy and model that drew part of the pool, its share of what was offered and of what was picked.

    Responses count once a duel on offer, over all rounds and seeds; ``reward`` is the mean of those offered.  Empty
    where one model drew them all.
    """
    table = candidates[candidates["offered"]]
    sides = pd.concat(
        [
            table[["strategy"]].assign(
                model=table[f"model_{side}"], reward=table[f"reward_{side}"], picked=table["picked_position"].notna()
            )
            for side in (1, 2)
        ]
    )
    rows = []
    for strategy, part in sides[sides["model"] != ""].groupby("strategy", sort=False):
        picked = part.loc[part["picked"], "model"].value_counts(normalize=True)
        for model, own in part.groupby("model", sort=False):
            rows.append(
                {
                    "strategy": strategy,
                    "model": model,
                    "offered": len(own) / len(part),
                    "picked": float(picked.get(model, 0.0)),
                    "reward": float(own["reward"].mean()),
                }
            )
    return pd.DataFrame(rows)
