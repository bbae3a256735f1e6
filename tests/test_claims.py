"""The ledger of claims: its file, the tests of the claims, the verdicts, and the pages made of them."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.testing.compare import compare_images

from relufair import bounds, claims, evidence, groups, plots, scoreboard
from relufair.claims import NOT_REPRODUCED, NOT_RUN, NOT_TESTABLE, PARTLY, REPRODUCED, Claim
from relufair.config import TUNING
from relufair.store import project_root

ROOT = project_root()
SIZES = {"large": 900, "middle": 300, "small": 100}
MORE = SIZES | {"smaller": 60, "smallest": 30}
ABOUT = {
    "dataset": "faces", "target": "race", "groups": "label", "arch": "resnet18", "width": 16,
    "method": "snl", "remedy": "plain", "tier": "laptop", "study": "one", "what": "faces",
}  # fmt: skip


def tally(after, before=None, n=4000, seeds=(0, 1), flips=0, **about):
    """Groups with these accuracies (%) at 10 % of the ReLUs, and at 50 %; 80 % with all.

    Of the images right in both networks, ``flips`` are right in one and as many in the other instead.
    """
    rows = []
    for seed in seeds:
        for budget, accuracy in ((1.0, {}), (0.5, before or {}), (0.1, after)):
            for group, train in SIZES.items():
                base, right = (n * a // 100 for a in (80, accuracy.get(group, 80)))
                rows.append({
                    "seed": seed, "budget": budget, "group": group, "train_n": train, "n": n,
                    "correct": right, "base": base, "both": min(right, base) - flips,
                })  # fmt: skip
    return pd.DataFrame(rows).assign(**ABOUT | about)


def measures(values, seeds=(0, 1), **about):
    """A long table: ``values`` of the groups at (budget, seed), and what became of the groups."""
    names = list(MORE.items())[: len(values(1.0, seeds[0]))]
    rows = [
        {
            "seed": seed, "budget": budget, "group": group, "split": "train", "n": size,
            "measure": "gradient", "value": values(budget, seed)[i], "size": size,
            "accuracy": 0.9 - 0.1 * i, "relative_drop": 0.1 * i,
        }
        for seed in seeds for budget in (1.0, 0.1) for i, (group, size) in enumerate(names)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**ABOUT | about).drop(columns="width")


def claim(test, of="tally", **changes):
    """A claim on the rows above."""
    table = {"of": of} | ({} if of in ("theory", "sources") else {"dataset": "faces"})
    fixed = {"id": "c", "claim": "w", "where": "w", "chapter": "data", "table": table, "why": "w"}
    return Claim(**fixed | {"test": test} | changes)


def verdict(found, table, of="tally"):
    """Verdict, settled or not, and the words."""
    own = claims.evaluate(found, {of: table})
    return own.verdict, own.settled, own.found


# Every test on a tally, on hand-made counts --------------------------------------------------------

FEW = {"n": 50}  # so few images that 10 points settle nothing


@pytest.mark.parametrize(
    ("test", "arguments", "side", "table", "expected", "found"),
    [
        ("level", {"group": "small", "budget": 0.1}, {"above": 10}, {"after": {"small": 60}},
         (REPRODUCED, True), "25.0 ["),
        ("level", {"group": "smallest", "budget": 0.1}, {"below": 10}, {"after": {"small": 60}},
         (NOT_REPRODUCED, True), "25.0 ["),
        ("level", {"group": "small", "budget": 0.1}, {"above": 10},
         {"after": {"small": 70}, **FEW}, (PARTLY, False), "12.5 ["),
        ("level", {"group": "small", "budget": 0.1}, {"above": 15},
         {"after": {"small": 70}, **FEW}, (NOT_REPRODUCED, False), "12.5 ["),
        ("level", {"group": "all", "budget": 0.1, "measure": "drop_points"}, {"within": [3, 9]},
         {"after": {"small": 62}}, (REPRODUCED, True), "6.0 ["),
        ("level", {"group": "largest", "budget": 0.1, "measure": "accuracy"}, {"within": [0, 50]},
         {"after": {"small": 62}}, (NOT_REPRODUCED, True), "80.0 ["),
        ("excess", {"budget": 0.1}, {"above": 0}, {"after": {"small": 60}},
         (REPRODUCED, True), "25.0 ["),
        ("excess", {"budget": 0.1}, {"above": 0}, {"after": {"large": 60}},
         (NOT_REPRODUCED, True), "−25.0 ["),
        ("excess", {"budget": 0.1, "since": 0.5}, {"above": 0},
         {"after": {"small": 60}, "before": {"small": 72}}, (REPRODUCED, True), "15.0 ["),
        ("excess", {"budget": 0.1, "ends": 2}, {"above": 0},
         {"after": {"small": 60, "middle": 70}}, (REPRODUCED, True), "12.5 ["),
        ("ratio", {"group": "small", "budget": 0.1, "since": 0.5}, {"above": 4},
         {"after": {"small": 30}, "before": {"small": 70}}, (REPRODUCED, True), "5.00 ["),
        ("ratio", {"group": "small", "budget": 0.1, "since": 0.5}, {"above": 4},
         {"after": {"small": 60}, "before": {"small": 70}}, (NOT_REPRODUCED, True), "2.00 ["),
        ("ratio", {"group": "small", "budget": 0.1, "since": 0.5}, {"above": 4},
         {"after": {"small": 30}, "before": {"small": 84}}, (REPRODUCED, True), "∞"),
        ("ratio", {"group": "small", "budget": 0.1, "since": 0.5}, {"above": 4},
         {"after": {"small": 84}, "before": {"small": 84}}, (NOT_REPRODUCED, True), "0.00"),
        ("order", {"budget": 0.1}, {"below": 0}, {"after": {"small": 50, "middle": 65}},
         (REPRODUCED, True), "−1.00"),
        ("order", {"budget": 0.1}, {"below": 0}, {"after": {"large": 50, "middle": 65}},
         (NOT_REPRODUCED, True), "1.00"),
        ("worst", {"budgets": [0.5, 0.1]}, {"below": 0},
         {"after": dict.fromkeys(SIZES, 88), "before": dict.fromkeys(SIZES, 90)},
         (REPRODUCED, True), "−8.0 ["),
        ("worst", {"budgets": [0.5, 0.1]}, {"below": 0},
         {"after": dict.fromkeys(SIZES, 88), "before": {"large": 90, "middle": 70}},
         (NOT_REPRODUCED, True), "10.0 ["),
        ("gap", {"budget": 0.1}, {"above": 5}, {"after": {"small": 70}},
         (REPRODUCED, True), "10.0 ["),
        ("jump", {"budgets": [1.0, 0.5, 0.1]}, {"below": 5},
         {"after": dict.fromkeys(SIZES, 60), "before": dict.fromkeys(SIZES, 78)},
         (NOT_REPRODUCED, True), "18.0 ["),
        ("apart", {"budget": 0.1, "accuracies": {"small": 63, "large": 81}}, {"below": 5},
         {"after": {"small": 60}}, (REPRODUCED, True), "3.0 ["),
        ("apart", {"budget": 0.1, "accuracies": {"small": 90, "large": 81}}, {"below": 5},
         {"after": {"small": 60}}, (NOT_REPRODUCED, True), "30.0 ["),
        ("changed", {"budget": 0.1}, {"below": 1}, {"after": {}}, (REPRODUCED, True), "0 images"),
        ("changed", {"budget": 0.1}, {"below": 1}, {"after": {"small": 79}},
         (NOT_REPRODUCED, True), "80 ["),
        ("changed", {"budget": 0.1}, {"above": 40}, {"after": {}, "n": 600, "flips": 10},
         (REPRODUCED, True), "120 ["),
        ("shares", {"shares": {"small": 7.7, "large": 69.0}}, {"below": 0.5}, {"after": {}},
         (REPRODUCED, True), "0.2 points"),
        ("shares", {"shares": {"small": 9.7, "large": 69.0}}, {"below": 0.5}, {"after": {}},
         (NOT_REPRODUCED, True), "2.0 points"),
    ],
)  # fmt: skip
def test_a_tally_gets_the_verdict_it_deserves(test, arguments, side, table, expected, found):
    """The number can be computed by hand from the accuracies; the verdict follows from it."""
    *judged, words = verdict(claim(test, arguments=arguments, **side), tally(**table))
    assert tuple(judged) == expected
    assert words.startswith(found)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((2, 1.1, 2.9), (REPRODUCED, True)),
        ((2, 1, 2.9), (PARTLY, False)),  # an end on the threshold is not inside
        ((2, 1.1, 3), (PARTLY, False)),
        ((1, 0.5, 1.5), (NOT_REPRODUCED, False)),
        ((0.5, 0, 1), (NOT_REPRODUCED, True)),
        ((4, 3, 5), (NOT_REPRODUCED, True)),
        ((4, 0, 5), (NOT_REPRODUCED, False)),
    ],
)
def test_the_verdict_follows_the_rules(interval, expected):
    """Where the claim is a number between 1 and 3."""
    assert claims.judge(*interval, 1, 3) == expected


def test_a_gap_that_was_there_before_is_no_growth():
    """In the base the smallest group lies 20 points behind, after it 10."""
    table = tally({"small": 70})
    table.loc[table["group"] == "small", "base"] = 2400
    table["both"] = table[["base", "correct"]].min(axis=1)
    own = claim("gap", arguments={"budget": 0.1}, below=0)
    *judged, found = verdict(own, table)
    assert tuple(judged) == (REPRODUCED, True) and found.startswith("−10.0 [")


def test_of_several_numbers_the_interval_is_wider():
    """Of six equal numbers one stands out by chance; by itself its interval is narrower."""
    table = tally(dict.fromkeys(SIZES, 78), dict.fromkeys(SIZES, 78), n=400, flips=30)
    every = claim("worst", arguments={"budgets": [0.5, 0.1]}, below=0)
    one = claim(
        "level", arguments={"group": "small", "budget": 0.1, "measure": "drop_points"}, below=0
    )
    every, one = (claims.evaluate(own, {"tally": table}) for own in (every, one))
    assert every.number == one.number and every.high > one.high + 0.3


def test_one_group_that_may_lose_leaves_it_open_whether_all_gain():
    """The largest of noisy numbers is above zero by chance; that settles nothing."""
    table = tally({"large": 90, "middle": 90, "small": 78}, n=60, flips=4)
    own = claim("worst", arguments={"budgets": [0.1]}, below=0)
    assert verdict(own, table)[:2] == (NOT_REPRODUCED, False)


def test_with_one_budget_the_intervals_are_those_of_the_chapters():
    """Value, low and high of :func:`relufair.groups.by_group` and ``disparity``, to the digit."""
    table = tally({"small": 60}, n=200)
    shown = groups.by_group(table).query("measure == 'relative_drop' and budget == 0.1")
    shown = shown.set_index("group").loc["small", ["value", "low", "high"]]
    own = claims.evaluate(
        claim("level", arguments={"group": "small", "budget": 0.1}, above=0), {"tally": table}
    )
    np.testing.assert_array_equal([own.number, own.low, own.high], shown.to_numpy(float))
    shown = groups.disparity(table).query("measure == 'excess' and budget == 0.1").iloc[0]
    own = claims.evaluate(claim("excess", arguments={"budget": 0.1}, above=0), {"tally": table})
    found = shown[["value", "low", "high"]].to_numpy(float)
    np.testing.assert_array_equal([own.number, own.low, own.high], found)


def test_a_second_table_is_taken_off_the_first():
    """By the seeds that both have; the words name both."""
    both = pd.concat([
        tally({"small": 60}, method="deepreduce", study="two"),
        tally({"small": 0}, method="deepreduce", study="two", seeds=[2]),
        tally({"small": 70}),
    ])  # fmt: skip
    table = {"of": "tally", "dataset": "faces"}
    own = claim(
        "level", table=table | {"method": "deepreduce"}, against=table | {"method": "snl"},
        arguments={"group": "small", "budget": 0.1}, above=5,
    )  # fmt: skip
    found = claims.evaluate(own, {"tally": both})
    assert (found.verdict, found.seeds) == (REPRODUCED, 2)
    assert found.found.startswith("12.5 [") and found.found.endswith(" points of relative drop")
    assert found.rows == "faces · deepreduce · plain against faces · snl · plain"


def test_tables_that_are_compared_draw_the_same_seeds_and_other_images():
    """Of a table and its like the difference is zero, and no surer than images of its own make it."""
    both = pd.concat([tally({"small": 60}), tally({"small": 60}, method="random", study="two")])
    table = {"of": "tally", "dataset": "faces"}
    own = claim(
        "level", table=table | {"method": "snl"}, against=table | {"method": "random"},
        arguments={"group": "small", "budget": 0.1}, above=0,
    )  # fmt: skip
    alone = claims.evaluate(replace(own, against=None), {"tally": both})
    found = claims.evaluate(own, {"tally": both})
    assert found.number == 0
    wider = (found.high - found.low) / (alone.high - alone.low)
    assert wider == pytest.approx(2**0.5, rel=0.1)


# Tests on other tables -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("small", "expected"),
    [
        ((8, 8.2), (REPRODUCED, True)),  # four times the largest group's, twice as much before
        ((2.2, 9), (PARTLY, False)),
        ((1.8, 2.1), (NOT_REPRODUCED, False)),
        ((0.4, 0.41), (NOT_REPRODUCED, True)),
    ],
)
def test_a_quotient_gets_the_verdict_it_deserves(small, expected):
    """Against the largest group, and against the same group with all ReLUs."""

    def values(budget, seed):
        return (2, 2, small[seed] if budget == 0.1 else 2)

    for other in ({"to": "largest"}, {"since": 1.0}):
        arguments = {"measure": "gradient", "budget": 0.1, "group": "smallest"} | other
        own = claim("quotient", "geometry", arguments=arguments, above=1)
        *judged, found = verdict(own, measures(values), "geometry")
        assert tuple(judged) == expected
        mean = np.sqrt(small[0] * small[1]) / 2
        assert found.startswith(f"{mean:.2f} [") and found.endswith(" times")
        low = mean * np.exp(-12.706 / 2 * np.abs(np.diff(np.log(small))[0]))  # Student's, 2 seeds
        assert f"[{low:.2f}, " in found


@pytest.mark.parametrize("gone", [np.nan, 0.0])
def test_a_quotient_needs_a_finite_value_of_two_seeds(gone):
    def values(budget, seed):
        return (2, 2, gone if seed and budget == 0.1 else 3)

    arguments = {"measure": "gradient", "budget": 0.1, "group": "smallest", "to": "largest"}
    own = claim("quotient", "geometry", arguments=arguments, above=1)
    with np.errstate(divide="ignore"):
        assert verdict(own, measures(values), "geometry")[0] == NOT_RUN


def test_quotients_of_two_tables():
    """The remedy halves the measure, in both seeds."""
    table = pd.concat([
        measures(lambda *_: (2, 2, 6)), measures(lambda *_: (2, 2, 3), remedy="cure"),
    ])  # fmt: skip
    where = {"of": "geometry", "dataset": "faces"}
    own = claim(
        "quotient", table=where | {"remedy": "cure"}, against=where | {"remedy": "plain"},
        arguments={"measure": "gradient", "budget": 0.1, "group": "small"}, below=1,
    )  # fmt: skip
    assert verdict(own, table, "geometry") == (REPRODUCED, True, "0.50 times")


@pytest.mark.parametrize("outcome", ["accuracy", "relative_drop", "size"])
@pytest.mark.parametrize("at", [None, 1.0])
def test_a_correlation_gets_the_verdict_it_deserves(outcome, at):
    """The measure rises from group to group at 10 % of the ReLUs, and falls with all of them."""
    sign = {"accuracy": -1, "relative_drop": 1, "size": -1}[outcome] * (1 if at is None else -1)
    table = measures(lambda budget, _: (1, 2, 3, 4, 5) if budget == 0.1 else (5, 4, 3, 2, 1))
    arguments = {"measure": "gradient", "budget": 0.1, "outcome": outcome, "at": at}
    own = claim("correlation", "geometry", arguments=arguments, above=0)
    expected = REPRODUCED if sign > 0 else NOT_REPRODUCED
    assert verdict(own, table, "geometry")[:2] == (expected, True)
    assert verdict(own, table, "geometry")[2].startswith(f"{sign}.00".replace("-", "−"))


def test_a_correlation_without_order_settles_nothing():
    table = measures(lambda _, seed: (1, 3, 2, 5, 4) if seed else (2, 1, 3, 4, 5))
    table = table.assign(value=table["value"].mask(table["seed"] == 1, 6 - table["value"]))
    arguments = {"measure": "gradient", "budget": 0.1, "outcome": "size"}
    own = claim("correlation", "geometry", arguments=arguments, below=0)
    assert verdict(own, table, "geometry")[:2] == (PARTLY, False)


def test_a_correlation_needs_five_groups():
    """Redrawing fewer says nothing: the interval of three in perfect order has no width."""
    arguments = {"measure": "gradient", "budget": 0.1, "outcome": "size"}
    own = claim("correlation", "geometry", arguments=arguments, below=0)
    assert verdict(own, measures(lambda *_: (1, 2, 3, 4)), "geometry")[0] == NOT_RUN
    assert verdict(own, measures(lambda *_: (1, 2, 3, 4, 5)), "geometry")[0] == REPRODUCED


def test_a_jump_of_nothing_is_not_settled():
    """Where nothing changes from budget to budget, draws of a jump's size alone are above zero."""
    table = tally(before={"large": 80}, after={"large": 80})
    own = claim("jump", arguments={"budgets": [1.0, 0.5, 0.1]}, above=0)
    assert verdict(own, table)[:2] == (NOT_REPRODUCED, False)


