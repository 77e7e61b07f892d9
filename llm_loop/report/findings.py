"""Owns the sentences of a run's page: what was compared, what was found, what to make of a diagnostic.

Numbers in, words out; knows nothing of files and figures.  A sentence says what was measured, whichever way it went.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from bandits.runs.stats import Estimate, mean
from llm_loop.report.evaluate import OUTCOMES

FEW = 4
"""Strategies that a page can tell of one by one."""
FLUENCY, BROKEN = 0.3, 1.0
"""Nats a token that the initial model's log-probability of the responses may fall: still healthy, still language."""
UNLEARNED = 0.1
"""Bits a byte of people's own texts that a policy may lose: what 0.3 nats a token are at some four bytes a token."""
REPEATS = 0.05
"""Share of a response's word pairs that may come to repeat, and of responses that may become empty or repetitive."""
FAR = 0.5
"""Nats a token of KL within which a policy is near the initial model."""
CUT = 0.2
"""Share of the responses that may come to be cut instead of ending: where length is limited, some always are."""
LONGER = 0.6
"""Share of pairs in which the longer response may win."""
BY_HEART = 0.25
"""How far training accuracy may lie above held-out accuracy: half of what parts chance from no error."""

REWARDS = {
    "sentiment-valence": "a small model of sentiment valence: how positive people find a text, from −4 to 4. It is no "
    "measure of quality, helpfulness or truth, and it can be gamed: a row of praise words scores near the top. So a "
    "higher reward says that alignment to this oracle works, and nothing about better texts",
    "tweet-judge": "a small model of how positive people find a tweet, from −1 to 1. It shares its encoder with "
    "sentiment-valence, but learned from other people's labels of other texts",
    "similarity": "how near a response is in meaning to what the user wrote, by MiniLM's sentence embeddings, from −4 "
    "to 4. It says whether a headline or a summary keeps to its text, not whether it is well written; a copy scores 4, "
    "and instructions among the user's words count as text",
    "word-overlap": "how many words a response shares with what the user wrote (F₁ of distinct words), from 0 to 4: "
    "counted, not learned; a copy scores 4, and words like “the” count as others do",
    "lexical-letters": "a toy that needs no file: the share of plain letters in a response, from −2 to 2. It serves "
    "tests of the loop; it says nothing about texts",
    "lexical-vowels": "a toy as well: the share of vowels in a response, from −2 to 2",
}
"""What a reward is, and what it is not."""

DIAGNOSTICS = {
    "bits_per_byte": (
        "bits per byte",
        "What the policy needs, in bits a byte, to foretell what people wrote of the held-out prompts, our "
        "instructions left out. Where it rises, the policy has unlearned language that no label was about.",
    ),
    "zero_A_gradient_share": (
        "zero A-gradients",
        "Share of LoRA's A-matrices, over responses, whose gradient is exactly 0. Where LoRA starts with B = 0, the "
        "model's uncertainty is measured through the B-half of its parameters alone in round 1; later through both.",
    ),
    "zero_margin_share": (
        "zero margins",
        "Share of duels that the implicit reward calls a tie. In round 1 policy and reference are one, so all are "
        "ties, and a rule that ranks by margin has nothing to go by.",
    ),
    "duplicates_dropped": (
        "duplicates dropped",
        "Responses that repeat another to the same prompt: such a duel has φ = 0 and would waste its label.",
    ),
    "selected_excess_length": (
        "length, selected ÷ pool",
        "Mean tokens of the responses in selected duels over the pool's. A sum over tokens has a gradient that grows "
        "with length, so without normalisation a gradient rule may simply buy long responses.",
    ),
    "chosen_excess_length": (
        "length, chosen ÷ rejected",
        "Mean tokens of the responses that labels prefer over the others'. Above 1 labels favour long responses, and "
        "DPO learns length with whatever else they say; how long answers became is above.",
    ),
    "gradient_drift": (
        "gradient drift",
        "‖now − initially‖/‖initially‖ of the gradients of a few fixed responses, after the round's fit. The theory "
        "of wide networks wants it near 0; 1 means that the features have become others.",
    ),
    "kernel_drift": (
        "kernel drift",
        "The same for the Gram matrix of these gradients, all that widths depend on: the measurable side of the "
        "paper's Remark 1.",
    ),
    "width_error_rank_correlation": (
        "width–error correlation",
        "Rank correlation, over the pool, of a duel's width with the true error of its reward difference. Choosing by "
        "width helps only as far as width knows where the error is: at 0 it does not.",
    ),
    "chosen_log_ratio": (
        "chosen log-ratio",
        "Mean log π/π_ref, in nats, of the responses that labels prefer, in the fit's last epoch. DPO's loss sees only "
        "its difference from the other side's, and may lower both: below 0 the preferred responses have become less "
        "likely too.",
    ),
    "rejected_log_ratio": ("rejected log-ratio", "The same for the responses that labels do not prefer."),
    "chosen_fell_share": (
        "chosen that fell",
        "Share of labelled duels whose preferred response is less likely than under the initial model.",
    ),
    "training_accuracy": (
        "training accuracy",
        "Share of labelled duels that the implicit reward orders as their label does; held-out accuracy is above. A "
        "wide gap between the two is labels learned by heart.",
    ),
    "information": (
        "information",
        "log det of V over its ridge, in nats: how much the labelled duels pin down, by the strategy's own account. "
        "Strategies measure in spaces of their own, so these compare across rounds, not across strategies.",
    ),
}
"""Diagnostics of the loop: a short title, and what to make of it."""


