"""A rerun beside published rows."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from test_report import tally

from relufair import cli, compare, plots, published


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def right(table, group, budget):
    """The row of the group at this budget."""
    found = table[(table["group"] == group) & (table["budget"] == budget)]
    assert len(found) == 1
    return found.iloc[0]


def test_accuracies_by_hand():
    """60 of 100 against 40 and 50 of 100 in two seeds; everyone is the sum of the groups."""
    theirs = tally(40)
    theirs.loc[(theirs["seed"] == 1) & (theirs["correct"] == 40), "correct"] = 50
    table = compare.beside(tally(60), theirs)
    small, every = right(table, "small", 0.1), right(table, "all", 0.1)
    assert (small["ours"], small["theirs"], small["difference"]) == pytest.approx((60, 45, 15))
    assert small["spread"] == pytest.approx(np.std([40, 50], ddof=1))
    assert every["ours"] == pytest.approx(100 * 960 / 1100)
    assert every["difference"] == pytest.approx(100 * 15 / 1100)
    assert small["low"] < 15 < small["high"]
    assert (table["seeds"] == 2).all() and (table["their_seeds"] == 2).all()


def test_the_interval_has_both_runs_noise():
    """Two equal runs differ by nothing, with an interval √2 times as wide as one run's accuracy."""
    row = right(compare.beside(tally(50), tally(50)), "small", 0.1)
    deviation = 100 * np.sqrt(2 * 0.5 * 0.5 / 200)  # of a difference of two means over 200 images
    assert row["difference"] == 0
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_one_seed_has_no_spread():
    table = compare.beside(tally(50), tally(50).query("seed == 0"))
    assert table["spread"].isna().all() and set(table["their_seeds"]) == {1}
    assert (compare.pretty(table)["SD over published seeds"] == "one seed").all()


def test_the_verdict():
    """Agrees, differs and says where, other settings, nothing to compare with."""
    near = compare.beside(tally(50), tally(52))
    assert compare.verdict(near).startswith("0 of 6 accuracies") and "agrees" in compare.verdict(
        near
    )
    same = compare.verdict(compare.beside(tally(50), tally(50)))
    assert same == "All 6 accuracies are the published ones."
    far = compare.beside(tally(10), tally(80))
    said = compare.verdict(far)
    assert "**The rerun differs from the published run**" in said
    assert "small at 10 %, SNL, plain (−70.0 points)" in said
    assert "not trained with the same settings" not in said
    other = compare.verdict(compare.beside(tally(50, tier="paper"), tally(52)))
    assert "not trained with the same settings" in other
    none = compare.beside(tally(50), tally(50).assign(what="others"))
    assert none.empty and compare.verdict(none).startswith("No published run")


def test_of_several_published_runs_the_one_trained_alike_counts():
    """Else the last."""
    other = tally(80).assign(study="other")
    for theirs, found in ((tally(40), 40), (tally(40).assign(study="third"), 80)):
        table = compare.beside(tally(50), pd.concat([theirs, other]))
        assert right(table, "small", 0.1)["theirs"] == pytest.approx(found)


def test_the_network_with_all_relus_counts_once():
    """It stands in the rows of each method."""
    both = pd.concat([tally(50), tally(50).assign(method="random")])
    assert compare.verdict(compare.beside(both, both)) == "All 9 accuracies are the published ones."


def test_one_chance_difference_is_no_disagreement():
    """One interval of twenty may exclude zero; a second one of six may not."""
    table = compare.beside(tally(50), tally(51))
    table.loc[0, ["low", "high"]] = [0.1, 0.2]
    assert "1 of 6" in compare.verdict(table) and "agrees" in compare.verdict(table)
    table.loc[[1, 2], ["low", "high"]] = [-0.2, -0.1]
    assert "3 of 6" in compare.verdict(table) and "differs" in compare.verdict(table)


def test_only_what_both_have_is_compared():
    """Another budget and another remedy have no partner."""
    ours = pd.concat([tally(50), tally(50).assign(remedy="cvar 0.5")])
    theirs = tally(50).assign(budget=lambda t: t["budget"].replace(0.1, 0.2))
    table = compare.beside(ours, theirs)
    assert set(table["budget"]) == {1.0} and set(table["remedy"]) == {"plain"}


def test_the_tally_of_a_run_is_found_among_its_tables(tmp_path):
    """Rows that stand in two tables count once; a folder without a tally is refused."""
    with pytest.raises(FileNotFoundError, match="has no table of a network's accuracies by group"):
        compare.read(tmp_path)
    pd.DataFrame({"seed": [0]}).to_parquet(tmp_path / "geometry.parquet")
    tally(50).to_parquet(tmp_path / "a.parquet")
    tally(50).to_parquet(tmp_path / "b.parquet")
    pd.testing.assert_frame_equal(compare.read(tmp_path), tally(50))


def test_a_hyphen_in_a_name_stays_one():
    table = compare.beside(tally(80), tally(40)).assign(group="African-American")
    assert "African-American at 10 %" in compare.verdict(table)


def test_the_figure_shows_the_differences():
    table = compare.beside(tally(60), tally(45))
    first, second = plots.beside(table).axes
    assert [first.get_title(), second.get_title()] == ["all ReLUs", "10 % of the ReLUs"]
    points = second.lines[0].get_xdata()  # from below
    assert points == pytest.approx(table.query("budget == 0.1")["difference"].to_numpy()[::-1])


def test_the_command(tmp_path, monkeypatch):
    """Prints table and verdict, of the test images alone, and leaves both; refuses other folders."""
    theirs = [tally(45).assign(split="test"), tally(99).assign(split="validation")]
    monkeypatch.setattr(published, "tally", lambda folder: pd.concat(theirs))
    tally(60).to_parquet(tmp_path / "accuracy_drops.parquet")
    answer = CliRunner().invoke(cli.main, ["compare", str(tmp_path)])
    assert answer.exit_code == 0, answer.output
    assert "+15.0 [" in answer.output and "of 6 accuracies" in answer.output
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"accuracy_drops.parquet", "comparison.csv", "comparison-snl-plain.png"}
    (tmp_path / "empty").mkdir()
    for name, why in (("none", "there is no such folder"), ("empty", "accuracies by group")):
        refused = CliRunner().invoke(cli.main, ["compare", str(tmp_path / name)])
        assert refused.exit_code == 2 and why in refused.output


def test_a_folder_with_two_networks(tmp_path):
    """Each has its rows and its figure; two studies that nothing tells apart are refused."""
    both = [pd.concat([tally(n), tally(n).assign(what="other")]) for n in (60, 45)]
    table = compare.beside(*both)
    compare.keep(table, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert compare.pretty(table).index.names[0] == "run"
    twice = pd.concat([tally(60), tally(60).assign(study="another")])
    with pytest.raises(ValueError, match="rows of two studies of"):
        compare.beside(twice, tally(45))