@pytest.mark.parametrize(
    ("statements", "expected", "judged"),
    [
        (["best"], "holds", REPRODUCED),
        (["group"], "holds", NOT_REPRODUCED),
        (["best", "group"], "holds", NOT_REPRODUCED),
        (["group"], "fails", REPRODUCED),
    ],
)
def test_a_statement_holds_or_fails(statements, expected, judged):
    """One that fails decides; and what should fail does."""
    rows = [
        {"section": s[0], "statement": s[1], "computed": "number", "found": "7", "verdict": v}
        for s, v in ((bounds.STATEMENTS["best"], "holds"), (bounds.STATEMENTS["group"], "fails"))
    ]
    arguments = {"statements": statements, "expected": expected}
    found = verdict(
        claim("holds", "theory", arguments=arguments),
        pd.DataFrame(rows).assign(tier="every"), "theory",
    )  # fmt: skip
    assert found == (judged, True, "; ".join(["number: 7"] * len(statements)))


def test_images_of_a_source_are_counted():
    table = pd.DataFrame({"source": ["a", "b"], "images": [1000, 2], "tier": "every"})
    own = claim("images", "sources", arguments={"source": "a"}, above=999)
    assert verdict(own, table, "sources") == (REPRODUCED, True, "1,000 images")


# Which rows ----------------------------------------------------------------------------------------

