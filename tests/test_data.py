"""Splits, the imbalance protocol and the groups, on drawn tables and on the digits."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from relufair import config, data
from relufair.data import Choice, GroupedImages
from relufair.sources import SOURCES, Pictures, Source
from relufair.store import Store


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("RELUFAIR_DATA", raising=False)


def images(n, seed=0, channels=1, side=4):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, channels, side, side), dtype=np.uint8)


def category(values, names):
    """An ordered column; None is missing."""
    return pd.Categorical(values, categories=names, ordered=True)


def grouped(n=6, **changes):
    fields = {
        "images": images(n),
        "labels": np.arange(n) % 2,
        "groups": np.arange(n) % 3,
        "rows": np.arange(n),
        "classes": ("a", "b"),
        "group_names": ("x", "y", "z"),
    }
    return GroupedImages(**fields | changes)


@pytest.fixture
def toy(monkeypatch):
    """Make a table of attributes the source ``toy``."""

    def make(target="label", groups="label", seed=0, **columns):
        n = len(next(iter(columns.values())))
        table = pd.DataFrame({"file": [f"{i:05d}" for i in range(n)]} | columns)
        read = lambda folder, size: (images(n, seed, side=16), table, [])  # noqa: E731
        names = {
            n: c.nunique() if hasattr(c, "nunique") else len(c.categories)
            for n, c in columns.items()
            if n != "split"
        }
        source = Source(read, "toy", "free", "drawn", names, target, groups, size=16)
        monkeypatch.setitem(SOURCES, "toy", source)

    return make


def load(tmp_path, seed=0, **choice):
    """Load the toy source; nothing is kept from one load to the next."""
    store = Store(tmp_path / f"store{len(list(tmp_path.iterdir()))}")
    return data.load(Choice("toy", **choice), seed, None, store)


# Splits ------------------------------------------------------------------------------------------

classes = st.lists(st.integers(13, 70), min_size=2, max_size=8)
seeds = st.integers(0, 2**31)


def labels_of(sizes, seed=0):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(seed).permutation(labels)


@settings(max_examples=60, deadline=None)
@given(classes, seeds)
def test_a_split_is_complete_disjoint_and_sorted(sizes, seed):
    """Every sample is in exactly one part; 20 % are for testing, 10 % of the rest for tuning."""
    labels = labels_of(sizes)
    parts = data.split(labels, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert all((np.diff(part) > 0).all() for part in parts)
    _, validation, test = map(len, parts)
    assert test == int(np.ceil(0.2 * len(labels)))
    assert validation == int(np.ceil(0.1 * (len(labels) - test)))


@settings(max_examples=60, deadline=None)
@given(classes, seeds)
def test_a_split_is_stratified(sizes, seed):
    """In every part each class has its share, up to rounding."""
    labels = labels_of(sizes)
    train, validation, test = data.split(labels, seed)
    share = np.array(sizes) / len(labels)
    for part, whole in ((test, share), (validation, None), (train, None)):
        counts = np.bincount(labels[part], minlength=len(sizes))
        if whole is None:
            rest = np.bincount(labels[np.union1d(train, validation)], minlength=len(sizes))
            whole = rest / rest.sum()
        assert (np.abs(counts - whole * len(part)) < 1).all()


@settings(max_examples=30, deadline=None)
@given(classes, seeds)
def test_a_seed_is_a_split(sizes, seed):
    """The same seed gives the same split, whatever was drawn before; another seed another."""
    labels = labels_of(sizes)
    np.random.seed(1)  # noqa: NPY002
    one = data.split(labels, seed)
    np.random.seed(2)  # noqa: NPY002
    two, other = data.split(labels, seed), data.split(labels, seed + 1)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_official_test_set_is_respected():
    """It is the test set, whole and only it, for every seed; validation comes from the rest."""
    labels = labels_of([40, 60, 50])
    official = np.where(np.random.default_rng(1).random(150) < 0.3, "test", "train")
    one, two = data.split(labels, 0, official), data.split(labels, 1, official)
    for parts in (one, two):
        np.testing.assert_array_equal(parts[2], np.flatnonzero(official == "test"))
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(150))
        assert len(parts[1]) == np.ceil(0.1 * (official == "train").sum())
    assert not np.array_equal(one[1], two[1])


@pytest.mark.parametrize("train", [[30, 1, 30], [30, 30, 0], [7, 7, 6]])
def test_a_tiny_class_of_an_official_training_set_is_named(train):
    """Also where each class has two, but all of them too few for a validation set of each."""
    labels = np.repeat(np.arange(3), 50)
    official = np.where(np.arange(150) % 50 < np.repeat(train, 50), "train", "test")
    rarest = "abc"[np.argmin(train)]
    message = f"class {rarest} has {min(train)} samples in the official training part: .* 2 of each"
    with pytest.raises(ValueError, match=message):
        data.split(labels, 0, official, "abc")


@pytest.mark.parametrize("train", [[2, 2, 17], [7, 7, 7], [2, 30, 30]])
def test_the_smallest_official_training_sets_work(train):
    """What is large enough by our own words gives all classes a place in training."""
    labels = np.repeat(np.arange(3), 50)
    official = np.where(np.arange(150) % 50 < np.repeat(train, 50), "train", "test")
    for seed in range(5):
        assert set(labels[data.split(labels, seed, official)[0]]) == {0, 1, 2}


def test_the_largest_seed_splits():
    """It is the largest that scikit-learn takes."""
    labels = labels_of([20, 20])
    assert sum(map(len, data.split(labels, config.LARGEST_SEED))) == 40
    with pytest.raises(ValueError, match="random_state"):
        data.split(labels, config.LARGEST_SEED + 1)


@pytest.mark.parametrize("rare", [0, 1, 3, 9])
def test_a_tiny_class_is_named(rare):
    """With its number of samples and the number that is needed."""
    labels = np.repeat([0, 1, 2], [50, 60, rare])
    labels = np.append(labels, [3] * 50)
    message = f"class 2 has {rare} samples.*two classes, and {data.FEWEST} samples of each"
    with pytest.raises(ValueError, match=message):
        data.split(labels, 0)


def test_a_tiny_class_is_named_by_its_name(toy, tmp_path):
    """Not by its place, which for digits would be another digit."""
    toy(label=category(["3"] * 40 + ["7"] * 40 + ["8"] * 5, ["0", "3", "7", "8"]))
    with pytest.raises(ValueError, match="class '?8'? has 5 samples"):
        load(tmp_path)


def test_one_class_is_not_enough(toy, tmp_path):
    toy(label=category(["3"] * 40, ["3", "4"]))
    with pytest.raises(ValueError, match="at least two classes"):
        load(tmp_path)


@pytest.mark.parametrize("count", range(10, 16))
@pytest.mark.parametrize("number", [2, 5, 10, 20])
def test_the_smallest_classes_work_or_are_named(number, count):
    """What is large enough by our own words gets a place in each part, for any number of classes."""
    labels = labels_of([count] * number)
    try:
        parts = data.split(labels, 0)
    except ValueError as error:
        assert re.search(f"class .* has {count} samples", str(error)), error
    else:
        assert all(len(np.unique(labels[part])) == number for part in (parts[0], parts[2]))


# The imbalance protocol --------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1)), min_size=1, max_size=6), seeds)
def test_shares_are_exact_by_class(spec, seed):
    """Of each class the share, rounded; only from the given samples, sorted, by the seed."""
    sizes, shares = zip(*spec, strict=True)
    labels = labels_of(sizes) if sum(sizes) else np.zeros(0, int)
    index = np.flatnonzero(np.arange(len(labels)) % 3)  # not all are there to choose from
    kept, again = (data.thin(labels, index, shares, np.random.default_rng(seed)) for _ in "ab")
    there = np.bincount(labels[index], minlength=len(sizes))
    counts = np.bincount(labels[kept], minlength=len(sizes))
    assert counts.tolist() == [round(s * n) for s, n in zip(shares, there, strict=True)]
    assert np.isin(kept, index).all() and (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(kept, again)


def test_thinning_draws_at_random():
    """Another generator keeps other samples; over many draws every sample has its chance."""
    labels, index = np.zeros(50, int), np.arange(50)
    drawn = [data.thin(labels, index, [0.5], np.random.default_rng(s)) for s in range(60)]
    assert len({tuple(kept) for kept in drawn}) == 60
    chosen = np.bincount(np.concatenate(drawn))
    assert len(chosen) == 50 and 12 < chosen.min() and chosen.max() < 48


def ten_classes(n=40):
    return category([str(i % 10) for i in range(10 * n)], [str(i) for i in range(10)])


@pytest.mark.parametrize("everywhere", [False, True])
def test_only_training_is_thinned_unless_asked(toy, tmp_path, everywhere):
    """Test and validation stay as they are, or get the same shares."""
    toy(label=ten_classes())
    shares = "1,1,1,1,1,0.5,0.5,0.5,0.5,0.25"
    whole = load(tmp_path, keep="all")
    thinned = load(tmp_path, keep=shares, keep_in_test=everywhere)
    for name in ("train", "validation", "test"):
        full, part = getattr(whole, name), getattr(thinned, name)
        wanted = full.sizes()
        if name == "train" or everywhere:
            fractions = map(float, shares.split(","))
            wanted = {k: round(n * f) for (k, n), f in zip(wanted.items(), fractions, strict=True)}
        assert part.sizes() == wanted
        assert np.isin(part.rows, full.rows).all()


def test_the_papers_protocol_for_the_digits(tmp_path):
    """90 % of the digits 0-4 and 10 % of 5-9 for training; the halves are the groups."""
    store = Store(tmp_path / "store")
    paper = data.load(Choice("digits"), 0, None, store)
    whole = data.load(Choice("digits", groups="label", keep="all"), 0, None, store)
    full = whole.train.sizes()
    wanted = {d: round((0.9 if int(d) < 5 else 0.1) * n) for d, n in full.items()}
    counts = Counter(paper.train.classes[label] for label in paper.train.labels)
    assert counts == wanted
    assert len(paper.test) == len(whole.test) == 360
    assert len(whole.train) + len(whole.validation) + len(whole.test) == 1797
    small = paper.train.labels >= 5
    np.testing.assert_array_equal(paper.train.groups, small)
    assert paper.train.group_names == ("classes 0–4", "classes 5–9")
    assert paper.facts["train_images"] == len(paper.train) == sum(wanted.values())


def test_the_protocol_needs_the_ten_classes(tmp_path):
    """The two halves as the target are left as they are."""
    store = Store(tmp_path / "store")
    splits = data.load(Choice("digits", target="half"), 0, None, store)
    assert len(splits.train) == 1293


def test_an_empty_group_is_an_error(toy, tmp_path):
    """It names the groups, the shares and the empty ones."""
    toy(label=category(["a"] * 40 + ["b"] * 40, ["a", "b"]))
    message = r"groups='label', keep='1,0': the training set has no image of 'b'"
    with pytest.raises(ValueError, match=message):
        load(tmp_path, keep="1,0")


def test_a_group_of_one_image_is_trained_on_or_refused(toy, tmp_path):
    """In training it has no test image, and is there with none; elsewhere nothing could be learned."""
    rare = ["common"] * 79 + ["rare"]
    toy(
        label=category(["a", "b"] * 40, ["a", "b"]),
        kind=category(rare, ["common", "rare"]),
    )
    found = set()
    for seed in range(12):
        try:
            splits = load(tmp_path, seed, groups="kind")
        except ValueError as error:
            assert "the training set has no image of 'rare'" in str(error)
            found.add("refused")
        else:
            assert (splits.train.sizes()["rare"], splits.test.sizes()["rare"]) == (1, 0)
            found.add("trained")
    assert found == {"trained", "refused"}


def test_the_official_split_is_used_by_load(toy, tmp_path):
    toy(
        label=category(["a", "b"] * 50, ["a", "b"]),
        split=(["train"] * 7 + ["test"] * 3) * 10,
    )
    splits = load(tmp_path)
    official = np.array((["train"] * 7 + ["test"] * 3) * 10)
    np.testing.assert_array_equal(splits.test.rows, np.flatnonzero(official == "test"))
    assert set(official[splits.train.rows]) == set(official[splits.validation.rows]) == {"train"}


def test_images_stay_with_their_labels(toy, tmp_path):
    """Through grouping, splitting and thinning, also where some images are left out."""
    label = [None if i % 7 == 0 else "ab"[i % 2] for i in range(140)]
    kind = [None if i % 11 == 0 else "xyz"[i % 3] for i in range(140)]
    toy(label=category(label, ["a", "b"]), kind=category(kind, ["x", "y", "z"]))
    splits = load(tmp_path, groups="kind", keep="0.5,1")
    originals = images(140, side=16)
    for part in (splits.train, splits.validation, splits.test):
        np.testing.assert_array_equal(part.images, originals[part.rows])
        assert [part.classes[k] for k in part.labels] == [label[r] for r in part.rows]
        assert [part.group_names[k] for k in part.groups] == [kind[r] for r in part.rows]


# What a user may ask for -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dataset": "mnist"}, "dataset='mnist': allowed are digits, utkface, cifar10, svhn"),
        ({"keep_in_test": "yes"}, "keep_in_test='yes': must be true or false"),
        ({"size": 15}, "size=15: must be 16 to 256 pixels, or 0"),
        ({"size": 257}, "size=257: must be 16 to 256"),
        ({"size": 16.5}, "size=16.5: must be 16 to 256"),
        ({"size": -1}, "size=-1: must be 16 to 256"),
        (
            {"keep": "half"},
            "keep='half': must be 'paper', 'rotated', 'all', or a share between 0 and 1",
        ),
        ({"keep": "0.5,1.5"}, "keep='0.5,1.5': must be"),
        ({"keep": "0.5,-0.1"}, "keep='0.5,-0.1': must be"),
        ({"keep": "0.5,nan"}, "keep='0.5,nan': must be"),
        ({"keep": ""}, "keep='': must be"),
        ({"dataset": "utkface", "keep": "rotated"}, "keep='rotated': utkface has no halves"),
        ({"keep": 0.5}, "keep=0.5: must be"),
    ],
)
def test_impossible_choices_are_refused(wrong, message):
    """The message names the parameter, the value and what is allowed."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Choice(**{"dataset": "digits"} | wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"target": "age"}, "target='age': allowed are digit, half"),
        ({"groups": "race"}, "groups='race': allowed are digit, half, label"),
        ({"groups": "half,race"}, "groups='race': allowed are digit, half, label"),
        ({"keep": "1,0.5"}, "keep='1,0.5': 2 shares for 10 classes"),
        ({"target": "half", "keep": "1,1,1"}, "keep='1,1,1': 3 shares for 2 classes"),
        ({"groups": "half,"}, "groups='': allowed are digit, half, label"),
    ],
)
def test_what_the_data_lack_is_refused_before_an_image_is_read(monkeypatch, wrong, message):
    monkeypatch.setattr(data.sources, "load", None)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        data.load(Choice("digits", **wrong), 0, None, Store("unused"))