def number(value: float, digits: int = 2, sign: bool = True) -> str:
    """Return a number with a true minus sign, a positive one with a plus if ``sign``; a dash for NaN."""
    if math.isnan(value):
        return "–"
    rounded = round(value, digits) + 0.0  # no −0.00
    return f"{rounded:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def span(low: float, high: float, digits: int = 2, sign: bool = True) -> str:
    """Return an interval in brackets, or a dash where one value gave none."""
    if math.isnan(low) or math.isnan(high):
        return "–"
    return f"[{number(low, digits, sign)}, {number(high, digits, sign)}]"


def with_span(value: float, low: float, high: float, digits: int = 2, sign: bool = True) -> str:
    """Return a number with its interval."""
    return f"{number(value, digits, sign)} {span(low, high, digits, sign)}"


def moved(low: float, high: float) -> str:
    """Say which way a change went, if its interval says so."""
    return "rose" if low > 0 else "fell" if high < 0 else "did not move beyond its interval"


def named(names: Sequence[str]) -> str:
    """Return names as in a sentence."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def headline(rows: Sequence[dict[str, Any]], comparison: pd.DataFrame, equal: pd.DataFrame, baseline: str) -> str:
    """Return the run in a few sentences: did alignment work, and did choosing help, at equal KL and at equal labels?

    A strategy counts as better or worse only if both outcomes (last round, mean over rounds) do not contradict it.
    """
    rose = [row["strategy"] for row in rows if row["last"]["reward"]["change_low"] > 0]
    whose = "every strategy" if len(rows) > 1 else rows[0]["strategy"]
    said = "Held-out reward did not rise above the initial model's beyond its interval over prompts, for any policy."
    if rose:
        whose = whose if len(rose) == len(rows) else f"{len(rose)} of {len(rows)} strategies ({named(rose)})"
        said = f"Held-out reward rose above the initial model's for the policies of {whose}."
    if comparison.empty:
        return said
    if not equal["low"].isna().any():
        said += f" {frontier(equal, baseline)}"
    verdicts: dict[str, set[str]] = {}
    for judged in comparison.to_dict("records"):
        verdicts.setdefault(judged["strategy"], set()).add(judged["verdict"])
    clear = {
        word: [name for name, words in verdicts.items() if words & {"better", "worse"} == {word}]
        for word in ("better", "worse")
    }
    if len(rows) > FEW:
        words = ", ".join(f"{len(names)} did {word}" for word, names in clear.items())
        return f"{said} Of {len(verdicts)} ways to choose the duels, {words} than {baseline}; the others are undecided."
    for word, names in clear.items():
        if names:
            said += f" {named(names)} did {word} than {baseline}."
    rest = [name for name in verdicts if not any(name in names for names in clear.values())]
    if rest:
        said += f" Whether choosing the duels by {named(rest)} gains anything over {baseline} is undecided."
    return said


def frontier(equal: pd.DataFrame, baseline: str, reasons: bool = False) -> str:
    """Say what each strategy has over the baseline in reward at equal KL (rows of ``at_equal_kl``), in one sentence.

    More than ``FEW`` are counted, unless ``reasons`` (how many seeds would decide an undecided one) are asked for.
    """
    rows = equal.to_dict("records")
    if len(rows) >= FEW and not reasons:
        words = ", ".join(f"{sum(row['verdict'] == word for row in rows)} did {word}" for word in ("better", "worse"))
        return f"At equal KL from the initial model, {words} than {baseline} of {len(rows)}; the others are undecided."
    each = []
    for row in rows:
        why = f"; {row['reason']}".replace("replicate", "seed") if reasons and row["reason"] else ""
        each.append(
            f"{row['strategy']} {with_span(row['difference'], row['low'], row['high'])} at "
            f"{number(row['kl'], sign=False)} nats a token ({row['verdict']}{why})"
        )
    seeds = f"{rows[0]['seeds']} paired seed{'s' if rows[0]['seeds'] > 1 else ''}"
    return f"Reward at equal KL from the initial model, less {baseline}'s, {seeds}: {'; '.join(each)}."


def findings(
    rows: Sequence[dict[str, Any]], comparison: pd.DataFrame, labels: int, seeds: int, baseline: str
) -> list[str]:
    """Return what was found in sentences: each strategy against the initial model, then against the baseline.

    More than ``FEW`` strategies are told together; the tables have each.
    """
    if len(rows) > FEW:
        lines = [together(rows, labels), *(grouped(comparison, baseline) if len(comparison) else [])]
    else:
        lines = [alone(row, labels, seeds) for row in rows]
        lines += [compared(judged, baseline) for judged in comparison.to_dict("records")]
    if comparison.empty:
        lines.append(f"No comparison of strategies: it takes {baseline} and one other at least.")
    return lines


def alone(row: dict[str, Any], labels: int, seeds: int) -> str:
    """Say how a strategy's last policy compares with the initial model."""
    reward, judge, over = row["last"]["reward"], row["last"]["judge"], row["seeds"]["reward"]
    wins, spread = row["wins"], row["spread"]
    line = (
        f"{row['strategy']}: held-out reward {moved(reward['change_low'], reward['change_high'])}, from "
        f"{number(row['start']['reward'], sign=False)} to {number(reward['mean'], sign=False)} after {labels} "
        f"labels: {with_span(reward['change'], reward['change_low'], reward['change_high'])} over "
        f"{reward['units']:.0f} prompts (these very policies)"
    )
    if seeds > 1:
        line += f", {span(over['change_low'], over['change_high'])} over {seeds} seeds (other runs like these)"
    line += (
        f". Its win rate against the initial model is {wins['rate']:.0%} [{wins['low']:.0%}, {wins['high']:.0%}]. The "
        f"judge, which never labels, {moved(judge['change_low'], judge['change_high'])}: {number(judge['change'])} "
        f"{span(judge['change_low'], judge['change_high'])}"
    )
    if spread["reward"] > 0 and spread["judge"] > 0:
        ours, theirs = (row["last"][name]["change"] / spread[name] for name in ("reward", "judge"))
        line += (
            f"; in units of the spread among the initial model's responses, {number(theirs)} where the reward has "
            f"{number(ours)}"
        )
    return line + "."


