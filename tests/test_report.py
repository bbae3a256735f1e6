"""What is said about a table, what is published, and the figures."""

import itertools
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.testing.compare import compare_images

from relufair import groups, landing, plots, published, report, studies, theory
from relufair.config import Remedy
from relufair.store import Store, project_root, results_folder

RESULTS = sorted(results_folder().glob("*.csv"))
TALLY = ["seed", "budget", "group", "train_n", "n", "correct", "base", "both"]


def tally(minority_right=40, tier="ci", seeds=2):
    """Two groups at two budgets; the minority's accuracy at the lower one is given."""
    rows = []
    for seed in range(seeds):
        for budget in (1.0, 0.1):
            for group, n, base in (("large", 1000, 900), ("small", 100, 80)):
                right = base if budget == 1 or group == "large" else minority_right
                rows.append({
                    "dataset": "toy", "target": "t", "groups": "g", "arch": "a", "width": 1,
                    "method": "snl", "remedy": "plain", "seed": seed, "budget": budget, "relus": 5,
                    "group": group, "train_n": n, "n": n, "correct": right, "base": base,
                    "both": min(right, base), "device": "CPU", "date": "2026-01-01", "tier": tier,
                    "what": "toy", "study": f"toy {tier}",
                })  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def of_remedies():
    """The rows of the landing page's table of the remedy."""
    return landing.remedy().splitlines()[2:]


@pytest.mark.parametrize("method", ["snl", "all_kept", "deepreduce"])
@pytest.mark.parametrize("target", ["race", "age", "object"])
def test_no_seed_is_left_out(target, method):
    """Every published run of a main comparison counts in it."""
    there = published.reported()
    there = there[(there["method"] == method) & (there["remedy"] == "plain")]
    if (target, method) == ("object", "deepreduce"):
        assert not (there["target"] == target).any()
        return
    own = landing.tally(target, method)
    there = there[there["what"] == own["what"].iat[0]]
    assert set(there["budget"]) == set(own["budget"])
    for budget, rows in own.groupby("budget"):
        assert set(rows["seed"]) == set(there.loc[there["budget"] == budget, "seed"])


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize(
    ("right", "answer"),
    [
        (40, "**The smallest group falls further than the largest.**"),
        (95, "**The smallest group falls less far than the largest.**"),
        (80, "**These runs do not settle whether the smallest group falls further.**"),
    ],
)
def test_the_verdict_follows_the_interval(right, answer):
    """Further, less far, or not settled; with both drops, their difference and n."""
    said = report.verdict(tally(right))
    assert said.startswith(answer)
    assert "With 10 % of the ReLUs kept" in said and "2 seeds" in said
    loss = (80 - right) / 0.8 + 1e-9
    assert f"*small* {'loses' if loss > 0 else 'gains'} {abs(loss):.1f} [" in said
    assert "*large* loses 0.0 [" in said and "−" not in said.split("The relative drops")[0]


@pytest.mark.parametrize(("right", "text"), [(40, "**50.0 ["), (79, "1.3 ["), (95, "**−18.7 [")])
def test_what_is_lost_is_bold_where_the_interval_leaves_out_zero(right, text):
    own = report.lost(tally(right))
    assert list(own.index) == ["large", "small", "everyone"] and own["large"] == "0.0 [0.0, 0.0]"
    assert own["small"].startswith(text) and own["small"].endswith("**") == text.startswith("**")


def test_the_answer_has_the_rows_of_its_tallies():
    lines = landing.answer("age").splitlines()
    assert len(lines) == 2 + 5 and lines[0].startswith("| in % | 18–64 (")
    first = landing.tally("age").query("budget == 1 and group == '13–17'")
    assert f"| {100 * first['correct'].sum() / first['n'].sum():.1f} [" in lines[2]
    for line, own in zip(lines[3:5], ({}, {"method": "all_kept"}), strict=True):
        table = landing.tally("age", **own)
        assert report.lost(table)["13–17"] in line
        assert line.endswith(f"| {table['seed'].nunique()} |")
    assert report.lost(landing.tally("age", base="all_kept"))["65+"] in lines[5]