def test_as_many_shares_as_classes(toy, tmp_path):
    toy(label=category(["a", "b"] * 40, ["a", "b"]))
    with pytest.raises(ValueError, match="keep='1,1,1': 3 shares for 2 classes"):
        load(tmp_path, keep="1,1,1")


GONE = {  # of the values a, b and c of the target, the images that are left have a and c
    "no image has it": category(["a", "c"] * 40, list("abc")),
    "its images lack a group": category(["a", "c"] * 40 + ["b"] * 40, list("abc")),
}


@pytest.mark.parametrize("label", GONE.values(), ids=GONE)
def test_every_value_of_the_target_has_a_share(toy, tmp_path, label):
    """Also one that has no image left: its share is there, and not taken for another's."""
    kind = ["x", "x", "y", "y"] * 20 + [None] * (len(label) - 80)
    toy(label=label, kind=category(kind, ["x", "y"]))
    whole = load(tmp_path, groups="kind")
    assert whole.train.classes == ("a", "c")
    thinned = load(tmp_path, groups="kind", keep="0.5,0,1")
    counts, full = (np.bincount(s.train.labels) for s in (thinned, whole))
    assert counts.tolist() == [round(full[0] / 2), full[1]]
    wrong = Choice("toy", groups="kind", keep="0.5,1")
    message = r"^keep='0\.5,1': 2 shares for 3 classes$"
    with pytest.raises(ValueError, match=message):
        wrong.check(None)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, groups="kind", keep="0.5,1")