def compared(judged: dict[Hashable, Any], baseline: str) -> str:
    """Say how a strategy compares with the baseline on one outcome."""
    name, where = judged["strategy"], OUTCOMES[judged["outcome"]]
    low, high = judged["low"], judged["high"]
    if math.isnan(low):
        return (
            f"{name} against {baseline}, {where}: {number(judged['difference'])} with one seed. That is no evidence "
            "either way; a comparison takes several seeds."
        )
    said = f"{with_span(judged['difference'], low, high)}, {judged['seeds']} paired seeds"
    if judged["verdict"] in ("better", "worse"):
        return f"{name} did {judged['verdict']} than {baseline}, {where}: {said}."
    reason = judged["reason"].replace("replicates", "seeds")
    return f"{name} against {baseline}, {where}: {judged['verdict']} ({said}; {reason})."


def share_saved(row: Mapping[Hashable, Any]) -> str:
    """Return a share of labels saved with its interval, in per cent; a limit that was not seen is open."""
    value, low, high = (100 * float(row[name]) for name in ("saved", "low", "high"))
    if math.isnan(value):
        return "–"
    if math.isnan(low):
        return f"{number(value, 0, sign=False)} %"
    least = "−∞" if low <= -100 else number(low, 0, sign=False)
    return f"{number(value, 0, sign=False)} % [{least}, {number(high, 0, sign=False)}]"