def test_over_all_counts_the_comparisons_in_which_a_remedy_helps():
    """Of 100 images of the smaller group 80 are right without any; strengths of a remedy may differ."""
    first = pd.concat([tally(r).assign(remedy=c) for r, c in ((81, "cvar 0.2"), (88, "swa 0.5"))])
    second = pd.concat([tally(r).assign(remedy=c) for r, c in ((20, "cvar 1"), (90, "swa 0.25"))])
    second = pd.concat([second, first[first["budget"] < 1].assign(budget=0.02)])  # another budget
    second["remedy"] = second["remedy"].replace({"cvar 0.2": "cvar 1", "swa 0.5": "swa 0.25"})
    shown = report.over_all([first, second])
    assert shown.index.tolist() == ["SWA", "CVaR"]  # those that help first
    assert shown.loc["SWA"].tolist() == [3, 3, 0, "8.0 to 10.0", "0.7 to 0.9"]
    assert shown.loc["CVaR"].tolist() == [3, 0, 1, "−60.0 to 1.0", "−5.5 to 0.1"]


def test_the_setting_is_a_mean_over_seeds():
    """Sizes largest first, never summed, and the ReLUs of each budget."""
    own = tally(seeds=3)
    own["relus"] = own["budget"].map({1.0: 122880, 0.1: 12288})
    head, _, *rows, _, said = report.setting(own).splitlines()
    assert head == "| group (mean over 3 seeds) | training images | test images |"
    assert rows == ["| large | 1,000 | 1,000 |", "| small | 100 | 100 |"]
    assert said == "The network has 122,880 ReLUs. Kept: 12,288 by SNL at 10 %."
    assert report.setting(own[own["budget"] == 1]).endswith("Kept: all.")


def test_what_a_remedy_gains_is_that_of_the_table_of_effects():
    own = studies.remedied(
        studies.published("mitigation", target="age", budgets=[0.02], seeds=[0, 1])
    )
    found, row = report.gained(own), report.effects(own).iloc[0]
    assert found["smallest group"] == f"13–17: **{row['gain: 13–17 (smallest)']}**"
    assert found["largest group"] == f"18–64: **{row['gain: 18–64 (largest)']}**"
    assert row["gain: everyone"] in found["everyone"] and found["seeds"] == "2"


def test_the_table_of_the_remedy_has_what_its_runs_say(of_remedies):
    """Of the remedy as released, of a multiplier, and of classes by halves."""
    lines = of_remedies
    assert len({line.split(" | ", 1)[1] for line in lines}) == len(lines) == 8
    store = Store(published=True)
    age = studies.published("paper_and_code", target="age", budgets=[0.02], seeds=[0, 1])
    own = age.penalties(store=store)
    own = own[(own["penalty"] == "detached") & (own["distillation"] == "1/C")]
    assert " | ".join(report.gained(own).values()) in lines[-1]
    live = studies.published("mitigation", target="age", budgets=[0.02])
    paths = live.paths([Remedy("algorithm1", 0.1)], store=store)
    last = paths.query("quantity == 'multiplier' and epoch == 8 and group == '13–17'")
    assert len(last) == 5 and lines[2].endswith(f"| {last['value'].mean():.2f} |")
    objects = {"dataset": "cifar10", "target": "object", "budgets": [0.02], "seeds": [0, 1]}
    study = studies.published("mitigation", **objects)
    assert " | ".join(report.gained(report.halves(studies.remedied(study))).values()) in lines[3]
    last = study.paths(study.cures()[1:], store=store)
    last = last.query("quantity == 'multiplier' and epoch == 8")
    last = last[last["group"].isin(["dog", "frog", "horse", "ship", "truck"])]
    assert len(last) == 10 and lines[3].endswith(f"| {last['value'].mean():.2f} |")


def test_the_pretty_table_has_every_number_of_the_summary():
    """Largest group first, everyone last, all ReLUs first."""
    shown = report.pretty(tally())
    assert shown.index.tolist() == [
        ("SNL", budget, group)
        for budget in ("100 %", "10 %")
        for group in ("large", "small", "all")
    ]
    assert shown.loc[("SNL", "10 %", "small"), "accuracy (%)"].startswith("40.0 [")
    assert shown.loc[("SNL", "10 %", "all"), "test images"] == 1100