def test_the_protocol_goes_by_the_value_of_a_class(toy, monkeypatch, tmp_path):
    """Where one of the ten classes is missing, the others keep their own shares."""
    digits = [str(d) for d in range(10)]
    toy(label=category([d for d in digits if d != "2"] * 40, digits))
    monkeypatch.setitem(SOURCES, "toy", replace(SOURCES["toy"], halved=True))
    full, kept = (load(tmp_path, keep=keep).train.sizes() for keep in ("all", "paper"))
    assert kept == {d: round((0.9 if d < "5" else 0.1) * n) for d, n in full.items()}


def test_what_is_left_open_is_filled_in():
    """Each data set has its usual target, groups and size; another target has its own groups."""
    assert Choice("digits").resolve() == Choice("digits", "digit", "half", size=16)
    assert Choice("digits", target="half").resolve() == Choice("digits", "half", "label", size=16)
    assert Choice("utkface").resolve() == Choice("utkface", "race", "label", size=32)
    assert Choice("utkface", "age").resolve() == Choice("utkface", "age", "label", size=32)
    chosen = Choice("svhn", "half", "digit,half", size=20)
    assert chosen.resolve() == chosen == chosen.resolve().resolve()


def test_names_of_attributes_may_have_spaces(toy, tmp_path):
    """As the columns of a user's table may."""
    tone, site = ["light", "dark"] * 40, ["north"] * 40 + ["south"] * 40
    columns = {
        "label": category(["a", "b", "b", "a"] * 20, ["a", "b"]),
        "skin tone": category(tone, ["dark", "light"]),
        "site": category(site, ["north", "south"]),
    }
    toy(**columns)
    assert load(tmp_path, groups="skin tone").train.group_names == ("dark", "light")
    assert len(load(tmp_path, groups="site, skin tone").train.group_names) == 4