def saving(row: Mapping[Hashable, Any]) -> str:
    """Say what a strategy saves of its baseline's labels, and how many seeds would decide it where they do not."""
    who, against, budget = row["contender"], row["baseline"], f"{row['budget']:.0f}"
    interval = f"{share_saved(row)} of {budget} labels, {row['replicates']} paired seeds"
    reason = str(row["reason"]).replace("replicate", "seed")
    why = f"; {reason}" if reason else ""
    match row["verdict"]:
        case "saves":
            return (
                f"{who} saves labels: with {row['labels']:.0f} it has {against}'s reward at {budget}; {interval}{why}."
            )
        case "does not save":
            return f"{who} does not save labels against {against}: {interval}{why}."
        case "undecided":
            return f"Whether {who} saves labels against {against} is undecided: {interval}{why}."
    return f"{who} is not judged against {against}{why}."


def together(rows: Sequence[dict[str, Any]], labels: int) -> str:
    """Say from where to where many strategies brought the reward."""
    ends = sorted(rows, key=lambda row: float(row["last"]["reward"]["mean"]))
    rose = sum(row["last"]["reward"]["change_low"] > 0 for row in rows)
    follow = sum(row["last"]["judge"]["change_low"] > 0 for row in rows)
    least, most = ((number(row["last"]["reward"]["mean"], sign=False), row["strategy"]) for row in (ends[0], ends[-1]))
    return (
        f"Held-out reward began at {number(rows[0]['start']['reward'], sign=False)} and ended, after {labels} labels, "
        f"between {least[0]} ({least[1]}) and {most[0]} ({most[1]}). It rose beyond its interval over prompts, "
        f"for these very policies, with {rose} of {len(rows)} strategies, the judge with {follow}."
    )


def grouped(comparison: pd.DataFrame, baseline: str) -> list[str]:
    """Say which of many strategies did better or worse than the baseline, a sentence per outcome and verdict."""
    lines = []
    for outcome, where in OUTCOMES.items():
        part = comparison[comparison["outcome"] == outcome]
        for verdict, said in (
            ("better", f"better than {baseline}"),
            ("worse", f"worse than {baseline}"),
            ("undecided", f"undecided against {baseline}"),
        ):
            group = part[part["verdict"] == verdict].sort_values("difference", ascending=False)
            if len(group):
                each = [
                    f"{judged['strategy']} ({with_span(judged['difference'], judged['low'], judged['high'])})"
                    for judged in group.to_dict("records")
                ]
                lines.append(f"{where.capitalize()}, {said}: {', '.join(each)}.")
    return lines


def strays(who: str, seeds: pd.DataFrame) -> list[str]:
    """Say how many seeds, and which, lost more than ``FLUENCY`` of fluency or are further than ``FAR``; [] if none.

    ``seeds`` has columns ``seed``, ``fluency_change`` and ``kl_per_token``, a row each.  A mean over seeds hides one
    broken seed among many whole ones.
    """
    said = []
    for values, limit, words in (
        (-seeds["fluency_change"], FLUENCY, "lost {} nats a token of fluency"),
        (seeds["kl_per_token"], FAR, "went {} nats a token (KL) from the initial model"),
    ):
        over = seeds["seed"][values > limit]
        if len(over):
            several = len(over) > 1
            most = f"{'up to ' if several else ''}{number(values.max(), sign=False)}"
            which = f"seed{'s' if several else ''} {named([str(seed) for seed in over])}"
            said.append(f"{len(over)} of {len(seeds)} seeds of {who} ({which}) {words.format(most)}, beyond {limit}")
    return said