def test_a_group_that_was_never_right_has_no_relative_drop():
    """It is said, not printed as nan."""
    table = tally(0)
    never = table["group"] == "small"
    table.loc[never, ["correct", "base", "both"]] = 0
    said = report.verdict(table)
    assert said == "**No relative drop can be given:** with all ReLUs, *small* is never right."


def test_a_group_without_images_and_a_group_alone_are_said():
    table = tally(40)
    none = table["group"] == "small"
    table.loc[none, ["n", "correct", "base", "both"]] = 0
    assert report.verdict(tally(40)[~none]).startswith("**There is one group alone:**")
    counts = ["n", "correct", "base", "both"]
    empty = table.assign(**table[counts].clip(upper=20))  # else the other is the only one shown
    assert "*small* has no test images" in report.verdict(empty)


def test_tables_and_figures_are_kept_where_asked(tmp_path, monkeypatch):
    """Parquet, CSV, PNG and SVG in RELUFAIR_OUT; nowhere without it."""
    table, figure = tally(), plots.drops(tally(), "note")
    report.keep_table(table, "t")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("RELUFAIR_OUT", str(tmp_path / "new" / "out"))
    report.keep_table(table, "t")
    report.keep_figure(figure, "f")
    names = {p.name for p in (tmp_path / "new" / "out").iterdir()}
    assert names == {"t.parquet", "t.csv", "f.png", "f.svg"}
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "new/out/t.parquet"), table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "new/out/t.csv"), table)


def test_unknown_tables_are_refused():
    with pytest.raises(FileNotFoundError, match="no table 'x'; there are: utkface-age-laptop"):
        report.published("x")


def drawn(axis):
    """Height of every point or bar that an axis shows."""
    lines = [y for line in axis.lines if len(line.get_xdata()) for y in line.get_ydata()]
    return np.array(lines + [bar.get_height() for bar in axis.patches])


def test_figures_show_the_numbers_of_the_table():
    """Every value of the summary is drawn; sizes, budgets and the note are written."""
    table = tally()
    summary = groups.by_group(table)
    figure = plots.drops(table, "from here")
    for axis, measure in zip(figure.axes, ("relative_drop", "drop_points"), strict=True):
        own = summary[(summary["measure"] == measure) & (summary["budget"] < 1)]
        for value in own[own["group"] != groups.ALL]["value"]:
            assert np.isclose(drawn(axis), value).any()
    words = [t.get_text() for t in figure.findobj(plt.Text)]
    assert "from here" in words and "small (100 train, 100 test)" in words and "10 %" in words
    bars = plots.group_accuracy(table)
    accuracy = summary[(summary["measure"] == "accuracy") & (summary["group"] != groups.ALL)]
    heights = sorted(p.get_height() for p in bars.axes[0].patches)
    np.testing.assert_allclose(heights, sorted(accuracy["value"]))
    overall = plots.overall(table)
    everyone = summary[(summary["measure"] == "accuracy") & (summary["group"] == groups.ALL)]
    for axis, shown in zip(overall.axes, (everyone["value"], [40.0, 80.0]), strict=True):
        for value in shown:
            assert np.isclose(drawn(axis), value).any()


def test_every_method_has_a_row_of_its_own():
    """Titles name the methods; a budget that one of them cannot meet is said."""
    snl, other = tally(), tally(60).assign(method="deepreduce")
    both = pd.concat([snl, other[other["budget"] == 1], snl.assign(method="random")])
    figure = plots.drops(both)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["SNL"] * 2 + ["DeepReDuce"] * 2 + ["random"] * 2
    assert report.out_of_reach(both) == "Out of reach: DeepReDuce at 10 %"
    assert report.out_of_reach(both) in report.provenance(both)
    assert "DeepReDuce" not in report.verdict(both) and report.out_of_reach(snl) == ""


def test_splits_and_code_stand_in_the_line():
    """Shortened, each once; a changed working tree keeps its mark."""
    table = tally().assign(data="0123456789ab", commit="abcdef012345+")
    table["commit"] = table["commit"].mask(table["seed"] == 1, "0000000fffff")
    assert "2026-01-01 · data 0123456 · code abcdef0+, 0000000" in report.provenance(table)
    assert "code" not in report.provenance(tally())