# Groups ------------------------------------------------------------------------------------------


def pictures(table):
    return Pictures(images(len(table)), table, (), "")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([None, *"zyx"])] * 3), min_size=1, max_size=40))
def test_products_of_groups(rows):
    """Combinations that occur, in the order of their categories; each image has its own."""
    order = list("zxy")  # not that of the alphabet
    columns = dict(zip(("label", "one", "two"), zip(*rows, strict=True), strict=True))
    table = pd.DataFrame({name: category(values, order) for name, values in columns.items()})
    whole = [i for i, row in enumerate(rows) if None not in row]
    if not whole:
        return
    found = data.group(pictures(table), "label", ["two", "one"])
    assert found.rows.tolist() == whole
    np.testing.assert_array_equal(found.images, images(len(rows))[whole])
    assert [found.classes[k] for k in found.labels] == [rows[i][0] for i in whole]
    names = [found.group_names[k] for k in found.groups]
    assert names == [f"{rows[i][2]} × {rows[i][1]}" for i in whole]
    pairs = {(order.index(rows[i][2]), order.index(rows[i][1])) for i in whole}
    assert list(found.group_names) == [f"{order[a]} × {order[b]}" for a, b in sorted(pairs)]
    assert list(found.classes) == [c for c in order if c in {rows[i][0] for i in whole}]