FALL = claim("excess", arguments={"budget": 0.1}, above=0)


@pytest.mark.parametrize(
    "table",
    [
        tally({"small": 60}, seeds=[0]),  # one seed says nothing
        tally({"small": 60}, tier="ci"),
        tally({"small": 60}, tier="laptop, changed"),
        tally({"small": 60}, dataset="others"),
        tally({"small": 60}).query("budget != 0.1"),
        tally({"small": 60}).query("budget != 0.1 or seed == 0"),
    ],
)
def test_what_is_not_there_has_not_been_run(table):
    assert claims.evaluate(FALL, {"tally": table}).verdict == NOT_RUN


def test_of_what_was_never_right_no_drop_can_be_given():
    own = claims.evaluate(FALL, {"tally": tally({}).assign(base=0, both=0)})
    assert (own.verdict, own.found) == (NOT_TESTABLE, "run, but a group is never right")


def test_odd_runs_decide_nothing():
    """A note on some seeds leaves them out; on all, the claim cannot be tested here, and says why."""
    table = tally({"small": 60}).assign(note="")
    sound = claims.evaluate(FALL, {"tally": table})
    odd = table[table["seed"] == 0].assign(seed=9, correct=0, note="diverged")
    own = claims.evaluate(FALL, {"tally": pd.concat([table, odd])})
    assert (own.number, own.seeds) == (sound.number, sound.seeds)
    none = claims.evaluate(FALL, {"tally": table.assign(note="diverged")})
    assert (none.verdict, none.found) == (NOT_TESTABLE, "run, but diverged")