def test_small_and_many_groups_are_not_drawn_but_named():
    """Fewer than 30 test images: said below. More than ten groups: the two ends, unless all."""
    one = tally()
    large = one[one["group"] == "large"]
    many = [large.assign(group=f"g{i}", train_n=1000 - i) for i in range(11)]
    tiny = large.assign(group="tiny", train_n=3, n=29, correct=9, base=9, both=9)
    table = pd.concat([*many, tiny])
    few, every = plots.styles(table), plots.styles(table, every=True)
    assert list(few) == ["g0", "g1", "g9", "g10"] and list(every) == [f"g{i}" for i in range(11)]
    assert few == {group: every[group] for group in few}  # in the colours they have among all
    assert len(plots.styles(pd.concat([*many[:10], tiny]))) == 10
    assert "fewer than 30 test images: tiny (29)" in report.provenance(table)
    assert (
        report.pretty(table).loc[("SNL", "10 %", "tiny"), "accuracy (%)"] == "fewer than 30 images"
    )


def test_the_learned_boundary_is_drawn_where_the_score_is_zero():
    """On the solid line, the two logits are equal."""
    study = theory.DecisionBoundary([0.5], 0.1, 300, [4], 200, 0.02, [0])
    toy = study.toys()[0]
    figure = plots.boundaries(toy, [1.0, 0.5])
    for axis, kept in zip(figure.axes, (1.0, 0.5), strict=True):
        (contour,) = [c for c in axis.collections if hasattr(c, "levels")]
        vertices = np.concatenate([p.vertices for p in contour.get_paths()])
        steep = np.abs(toy.score(kept, np.array([[0.0, 1.0], [0.0, -1.0]]))).max()
        assert np.abs(toy.score(kept, vertices)).max() < 0.02 * steep


# What is published -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_published_tables_are_whole(path):
    """Known columns, counts that can be, every group at every budget of every seed."""
    table = pd.read_csv(path)
    assert not table.isna().any(axis=None)
    assert set([*TALLY, "device", "date", "tier", "what", "study"]) <= set(table.columns)
    assert (table["both"] <= table[["correct", "base"]].min(axis=1)).all()
    assert (table[["correct", "base"]].max(axis=1) <= table["n"]).all()
    assert (table["correct"] + table["base"] - table["both"] <= table["n"]).all()
    full = table.groupby(["method", "remedy", "seed", "budget"])["group"].nunique()
    assert full.nunique() == 1 and len(table) == full.sum()
    plain = table[table["remedy"] == "plain"]
    assert (plain.groupby(["seed", "group"])["base"].nunique() == 1).all()
    studies = table.groupby(["method", "remedy"])["study"].nunique()
    assert (studies == 1).all() and table["tier"].nunique() == 1
    keys = ["method", "seed", "budget", "group"]  # the base of a remedy is the network without it
    cured = table[table["remedy"] != "plain"]
    cured = cured.merge(plain, on=keys, suffixes=("", "_plain"))
    assert (cured["base"] == cured["correct_plain"]).all()


def test_the_headline_figure_is_drawn_from_the_published_table(tmp_path):
    """Drawn again, it is the same picture. ``make claims`` renews it."""
    committed = project_root() / "book" / "figures" / "headline.png"
    landing.save_headline(tmp_path / "new.png")
    assert compare_images(str(committed), str(tmp_path / "new.png"), tol=3) is None


def test_pages_say_what_the_published_tables_say(of_remedies):
    """Their findings are the verdicts, word for word."""
    verdict, table = report.verdict(landing.tally("race")), landing.answer("race")
    readme, index = ((project_root() / p).read_text() for p in ("README.md", "book/index.md"))
    assert verdict in readme and verdict in index and table in readme
    assert "```{include} answer.md\n```" in index and "```{include} remedy.md\n```" in index
    objects = report.verdict(landing.tally("object", base="all_kept"))
    assert objects in readme and objects in index
    gains = [float(re.search(r"[\d.]+", row.split(": ", 1)[1])[0]) for row in of_remedies[:6]]
    for page in (readme, index):
        assert "in all six networks" in page
        assert f"by {min(gains):.0f} to {max(gains):.0f} points" in page