def test_what_lacks_an_attribute_is_left_out_and_counted(toy, tmp_path):
    """Only attributes that are asked for matter."""
    label = [None, *["a", "b"] * 40]
    kind = ["x", None, None, *["x", "y"] * 39]
    toy(label=category(label, ["a", "b"]), kind=category(kind, ["x", "y"]))
    assert load(tmp_path).facts["left_out"] == 1
    by_kind = load(tmp_path, groups="kind")
    assert by_kind.facts["left_out"] == 3
    parts = (by_kind.train, by_kind.validation, by_kind.test)
    assert not {0, 1, 2} & set(np.concatenate([part.rows for part in parts]))
    assert sum(map(len, parts)) == 78


def test_label_and_group_are_separate(toy, tmp_path):
    """``label`` stands for the target's classes, whatever the target is."""
    label, kind = ["a", "b"] * 40, ["x"] * 20 + ["y"] * 60
    toy(label=category(label, ["a", "b"]), kind=category(kind, ["x", "y"]))
    same = load(tmp_path, target="kind", groups="label")
    np.testing.assert_array_equal(same.train.labels, same.train.groups)
    assert same.train.classes == same.train.group_names == ("x", "y")
    both = load(tmp_path, groups="label,kind")
    assert both.train.group_names == ("a × x", "a × y", "b × x", "b × y")


# Identity ----------------------------------------------------------------------------------------


def test_the_digest_tells_the_data_and_not_the_groups(toy, tmp_path):
    """One network serves every choice of groups; another seed, share or target needs another."""
    toy(
        label=category(["a", "b"] * 60, ["a", "b"]),
        kind=category(["x", "y", "y"] * 40, ["x", "y"]),
    )
    digest = load(tmp_path).digest
    assert load(tmp_path).digest == digest
    for same in ({"groups": "kind"}, {"groups": "label,kind"}, {"keep": "all"}, {"keep": "1,1"}):
        assert load(tmp_path, **same).digest == digest, same
    others = [
        load(tmp_path, seed=1),
        load(tmp_path, keep="0.5,1"),
        load(tmp_path, keep="1,0.5"),
        load(tmp_path, keep="0.5,1", keep_in_test=True),
        load(tmp_path, target="kind"),
    ]
    assert len({digest, *(other.digest for other in others)}) == 6