def test_without_a_table_nothing_can_be_tested():
    own = claims.evaluate(replace(FALL, table=None, test="none"), {})
    assert (own.verdict, own.found, own.seeds) == (NOT_TESTABLE, "", 0)


def test_tiers_widths_and_studies_are_never_mixed():
    """The paper's tier decides once it has two seeds; of two widths, the larger."""
    laptop, paper = tally({"small": 60}), tally({"large": 60}, tier="paper", study="two")
    found = claims.evaluate(FALL, {"tally": pd.concat([laptop, paper])})
    assert (found.verdict, found.tier, found.seeds) == (NOT_REPRODUCED, "paper", 2)
    found = claims.evaluate(FALL, {"tally": pd.concat([laptop, paper.query("seed == 0")])})
    assert (found.verdict, found.tier, found.seeds) == (REPRODUCED, "laptop", 2)
    wide = tally({"large": 60}, width=64, study="two")
    assert claims.evaluate(FALL, {"tally": pd.concat([laptop, wide])}).verdict == NOT_REPRODUCED
    table = FALL.table | {"method": "snl"}
    against = replace(FALL, table=table, against=table | {"method": "random"})
    other = tally({}, method="random", width=64, study="three")
    assert claims.evaluate(against, {"tally": pd.concat([laptop, other])}).verdict == NOT_RUN
    again = tally({"small": 60}, study="two", seeds=(2, 3))
    with pytest.raises(ValueError, match="rows of several studies"):
        claims.evaluate(FALL, {"tally": pd.concat([laptop, again])})


