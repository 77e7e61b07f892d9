"""The demonstration on one pool: what is shared is made once, and what is said follows from its table."""

from pathlib import Path

import pandas as pd
import pytest

from bandits.runs.files import read_json
from labelling import demonstration
from labelling.demonstration import FULL, TABLES, differences, drawn, main, outcomes, page, shown, trained
from llm_loop import tables


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demonstration")
    assert main(["smoke", "--output", str(folder), "--jobs", "1"]) == 0
    return folder


def cells(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.glob("demonstration/*/cells/*")}


@pytest.mark.campaign
def test_arms_share_pool_and_answers_and_seeds_share_what_is_chosen(played):
    asked, labels, pools = {}, {}, set()
    for name, cell in cells(played).items():
        found = tables.frame(tables.Candidate, cell)
        pools.add(frozenset(zip(found["prompt_index"], found["response_1"], found["response_2"], strict=True)))
        picked = found[found["picked_position"].notna()]
        duels = list(zip(picked["prompt_index"], picked["response_1"], picked["response_2"], strict=True))
        asked[name], labels[name] = set(duels), dict(zip(duels, picked["label"], strict=True))
        assert len(duels) == 6
    assert len(pools) == 1
    assert asked["activedpo--seed0"] == asked["activedpo--seed1"]  # one pool, one sketch, one rule
    assert asked["random--seed0"] != asked["random--seed1"]
    for seed in (0, 1):
        chosen, drawn = labels[f"activedpo--seed{seed}"], labels[f"random--seed{seed}"]
        assert all(chosen[duel] == drawn[duel] for duel in chosen.keys() & drawn.keys())


def test_the_table_has_a_row_an_arm_and_seed_and_the_words_are_its_own(played):
    table, predicted = (pd.read_csv(played / "docs" / TABLES / f"{name}.csv") for name in ("own-pool", "predicted"))
    assert list(zip(table["strategy"], table["seed"], strict=True)) == [
        (arm, seed) for arm in ("activedpo", "random") for seed in (0, 1)
    ]
    assert (table["labels"] == 6).all()
    evaluations = tables.frame(tables.Evaluation, cells(played)["random--seed1"])
    last = evaluations[evaluations["round"] == 1]["reward"].mean()
    assert table["reward"].iloc[-1] == pytest.approx(last, abs=1e-6)
    told = shown(table, predicted)
    assert "With 6 labels" in told[0]
    assert "over 2 paired seeds" in told[0]
    wide = table.pivot(index="seed", columns="strategy", values="reward")
    assert differences(table, "reward")["activedpo"].value == pytest.approx((wide["activedpo"] - wide["random"]).mean())
    written = (played / "docs" / "demonstration.md").read_text()
    assert all(paragraph in written for paragraph in told)
    assert f"from activedpo's features: {predicted['verdict'].iloc[0]}. Seen:" in written
    assert "| initial model | activedpo | random | activedpo less random |" in written
    assert (played / "docs" / TABLES / "own-pool.png").read_bytes().startswith(b"\x89PNG")


def test_the_words_go_the_way_the_numbers_go():
    base = pd.DataFrame({"strategy": ["activedpo"] * 4 + ["random"] * 4, "seed": [0, 1, 2, 3] * 2})
    noise = [0.01, -0.01, 0.02, 0.0]
    for gap, said in ((1.0, "better"), (-1.0, "worse"), (0.0, "undecided")):
        found = differences(base.assign(reward=[gap + n for n in noise] + noise[::-1]), "reward")["activedpo"]
        assert demonstration.word(found) == said
        table = base.assign(reward=[gap + n for n in noise] + noise[::-1], reward_at_first=0.0, labels=6)
        want = {"better": "was worth it", "worse": "did harm", "undecided": "is undecided"}[said]
        assert want in demonstration.verdict(table)
        told = demonstration.believed(table, pd.DataFrame({"strategy": ["activedpo"], "verdict": ["saves 9 %"]}))
        seen = {"better": "was higher", "worse": "was lower", "undecided": "higher is undecided"}[said]
        assert f"{seen}. The meter" in told[0]


@pytest.mark.campaign
def test_it_goes_on_where_it_was_stopped_and_shows_what_is_finished(played, tmp_path, capsys):
    again = ["smoke", "--output", str(played), "--pages", str(tmp_path), "--jobs", "1"]
    victim = cells(played)["random--seed1"]
    before = {path.name: path.read_bytes() for path in victim.glob("*.jsonl")}
    for path in victim.glob("*"):
        if path.is_file():
            path.unlink()
    assert main([*again, "--show-only"]) == 0
    assert "over 1 paired seed." in capsys.readouterr().out
    assert main(again) == 0
    assert {path.name: path.read_bytes() for path in victim.glob("*.jsonl")} == before
    assert read_json(cells(played)["activedpo--seed0"] / "headroom.json", dict)["duels"] > 6


def test_the_published_page_is_what_its_tables_say():
    docs = Path(__file__).parents[1] / "docs"
    published = [docs / TABLES / f"{name}.csv" for name in ("own-pool", "predicted")]
    table, predicted = (pd.read_csv(path) if path.exists() else pd.DataFrame() for path in published)
    assert (docs / "demonstration.md").read_text() == page(table, predicted)


def test_the_figure_has_the_tables_names_and_differences():
    table = pd.read_csv(Path(__file__).parents[1] / "docs" / TABLES / "own-pool.csv")
    rows = [[cell.strip() for cell in line.split("|")] for line in outcomes(table).splitlines()]
    drawn_rows = {(axis.get_ylabel(), axis.get_title()) for axis in drawn(table).axes}
    assert drawn_rows == {(row[1], row[5]) for row in rows if row[6] == "undecided"}
    assert "-0" not in outcomes(table)  # minus signs are true ones


def test_the_command_trains_as_what_is_published_was_trained():
    published = pd.read_csv(Path(__file__).parents[1] / "docs" / TABLES / "own-pool.csv")
    assert {settings.partition(";")[0] for settings in published["settings"]} == {trained(FULL)}
    assert FULL.strategies == tuple(dict.fromkeys(published["strategy"]))
    assert FULL.seeds == published["seed"].nunique()


@pytest.mark.parametrize("given", [["--jobs", "-1"], ["--jobs", "-1", "--dry-run"], ["--jobs", "-1", "--show-only"]])
def test_fewer_than_no_jobs_are_one_line(given, tmp_path, capsys):
    assert main(["smoke", "--output", str(tmp_path), *given]) == 2
    told = capsys.readouterr().err
    assert "--jobs must be at least 0" in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())