def health(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return whether policies still write language, and the signs that one games its reward rather than earns it.

    The first line is the verdict.  Limits are held to the means over seeds and to every seed.  Health is claimed only
    where the interval (over prompts) excludes a loss of fluency of more than ``FLUENCY`` nats a token.  A sign takes
    the number alone, and of repetition more than ``REPEATS`` too: over many prompts an interval excludes 0 for a
    hundredth.
    """
    broken = [line for row in rows for line in _broken(row)]
    games = [line for row in rows for line in _games(row)]
    single = [f"{line}." for row in rows if len(row["each"]) > 1 for line in strays(row["strategy"], row["each"])]
    if broken:
        return ["The text degenerated in this run, so a higher reward is no gain.", *broken, *single, *games]
    if games:
        return ["There are signs of gaming in this run.", *games, *single]
    if single:
        return [
            "Single seeds are beyond the limits of health, where a higher reward is no gain; by the means over seeds "
            "there is no sign of gaming.",
            *single,
        ]
    unsure = [row["strategy"] for row in rows if not row["last"]["fluency"]["change_low"] > -FLUENCY]
    if unsure:
        return [
            f"No sign of gaming or of broken text, but {len(unsure)} of {len(rows)} strategies have too few prompts to "
            f"rule out a loss of {FLUENCY} nats a token in fluency: {named(unsure)}."
        ]
    if not any(row["last"]["reward"]["change_low"] > 0 for row in rows):
        return ["The reward did not rise, so there was nothing gained by gaming it; the text stayed fluent."]
    ends = ", ".join(
        f"{row['strategy']} {number(row['first']['fluency']['mean'])} → {number(row['last']['fluency']['mean'])}"
        for row in rows
    )
    return [
        "No sign of gaming in this run: where the reward rose the judge did, responses became neither much emptier, "
        "more repetitive, more alike, longer, shorter nor much more often cut, and the initial model finds them about "
        f"as likely as its own (nats a token: {ends})."
    ]


def _broken(row: dict[str, Any]) -> list[str]:
    """Return the signs that a strategy's last policy writes worse language than the initial model, by that model."""
    name, first, last = row["strategy"], row["first"]["fluency"]["mean"], row["last"]["fluency"]["mean"]
    if last - first >= -FLUENCY:
        return []
    word = "the text broke down" if last - first < -BROKEN else "the text lost fluency"
    return [
        f"{name}: {word}. The initial model gives these responses {number(last)} nats a token, its own "
        f"{number(first)}: perplexity {math.exp(-first):.0f} → {math.exp(-last):.0f}."
    ]


def _games(row: dict[str, Any]) -> list[str]:
    last, name = row["last"], row["strategy"]
    lines = []
    if last["kl_per_token"]["mean"] > FAR:
        lines.append(
            f"{name}: the policy is {number(last['kl_per_token']['mean'], sign=False)} nats a token (KL) from the "
            f"initial model; beyond {FAR} a reward model is asked about texts that it was not made for."
        )
    first_bits, last_bits = row["bits"]
    if last_bits - first_bits > UNLEARNED:
        lines.append(
            f"{name}: the policy foretells what people wrote at {number(last_bits, sign=False)} bits a byte, the "
            f"initial model at {number(first_bits, sign=False)}: it unlearned language that no label was about."
        )
    if last["reward"]["change_low"] > 0 and not last["judge"]["change_low"] > 0:
        lines.append(f"{name}: the reward rose, the judge did not follow beyond its interval.")
    if _cut(row) and last["ended"]["change"] < -CUT:
        lines.append(f"{name}: fewer responses end by themselves, {_ended(row)}; the others are cut.")
    if _displaced(row) and _chosen(row).high < -FLUENCY * row["fit"]["chosen_length"].mean():
        lines.append(
            f"{name}: likelihood displacement. In {row['fit']['chosen_fell_share'].mean():.0%} of labelled pairs the "
            f"preferred response itself became less likely; their mean log-ratio is {_nats(_chosen(row))} nats, more "
            f"than {FLUENCY} nats a token below 0."
        )
    longer = row["longer"]
    if longer.value > LONGER and longer.low > max(0.5, row["wins"]["rate"]) and last["tokens"]["change_low"] > 0:
        lines.append(
            f"{name}: the longer of two answers has more reward in {_rate(longer)}, more often than the policy's has "
            f"({row['wins']['rate']:.0%}), and answers became longer: length may be what is rewarded."
        )
    if last["degenerate"]["change_low"] > 0 and last["degenerate"]["change"] > REPEATS:
        lines.append(f"{name}: more responses are empty or repetitive, {last['degenerate']['mean']:.0%} by the end.")
    if last["distinct_2"]["change_high"] < 0 and last["distinct_2"]["change"] < -REPEATS:
        lines.append(
            f"{name}: responses repeat themselves more, {number(last['distinct_2']['change'])} distinct pairs."
        )
    alike = last["corpus_distinct_2"]["mean"] / row["first"]["corpus_distinct_2"]["mean"]
    if alike < 0.9:
        lines.append(f"{name}: responses to different prompts grew alike; {1 - alike:.0%} fewer distinct pairs.")
    if abs(last["tokens"]["change"]) > 0.25 * row["start"]["tokens"]:
        lines.append(f"{name}: responses changed in length by {number(last['tokens']['change'], 1)} tokens.")
    return lines


def _cut(row: dict[str, Any]) -> bool:
    """Whether fewer responses end by themselves, beyond the interval over prompts."""
    return bool(row["last"]["ended"]["change_high"] < 0)


def _ended(row: dict[str, Any]) -> str:
    return f"{row['first']['ended']['mean']:.0%} → {row['last']['ended']['mean']:.0%}"


def _chosen(row: dict[str, Any]) -> Estimate:
    """Return the mean log-ratio of preferred responses after the last fit, in nats, over seeds."""
    return mean(row["fit"]["chosen_log_ratio"])


def _displaced(row: dict[str, Any]) -> bool:
    """Whether preferred responses became less likely, most of them and beyond the interval over seeds on average.

    A little of that is common where DPO works: its loss sees the difference from the other side's alone.
    """
    return bool(row["fit"]["chosen_fell_share"].mean() > 0.5 and _chosen(row).high < 0)


def _nats(found: Estimate) -> str:
    return with_span(found.value, found.low, found.high)


def _rate(found: Estimate) -> str:
    return f"{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]"


def remarks(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Say what is no sign of gaming but worth knowing: labels learned by heart, and less of what would be a sign."""
    gaps = [mean(row["fit"]["training_accuracy"] - row["fit"]["accuracy"]) for row in rows]
    heart = [
        f"{row['strategy']} {row['fit']['training_accuracy'].mean():.0%} and {row['fit']['accuracy'].mean():.0%} (gap "
        f"{with_span(100 * gap.value, 100 * gap.low, 100 * gap.high, 0)} points)"
        for row, gap in zip(rows, gaps, strict=True)
        if gap.low > BY_HEART
    ]
    shown = [f"{row['strategy']} {_nats(_chosen(row))}" for row in rows if _displaced(row)]
    cut = [f"{row['strategy']} {_ended(row)}" for row in rows if _cut(row)]
    lines = []
    if heart:
        lines.append(
            "Labels learned by heart: of the labelled duels and of held-out ones the last policy orders correctly "
            f"{'; '.join(heart)}. The intervals over seeds lie above {100 * BY_HEART:.0f} points."
        )
    if shown:
        lines.append(
            "Most preferred responses became less likely themselves, which is common in DPO; mean log-ratios in nats, "
            f"intervals over seeds: {'; '.join(shown)}."
        )
    if cut:
        lines.append(f"Fewer responses ended by themselves, beyond the interval over prompts: {'; '.join(cut)}.")
    return lines


def lengths(shares: dict[str, Estimate]) -> list[str]:
    """Say how far length alone decides who wins, by strategy: a win rate to compare the reward's with."""
    each = ", ".join(f"{name} {_rate(share)}" for name, share in shares.items() if not math.isnan(share.value))
    if not each:
        return ["No answer of a last policy differs in length from the initial model's, so length decides nothing."]
    return [f"Of each pair of answers, the initial model's and the last policy's, the longer has more reward: {each}."]


def null(found: dict[str, dict[Hashable, Any]]) -> list[str]:
    """Say how the initial model fares against itself: what a win rate is when there is nothing to win."""
    if not found:
        return ["A win rate of the initial model against itself, which is to be 50 %, takes two seeds."]
    each = ", ".join(
        f"{measure} {row['rate']:.0%} [{row['low']:.0%}, {row['high']:.0%}]" for measure, row in found.items()
    )
    off = [measure for measure, row in found.items() if not row["low"] <= 0.5 <= row["high"]]
    verdict = f"; by the {' and the '.join(off)} it is not, so distrust the win rates" if off else ""
    return [f"The win rate of the initial model against itself, which is to be 50 %: {each}{verdict}."]


def partly(rounds: pd.DataFrame) -> list[str]:
    """Say how many texts a reward model or the judge read the beginning of only; nothing if none."""
    pool, heldout, judge = (int(rounds[name].sum()) for name in ("pool_cut", "heldout_cut", "judge_cut"))
    if not pool + heldout + judge:
        return []
    return [
        f"Longer than what is read, so that their beginnings alone were scored: {pool} responses that duels were made "
        f"of and {heldout} held-out answers by the reward model, {judge} held-out answers by the judge (they, or where "
        "prompts are read too, their prompts)."
    ]


def told(loop: pd.DataFrame, strategies: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return each diagnostic's title, what to make of it, and its first and last values per strategy in words."""
    found = []
    for name, (title, text) in DIAGNOSTICS.items():
        said = []
        for strategy in strategies:
            part = loop[(loop["measure"] == name) & (loop["strategy"] == strategy)].sort_values("round")
            ends = part.iloc[[0, -1]] if len(part) > 1 else part
            values = [f"{row['mean']:.3g} in round {row['round']}".replace("-", "−") for row in ends.to_dict("records")]
            if values:
                said.append(f"{strategy} {', '.join(values)}")
        if said:
            found.append((title, text, "; ".join(said)))
    return found