def test_values_may_depend_on_the_tier():
    """In a table and in an argument."""
    table = {"of": "tally", "dataset": "faces", "remedy": {"laptop": "a", "paper": "b"}}
    own = replace(FALL, table=table, arguments={"budget": {"laptop": 0.1, "paper": 0.5}})
    laptop = tally({"small": 60}, remedy="a")
    paper = tally({"small": 60}, {"large": 60}, remedy="b", tier="paper", study="two")
    assert claims.evaluate(own, {"tally": laptop}).found.startswith("25.0")
    assert claims.evaluate(own, {"tally": pd.concat([laptop, paper])}).found.startswith("−25.0")
    assert claims.evaluate(own, {"tally": laptop.assign(remedy="b")}).verdict == NOT_RUN


def test_a_group_that_is_not_there_is_an_error_that_names_the_claim():
    own = claim("level", arguments={"group": "nobody", "budget": 0.1}, above=0)
    with pytest.raises(ValueError, match="claim 'c': arguments: no 'nobody'"):
        claims.evaluate(own, {"tally": tally({})})


# The file ------------------------------------------------------------------------------------------

GOOD = {
    "id": "one", "claim": "w", "where": "w", "chapter": "data", "table": "t", "test": "level",
    "arguments": {"group": "all", "budget": 0.1}, "above": 0, "why": "w",
}  # fmt: skip