def test_a_seed_decides_what_is_kept(toy, tmp_path):
    """The same seed keeps the same images of a class, another seed others."""
    toy(label=category(["a", "b"] * 60, ["a", "b"]))
    one, two, other = (load(tmp_path, seed, keep="0.5,0.5") for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.train.rows, two.train.rows)
    assert one.digest == two.digest != other.digest


def test_the_digest_tells_rows_and_labels_apart():
    """Which image is in which part, and what it is taken for."""
    same = {name: grouped() for name in ("train", "test")}
    variants = [
        same,
        same | {"test": grouped(rows=np.arange(6)[::-1])},
        same | {"train": grouped(rows=np.arange(6)[::-1])},
        same | {"test": grouped(labels=np.arange(6)[::-1] % 2)},
        same | {"train": grouped(labels=np.arange(6)[::-1] % 2)},
    ]
    digests = [data._digest("fingerprint", parts) for parts in variants]
    assert len(set(digests)) == len(variants)
    other = same | {"test": grouped(groups=np.arange(6)[::-1] % 3)}
    assert data._digest("fingerprint", other) == digests[0]


def test_the_digest_tells_the_images_and_labels(toy, tmp_path):
    """The same table with two labels exchanged, and with other images."""
    label, names = ["a", "b"] * 60, ["a", "b"]
    digests = set()
    for labels, seed in ((label, 0), (["b", "a", *label[2:]], 0), (label, 1)):
        toy(seed=seed, label=category(labels, names))
        digests.add(load(tmp_path).digest)
    assert len(digests) == 3


# GroupedImages -----------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(*(st.integers(1, k) for k in (9, 3, 6, 6)))))
def test_statistics_are_those_of_numpy(pixels):
    """By channel, in double precision; a constant channel gets one grey level as its deviation."""
    n = len(pixels)
    zeros = np.zeros(n, np.int64)
    mean, std = GroupedImages(pixels, zeros, zeros, np.arange(n), ("a",), ("x",)).statistics()
    scaled = pixels.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-6, atol=1e-7)
    expected = scaled.std((0, 2, 3)).clip(1 / 255)
    np.testing.assert_allclose(std, expected, rtol=1e-5, atol=1e-7)
    assert mean.dtype == std.dtype == np.float32 and mean.shape == (pixels.shape[1],)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": images(6).astype(float)}, r"images float64 \(6, 1, 4, 4\): must be uint8 NCHW"),
        ({"images": images(6)[:, 0]}, "must be uint8 NCHW"),
        ({"labels": np.arange(6)}, "labels: must be 6 whole numbers from 0 to 1"),
        ({"labels": np.arange(6) % 2 - 1}, "labels: must be 6 whole numbers from 0 to 1"),
        ({"labels": np.zeros(5, int)}, "labels: must be 6 whole numbers"),
        ({"labels": np.zeros((6, 1), int)}, "labels: must be 6 whole numbers"),
        ({"labels": np.full(6, 0.5)}, "labels: must be 6 whole numbers"),
        ({"groups": np.full(6, 3)}, "groups: must be 6 whole numbers from 0 to 2"),
        ({"rows": np.arange(5)}, "rows: must be 6 whole numbers"),
    ],
)
def test_grouped_images_check_themselves(wrong, message):
    with pytest.raises(ValueError, match=message):
        grouped(**wrong)


def test_taking_some_images_takes_all_that_belongs_to_them():
    """Empty groups keep their name and count zero."""
    some = grouped().take(np.array([4, 0]))
    assert some.rows.tolist() == [4, 0]
    assert some.labels.tolist() == [0, 0] and some.groups.tolist() == [1, 0]
    np.testing.assert_array_equal(some.images, images(6)[[4, 0]])
    assert some.sizes() == {"x": 1, "y": 1, "z": 0}
    assert len(some) == 2 and len(some.take(np.array([], int))) == 0


def test_rotated_gives_each_half_what_the_other_had(tmp_path):
    """The classes 5–9 keep nine tenths and 0–4 one tenth; the test set stays as it is."""
    store = Store(tmp_path)
    whole, paper, rotated = (
        data.load(Choice("digits", groups="label", keep=keep), 0, None, store)
        for keep in ("all", "paper", "rotated")
    )
    every, usual, turned = (list(s.train.sizes().values()) for s in (whole, paper, rotated))
    assert turned[5:] == [round(0.9 * n) for n in every[5:]]
    assert turned[:5] == [round(0.1 * n) for n in every[:5]]
    assert usual[:5] == [round(0.9 * n) for n in every[:5]]
    assert (rotated.test.rows == whole.test.rows).all()