def test_what_pages_say_of_the_remedy_is_what_its_table_says(of_remedies):
    """Five of six help the smallest and cost the largest; multipliers follow, but for one pair."""
    cells = [line.strip(" |").split(" | ") for line in of_remedies]
    settled = [["**" in cell for cell in row[1:3]] for row in cells]
    assert settled == [*[[True, True]] * 6, *[[False, True]] * 2]
    gains = [float(re.search(r"−?[\d.]+ (?=\[)", row[1])[0].replace("−", "-")) for row in cells[:6]]
    assert min(gains) > 0 and all(": **−" in row[2] for row in cells if "**" in row[2])
    everyone = ["settled" if "**" in row[3] else "" for row in cells]
    assert everyone == ["", "", "", "settled", "", "settled", "", ""]
    assert cells[3][3][2] == "2" and cells[5][3][2] == "−"
    multipliers = [float(row[5]) for row in cells[:6]]
    pairs = itertools.combinations(zip(multipliers, gains, strict=True), 2)
    assert sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in pairs) == 1
    assert multipliers[0] == min(multipliers)


def test_a_grid_that_was_not_run_says_so():
    grid = {"remedy": ["cvar"] * 2, "strength": [0.2, 0.5], "worst": [np.nan, 41.27],
            "accuracy": [np.nan, 90.0], "chosen": [False, True]}  # fmt: skip
    shown = report.tuning(pd.DataFrame(grid))
    assert shown["worst group (%)"].tolist() == ["no tuning seed", "41.3"]
    assert shown["everyone (%)"].tolist() == ["no tuning seed", "90.0"]


def test_what_to_use_is_said_by_what_was_seen():
    """A remedy that lifts the worst group, one that lowers it, and one that changes nothing."""
    parts = {"cvar 0.5": 60, "jtt 5": 20, "swa 0.5": 40}
    table = pd.concat(tally(right).assign(remedy=name) for name, right in parts.items())
    table.loc[(table["budget"] == 0.1) & (table["group"] == "small"), ["base", "both"]] = [40, 20]
    said = report.choice(table)
    helps, cvar, harms, jtt, neither, swa, seeds = said.split("\n\n")
    assert helps == "Seen to **help** the worst group, gains in points:"
    assert cvar.startswith("- SNL, CVaR (0.5): worst group 20.0 [")
    assert harms == "Seen to **harm** it:"
    assert jtt.startswith("- SNL, JTT (5): worst group −20.0 [")
    assert neither == "Seen to do neither:"
    assert swa.startswith("- SNL, SWA (0.5): worst group 0.0 [")
    assert seeds == "(2 seeds, 95 % intervals.)"


def test_a_table_of_small_groups_alone_is_drawn_and_told():
    """No group has enough test images for a curve, and one is never right: a dash, and no crash."""
    table = tally().assign(n=20, correct=10, base=12, both=9)
    (axis,) = plots.group_accuracy(table).axes
    assert axis.get_ylabel() == "test accuracy (%)"
    never = tally().assign(base=0, both=0)
    assert (report.pretty(never)["relative drop (%)"] == "—").all()


def test_signs_stand_by_size_before_and_after_each_method():
    rows = [
        {"seed": seed, "method": method, "budget": budget, "group": group, "n": n, "split": "train",
         "measure": "scaled_gradient", "value": value + seed}
        for seed in (0, 1)
        for method, after in (("snl", 3.0), ("all_kept", 7.0))
        for budget, value in ((1.0, 1.0), (0.02, after))
        for group, n in (("few", 10), ("many", 90))
    ]  # fmt: skip
    rows.append(rows[0] | {"measure": "refined", "value": 2.0, "group": "few"})
    shown = report.signs(pd.DataFrame(rows))
    assert list(shown.index) == ["many", "few"]
    first = shown[plots.WORDS["scaled_gradient"]]
    assert list(first) == ["teacher", "SNL", "control with all ReLUs"]
    assert first.loc["few"].tolist() == ["1.5", "3.5", "7.5"]


def test_halves_keep_what_names_a_row():
    """Counts are summed over the classes of a half; tier, network and remedy stay."""
    table = tally().assign(group=lambda t: t["group"].replace({"large": "a", "small": "b"}))
    four = pd.concat([table, table.replace({"group": {"a": "c", "b": "d"}})])
    found = report.halves(four)
    assert list(found["group"].unique()) == ["a–b", "c–d"]
    assert set(found) == set(table) and (found["n"] == 1100).all()
    assert report.provenance(found) == report.provenance(table)