def written(tmp_path, *entries):
    tables = {"t": {"of": "tally"}, "s": {"of": "theory"}, "x": {"of": "y"}}
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"tables": tables, "claims": list(entries)}))
    return claims.load(path)


def test_a_good_entry_is_read(tmp_path):
    """Its table is spelled out."""
    (own,) = written(tmp_path, GOOD)
    assert own.table == {"of": "tally"} | claims.USUAL and own.claimed == (0, np.inf)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "field='colour': allowed is id, claim, where"),
        ({"why": None}, "why=None"),
        ({"table": "u"}, "table='u': allowed is none, s, t"),
        ({"against": "u"}, "against='u'"),
        ({"table": "x"}, "table: of='y': allowed is tally, toy"),
        ({"test": "guess"}, "test='guess': allowed is level, ratio"),
        ({"test": "quotient"}, "test='quotient'"),
        ({"table": "none"}, "test='level': allowed is none"),
        ({"arguments": {"group": "all"}}, "arguments: missing a required argument: 'budget'"),
        ({"arguments": {"group": "all", "budget": 1, "x": 2}}, "arguments: .*'x'"),
        ({"below": 0}, r"threshold=\['above', 'below'\]: allowed is 1 of above, below, within"),
        ({"above": None}, r"threshold=\[\]"),
        ({"above": "high"}, "above='high': allowed is a number"),
        ({"above": None, "within": [3, 2]}, r"within=\[3, 2\]: allowed is a number, or for within"),
        ({"chapter": "99_none"}, "chapter='99_none'"),
        ({"table": "s", "test": "holds", "above": None, "arguments": {"statements": ["9.9"]}},
         r"statements=\['9.9'\]"),
    ],
)  # fmt: skip
def test_a_bad_entry_is_refused_by_name(tmp_path, change, message):
    entry = {k: v for k, v in (GOOD | change).items() if v is not None}
    with pytest.raises(ValueError, match=f"claim 'one': {message}"):
        written(tmp_path, entry)


def test_an_id_stands_once(tmp_path):
    with pytest.raises(ValueError, match="claim 'one': id='one'"):
        written(tmp_path, GOOD, GOOD)


# Definitions and the published verdicts -------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"above": 1}, {"above": None, "below": 0}, {"arguments": {"budget": 0.5}}, {"test": "gap"},
        {"table": FALL.table | {"method": "random"}}, {"against": FALL.table},
    ],
)  # fmt: skip
def test_what_decides_makes_the_definition(change):
    """A changed threshold, argument, test or table shows; other words do not."""
    assert replace(FALL, **change).definition != FALL.definition
    assert replace(FALL, claim="other", why="other", where="other").definition == FALL.definition


@pytest.fixture(scope="module")
def ledger():
    return claims.load()


def test_the_published_verdicts_are_those_of_the_published_tables():
    """Definitions, so that a moved threshold shows, and what was found; ``make claims`` renews them."""
    columns = ["definition", "verdict", "settled", "found", "seeds", "tier", "rows"]
    new, old = claims.computed()[columns], claims.verdicts()[columns]
    assert new.to_dict("index") == old.to_dict("index")


def test_every_test_is_used_and_every_claim_has_words(ledger):
    used = {own.test for own in ledger} - {"none"}
    assert used == {name for tests in evidence.TESTS.values() for name in tests}
    for own in ledger:
        assert re.fullmatch(r"[a-z0-9-]+", own.id)
        assert own.claim.endswith(".") and own.where and own.why
        assert not {"|", "\n"} & set(own.claim + own.where + own.why)


def test_published_tables_are_put_together(tmp_path, monkeypatch):
    """No turned halves, no validation, no seed that chose; each group's fate beside its measures."""
    monkeypatch.setattr(claims, "results_folder", lambda: tmp_path)
    plain = tally({"small": 60}).replace({"group": {"large": "0", "middle": "1", "small": "2"}})
    turned = plain.assign(study="x", what="faces, keep rotated")
    remedied = plain.assign(remedy="cvar 0.5", study="y")
    chose = plain.assign(seed=TUNING)
    parts = {"test": [plain, turned, remedied, chose], "validation": [plain.assign(correct=1)]}
    split = pd.concat([part.assign(split=name) for name, own in parts.items() for part in own])
    split.to_parquet(tmp_path / "tally.parquet")
    own = pd.concat([plain, chose]).drop(
        columns=["train_n", "n", "correct", "base", "both", "study"]
    )
    own = own.assign(measure="gradient", split="train")
    monkeypatch.setattr(claims, "geometry", lambda folder: own)
    (tmp_path / "theory").mkdir()
    for name in ("decision_boundary", "theory"):
        plain.to_csv(tmp_path / "theory" / f"{name}.csv", index=False)
    found = claims.published()
    assert len(found["tally"]) == 2 * len(plain) and set(found["tally"]["seed"]) == {0, 1}
    counted = found["tally"].groupby(["method", "remedy"])["correct"].sum()
    assert len(counted) == 2 and set(counted) == {plain["correct"].sum()}
    assert len(found["geometry"]) == len(plain) and set(found["geometry"]["seed"]) == {0, 1}
    last = found["geometry"].query("seed == 1 and budget == 0.1 and group == '2'").iloc[0]
    assert (last["accuracy"], last["relative_drop"], last["size"]) == (
        0.6,
        pytest.approx(0.25),
        100,
    )


def test_the_published_statements_are_those_of_the_theory():
    statements = claims.published()["theory"][["section", "statement"]].to_numpy().tolist()
    assert statements == [list(row[:2]) for row in bounds.STATEMENTS.values()]


# What people see -----------------------------------------------------------------------------------


def test_the_score_counts_every_claim_once(ledger):
    counts = scoreboard.score()
    assert list(counts.index) == list(claims.VERDICTS)
    assert counts.to_numpy().sum() == len(ledger)
    assert counts.loc[PARTLY, "settled"] == counts.loc[NOT_RUN, "not settled"] == 0


def test_the_score_in_a_sentence():
    counts = pd.DataFrame(
        {"settled": [3, 0, 2, 1, 0], "not settled": [0, 2, 1, 0, 0]}, index=claims.VERDICTS
    )
    assert scoreboard.alternative(counts) == (
        "Of 9 claims: 3 reproduced; 2 partly, none of them settled; 3 not reproduced, 1 of them "
        "not settled; 1 not testable here; 0 not yet run."
    )
    words = {
        t.get_text() for t in plots.scoreboard(counts).findobj(lambda a: hasattr(a, "get_text"))
    }
    assert {"3 reproduced", "2 partly", "3 not reproduced", "0 not yet run"} <= words


def test_the_pages_show_the_published_verdicts(tmp_path, ledger):
    """Page and figure are current (``make claims``), each chapter's claims under its name."""
    assert (ROOT / "book" / "ledger.md").read_text(encoding="utf-8") == scoreboard.page()
    assert (ROOT / "book" / "answer.md").read_text(encoding="utf-8") == scoreboard.answer()
    assert (ROOT / "book" / "remedy.md").read_text(encoding="utf-8") == scoreboard.remedy()
    assert (ROOT / "book" / "origins.md").read_text(encoding="utf-8") == scoreboard.origins()
    plots.scoreboard(scoreboard.score()).savefig(tmp_path / "new.png", dpi=160)
    committed = ROOT / "book" / "figures" / "scoreboard.png"
    assert compare_images(str(committed), str(tmp_path / "new.png"), tol=3) is None
    rows = [line for line in scoreboard.page().splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in rows} == {6}
    for chapter in {own.chapter for own in ledger}:
        shown = scoreboard.ledger(chapter)
        assert shown["claim"].tolist() == [c.claim for c in ledger if c.chapter == chapter]


def test_a_chapter_ends_with_its_claims(monkeypatch):
    """Counted in a sentence, then each with number, seeds and tier; what is not settled is said."""
    tables = {"tally": tally({"small": 60})}
    open_ = replace(FALL, id="open", above=26)
    none = replace(FALL, id="none", table=None, test="none")
    elsewhere = replace(FALL, id="elsewhere", chapter="method")
    every = [FALL, open_, none, elsewhere]
    found = claims.computed(every, tables)
    monkeypatch.setattr(claims, "verdicts", lambda: found)
    monkeypatch.setattr(claims, "load", lambda: every)
    said, _, *rows = scoreboard.chapter(FALL.chapter).splitlines()
    assert said == (
        "Of 3 claims: 1 reproduced; 1 not reproduced, none of them settled; 1 not testable here."
    )
    number = r"25\.0 \[[\d., ]+\] points of relative drop, 2 seeds, `laptop`"
    for row, expected in zip(
        rows[2:],
        (
            rf"reproduced \| {number}",
            rf"not reproduced \(not settled\) \| {number}",
            r"not testable here \| ",
        ),
        strict=True,
    ):
        assert re.search(r"^\| [^|]* \| " + expected + r" \|", row)


@pytest.mark.parametrize(
    ("chapter", "title"),
    [
        ("data", "[Data](/book/data.md)"),
        ("05_mitigation", "[A fairer finetuning](/notebooks/05_mitigation.ipynb)"),
    ],
)
def test_chapters_are_called_by_their_titles(chapter, title):
    assert f"## {title}" in scoreboard.page().splitlines()
