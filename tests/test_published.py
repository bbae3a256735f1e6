"""The published results: a study without data, images or training, and how one would notice a fault."""

import json
import os
import pickle
import shlex
import shutil
import sys
import types
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from test_study import PARAMETERS, QUICK

from relufair import (
    cli,
    data,
    methods,
    mitigation,
    pipeline,
    provenance,
    published,
    studies,
    training,
    verification,
)
from relufair.audit import Audit
from relufair.config import PLAIN
from relufair.mitigation import Ablation, Comparison, Mitigation, Remedied
from relufair.store import Artifact, Damaged, NotPublished, Store, checksum, key_of
from relufair.study import AccuracyDrops
from relufair.training import Samples

# Masks drawn at random, so that nothing is searched, and few images: a seed takes a moment.
ABOUT = PARAMETERS | {
    "methods": ["random"], "budgets": [0.1], "seeds": [0, 1], "keep": ",".join(["0.2"] * 10),
    "training": QUICK,
}  # fmt: skip
STUDY = Mitigation(**ABOUT, mu=0.5)
ABLATION = Ablation(**ABOUT, mus=[0.5])
COMPARISON = Comparison(**ABOUT, remedies=["cvar"], tuning_seeds=[])
AUDIT = Audit(**ABOUT | {"seeds": [0]}, mu=0.5)
TABLES = {
    "tally": lambda store: STUDY.tally(STUDY.cures(), store=store),
    "paths": lambda store: STUDY.paths(STUDY.cures(), store=store),
    "geometry": lambda store: replace(STUDY, seeds=[0]).geometry(store=store),
    "lag": lambda store: ABLATION.lag(store=store),
    "costs": lambda store: COMPARISON.costs([PLAIN], store=store, rounds=1),
    "twins": lambda store: AUDIT.twins(store=store),
}


ABOUT_GEOMETRY = {
    "dataset": "digits", "target": "digit", "groups": STUDY.choice.groups, "arch": STUDY.arch,
    "width": STUDY.width, "method": "random", "tier": "changed",
}  # fmt: skip


def recording(path, store):
    """The tables, and the names of the artifacts that were read or made for them."""
    path.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RELUFAIR_RECORD", str(path))
        tables = {name: ask(store) for name, ask in TABLES.items()}
    return tables, path.read_text().split()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store, the tables that were made in it, and what was recorded meanwhile."""
    folder = tmp_path_factory.mktemp("made")
    store = Store(folder / "store")
    return store, *recording(folder / "record", store)


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    """The published results of all that."""
    store, _, recorded = made
    folder = tmp_path_factory.mktemp("results")
    assert published.export(store, recorded, folder) == []
    return folder


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of them, to be spoiled."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


@pytest.fixture
def nothing_is_computed(monkeypatch):
    """No data, no training, no pass through a network; and it is another device."""
    monkeypatch.setattr(data.sources, "load", None)
    for name in ("fit", "logits"):
        monkeypatch.setattr(training, name, None)
    monkeypatch.setattr(training, "device_name", lambda device: "another one")


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pipe_of(store, seed=0, remedy=0):
    (run,) = STUDY.remedied([STUDY.cures()[remedy]], [seed])
    return methods.pipeline(run, store, None)


def place_of(folder, pipe, units):
    """The description of published predictions."""
    return folder / "artifacts" / "predictions" / f"{pipe.key(units)}.json"


def units_of(pipe):
    (units,) = pipe.units
    return units


# Reading ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_is_computed")
def test_a_study_is_redrawn_without_data_or_training(made, exported, tmp_path):
    """Every table as it was, and nothing is written."""
    _, tables, _ = made
    before = content(exported)
    store = Store(tmp_path / "store", published=exported)
    for name, ask in TABLES.items():
        pd.testing.assert_frame_equal(ask(store), tables[name])
    assert content(exported) == before and not store.root.exists()


@pytest.mark.usefixtures("nothing_is_computed")
def test_the_variable_makes_the_project_s_results_the_store(made, exported, tmp_path, monkeypatch):
    """Of the project one stands in; in it, no study asks for data."""
    (tmp_path / "data").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "data" / "results").symlink_to(exported)
    monkeypatch.chdir(tmp_path)
    faces = AccuracyDrops(**PARAMETERS | {"dataset": "utkface"})
    with pytest.raises(FileNotFoundError):
        faces.check_data(None)
    monkeypatch.setenv("RELUFAIR_PUBLISHED", "1")
    faces.check_data(None)
    table = STUDY.tally(STUDY.cures())
    pd.testing.assert_frame_equal(table, made[1]["tally"])


def test_published_splits_know_everything_but_pixels(exported, tmp_path):
    """Labels, groups, rows, sizes, names, shape, digest; the pixels are refused, never zero."""
    choice = STUDY.choice
    here = data.load(choice, 0, None, Store(tmp_path / "store"))
    there = data.load(choice, 0, None, Store(published=exported))
    assert (there.digest, there.facts) == (here.digest, here.facts)
    for name, part in here.parts().items():
        known = pickle.loads(pickle.dumps(there)).parts()[name]
        for column in ("labels", "groups", "rows"):
            np.testing.assert_array_equal(getattr(known, column), getattr(part, column))
            assert getattr(known, column).dtype == np.int64
        about = (part.sizes(), part.classes, part.group_names, part.shape, len(part))
        assert about == (known.sizes(), known.classes, known.group_names, known.shape, len(known))
        assert len(known.take(np.array([3, 1]))) == 2
    pixels = there.train.images
    for ask in (
        there.train.statistics,
        partial(Samples.put, there.test, there.train, training.pick_device()),
        partial(np.asarray, pixels[:4]),
        lambda: pixels.mean(),
        lambda: pixels[0],
        lambda: pixels[:, 0],
        lambda: np.zeros(4) + pixels[:4],
    ):
        with pytest.raises(NotPublished, match="images their pixels: not published"):
            ask()


def test_what_is_not_published_is_refused_not_computed(exported, tmp_path):
    """Networks, locks, writing; with kind and key."""
    store = Store(tmp_path / "store", published=exported)
    pipe = pipe_of(store)
    with pytest.raises(NotPublished, match="teacher [0-9a-f]{24}: not published"):
        pipe.net(None)
    with pytest.raises(NotPublished, match=f"finetune {pipe.identity(units_of(pipe))['finetune']}"):
        pipe.linear(units_of(pipe)).arrays["fc.weight"]
    for ask in (store.lock, store.workplace, store.get, partial(store.put, artifact=Artifact())):
        with pytest.raises(NotPublished, match=key_of("kind", 1, {})):
            ask("kind", 1, {})
    assert not store.root.exists()


def test_a_seed_that_lacks_something_is_named_and_left_out(made, copied, tmp_path, capsys):
    """One line; the others are as they were."""
    pipe = pipe_of(made[0], seed=1, remedy=1)
    place_of(copied, pipe, units_of(pipe)).unlink()
    store = Store(tmp_path, published=copied)
    table = TABLES["tally"](store)
    assert capsys.readouterr().out == "Not published: random, algorithm1 0.5, seed 1\n"
    whole = made[1]["tally"].query("not (seed == 1 and remedy != 'plain')")
    pd.testing.assert_frame_equal(table, whole.reset_index(drop=True))


def test_where_every_run_lacks_something_the_command_is_said(made, copied, tmp_path):
    """And the command asks for this very study, and says what is not usual about it."""
    for path in (copied / "artifacts" / "predictions").glob("*.json"):
        path.unlink()
    with pytest.raises(NotPublished, match="seed 0; random, seed 1") as error:
        TABLES["tally"](Store(tmp_path, published=copied))
    command = str(error.value).partition("To compute it: ")[2]
    _, run, name, *given = shlex.split(command)
    assert (run, name) == ("run", "mitigation")
    root = Path(__file__).resolve().parents[1]
    path = cli.notebooks(root)[name]
    read = cli.read_parameters(root, path, None, given[1::2])
    asked = {f.name: getattr(STUDY, f.name) for f in fields(STUDY)}
    assert cli.defaults(path) | read == asked
    assert read == {name: v for name, v in asked.items() if cli.defaults(path)[name] != v}


def test_a_damaged_table_is_not_served(made, copied, tmp_path):
    """Neither a changed one nor half an artifact."""
    pipe = pipe_of(made[0])
    table = place_of(copied, pipe, None).with_suffix(".images.parquet")
    flip(table)
    with pytest.raises(Damaged, match="is damaged"):
        pipe_of(Store(tmp_path, published=copied)).predictions(None)
    table.unlink()
    with pytest.raises(Damaged, match="incomplete"):
        pipe_of(Store(tmp_path, published=copied)).predictions(None)


# Writing ------------------------------------------------------------------------------------------


def test_what_the_page_needs_is_recorded_and_nothing_else(made, tmp_path):
    """The same in the run that makes it and in the one that finds it; no network but for its log."""
    store, _, recorded = made
    again = recording(tmp_path / "record", store)[1]
    assert set(again) == set(recorded)
    kinds = {name.split("/")[0] for name in recorded}
    assert kinds == {
        "images", "splits", "predictions", "finetune", "first_order", "losses", "costs", "twins",
    }  # fmt: skip


def test_exporting_twice_gives_the_same_bytes(made, exported, tmp_path):
    """Whatever the order; and a second time into the same folder."""
    store, _, recorded = made
    published.export(store, reversed(recorded), tmp_path)
    first = {p.relative_to(exported): b for p, b in content(exported).items()}
    assert {p.relative_to(tmp_path): b for p, b in content(tmp_path).items()} == first
    published.export(store, recorded, tmp_path)
    assert {p.relative_to(tmp_path): b for p, b in content(tmp_path).items()} == first


def test_no_image_and_no_weight_is_published(exported):
    """Only descriptions and tables, of few bytes an image."""
    names = {path.suffix for path in (exported / "artifacts").rglob("*") if path.is_file()}
    assert names == {".json", ".parquet"} and not (exported / "artifacts" / "images").exists()
    for path in (exported / "artifacts" / "predictions").glob("*.parquet"):
        table = pd.read_parquet(path)
        assert table.dtypes.astype(str).to_dict() == {
            "split": "category", "row": "int32", "label": "uint8", "prediction": "uint8",
            "margin": "float16",
        }  # fmt: skip


def test_numbers_that_do_not_fit_stay_as_they_are():
    """A data set may have more than 256 classes."""
    small, large = (pd.DataFrame({"label": [0, n], "other": [0, n]}) for n in (255, 256))
    assert published._compact(small).dtypes.astype(str).tolist() == ["uint8", "int64"]
    assert published._compact(large).dtypes.astype(str).tolist() == ["int64", "int64"]


def test_the_manifest_says_what_made_each_artifact(made, exported):
    """Sorted, an entry an artifact, with run, place, versions, code and data."""
    entries = json.loads((exported / "manifest.json").read_text())
    names = [(e["kind"], e["key"]) for e in entries]
    assert names == sorted({tuple(n.split("/")) for n in made[2] if not n.startswith("images")})
    pipe = pipe_of(made[0], seed=1, remedy=1)
    own = next(e for e in entries if e["key"] == pipe.key(units_of(pipe)))
    assert (own["seed"], own["dataset"], own["target"]) == (1, "digits", "digit")
    assert own["data"] == pipe.splits.digest and own["tier"] == "changed"
    assert own["versions"]["stage"] == 1 and own["versions"]["torch"] and own["device"]
    assert own["sources"]["relufair.training"] == provenance.digest("training")
    assert own["commit"] == provenance.commit()
    assert len(own["files"]) == 2
    for name, file in own["files"].items():
        assert file == {
            "sha256": checksum(exported / name), "bytes": (exported / name).stat().st_size,
        }  # fmt: skip


def test_the_tier_is_that_of_the_schedule():
    """By its settings, not by a name."""
    from relufair.config import SCHEDULES

    assert [published._tier(plan) for plan in SCHEDULES.values()] == list(SCHEDULES)
    assert published._tier(replace(SCHEDULES["ci"], teacher_epochs=15)) == "changed"


# The tally ----------------------------------------------------------------------------------------


def test_the_tally_has_the_counts_of_the_study_on_both_splits(made, exported):
    """The study's own table is its test rows of the study's remedies; each row names its key."""
    table = published.tally(exported)
    assert set(table["split"]) == {"validation", "test"} and set(table["note"]) == {""}
    expected = made[1]["tally"].drop(columns="tier")
    own = table[(table["split"] == "test") & table["study"].isin(expected["study"])]
    commits = {a["key"]: a["facts"]["commit"] for a in published.described(exported, "predictions")}
    own = own.assign(commit=own["key"].map(commits))
    shared = list(expected)
    order = ["remedy", "seed", "budget", "group"]
    pd.testing.assert_frame_equal(
        own[shared].sort_values(order, ignore_index=True),
        expected.sort_values(order, ignore_index=True),
    )
    for seed in (0, 1):
        pipe = pipe_of(made[0], seed)
        rows = own[(own["remedy"] == "plain") & (own["seed"] == seed)].set_index("budget")
        assert set(rows.loc[0.1, "key"]) == {pipe.key(units_of(pipe))}
        assert set(rows.loc[1.0, "key"]) == {pipe.key(None)}


def test_the_measures_of_geometry_are_those_of_the_study(made, exported):
    """Once a network and measure, though two artifacts tell of it; each row names its network."""
    expected, about = made[1]["geometry"], [*ABOUT_GEOMETRY, "seed", "remedy", "budget"]
    found = published.geometry(exported)
    keys = ["seed", "method", "remedy", "budget", "split", "group", "measure"]
    assert set(about) <= set(found) and not found[keys].duplicated().any()
    pd.testing.assert_frame_equal(
        found.set_index(keys)[["n", "value"]].sort_index(),
        expected.set_index(keys)[["n", "value"]].sort_index(),
    )
    for name, value in ABOUT_GEOMETRY.items():
        assert set(found[name]) == {value}


def test_two_artifacts_that_contradict_each_other_are_refused(copied):
    """Nothing tells which of two values of the same measure of the same network is meant."""
    place = first(copied, "first_order/*.json")
    table = pd.read_parquet(place.with_suffix(".measures.parquet"))
    path = place.with_name("other.measures.parquet")
    table.assign(value=2 * table["value"]).to_parquet(path)
    about = json.loads(place.read_text()) | {"tables": {"measures": checksum(path)}}
    place.with_name("other.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="two artifacts give different values of digits"):
        published.geometry(copied)


def test_seeds_that_chose_are_published_but_not_reported(made, exported, monkeypatch):
    """Here the boundary is put between the two seeds."""
    assert set(published.reported(exported)["seed"]) == {0, 1}
    monkeypatch.setattr(published.config, "TUNING", 1)
    table = published.reported(exported)
    assert set(table["seed"]) == {0} and "split" not in table
    whole = published.tally(exported).query("split == 'test' and seed == 0")
    assert len(table) == len(whole) and set(published.tally(exported)["seed"]) == {0, 1}


def test_other_groups_are_counted_from_the_same_predictions(made, exported, tmp_path):
    """By row, without training; and the tally does so itself once their splits are published."""
    store, _, recorded = made
    by_class = AccuracyDrops(**ABOUT | {"groups": "label"})
    expected = by_class.run(store=store)
    pipe = pipe_of(store)
    images = pd.read_parquet(
        place_of(exported, pipe, units_of(pipe)).with_suffix(".images.parquet")
    )
    own = data.load(by_class.choice, 0, None, store).test
    classes = pd.Series(own.groups, own.rows).map(dict(enumerate(own.group_names)))
    test = images[images["split"] == "test"]
    right = (test["prediction"] == test["label"]).groupby(test["row"].map(classes)).sum()
    counts = expected.query("seed == 0 and budget == 0.1").set_index("group")["correct"]
    assert right.to_dict() == counts.to_dict()

    names = [
        "splits/" + key_of("splits", data.VERSION, data.identity(by_class.choice, seed))
        for seed in (0, 1)
    ]
    published.export(store, [*recorded, *names], tmp_path)
    table = published.tally(tmp_path).query("groups == 'label' and split == 'test'")
    assert set(table["remedy"]) == {"plain"}  # a remedy is one for certain groups
    counted = table.set_index(["seed", "budget", "group"])["correct"].sort_index()
    whole = expected.set_index(["seed", "budget", "group"])["correct"].sort_index()
    pd.testing.assert_series_equal(counted, whole)


def test_a_note_stays_in_the_table(made, tmp_path):
    """It marks the rows of its predictions, and no others."""
    store, _, recorded = made
    pipe = pipe_of(store)
    name = f"predictions/{pipe.key(units_of(pipe))}"
    published.export(store, recorded, tmp_path, {name: {"note": "diverged", "device": "a lie"}})
    table = published.tally(tmp_path)
    marked = table[table["note"] == "diverged"]
    assert set(marked["key"]) == {pipe.key(units_of(pipe))} and set(marked["budget"]) == {0.1}
    assert "a lie" not in set(table["device"])  # what an artifact says of itself stays
    published.export(store, recorded, tmp_path)  # and so does the note
    pd.testing.assert_frame_equal(published.tally(tmp_path), table)


def test_what_older_code_made_is_unknown(made, tmp_path):
    """Without the sources, run and commit that are recorded now."""
    store, _, recorded = made
    old = Store(shutil.copytree(store.root, tmp_path / "old"))
    for path in old.root.glob("predictions/*/config.json"):
        about = json.loads(path.read_text())
        for name in ("sources", "run", "commit"):
            about["facts"].pop(name)
        path.write_text(json.dumps(about))
        sums = path.with_name("checksums.json")
        known = json.loads(sums.read_text()) | {"config.json": checksum(path)}
        sums.write_text(json.dumps(known))
    published.export(old, recorded, tmp_path / "one")
    assert published.tally(tmp_path / "one").empty
    found = verification.verify(tmp_path / "one")
    assert not found.damage and set(found.stale) == {
        "sources unknown", "run unknown, so not in the tally",
    }  # fmt: skip
    (entry, *_) = (e for e in published.manifest(tmp_path / "one") if e["kind"] == "predictions")
    assert (entry["sources"], entry["commit"], entry["seed"]) == ("unknown", "unknown", None)


# Verifying ----------------------------------------------------------------------------------------


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


def test_what_was_just_published_is_whole_and_fresh(exported):
    assert verification.verify(exported) == verification.Findings()


def first(folder, pattern):
    return sorted((folder / "artifacts").glob(pattern))[0]


def edit(path, change):
    path.write_text(change(path.read_text()))


def keep_rows(folder, n):
    pd.read_parquet(folder / "tally.parquet").iloc[:n].to_parquet(folder / "tally.parquet")


def recount(folder):
    table = pd.read_parquet(folder / "tally.parquet")
    table.loc[0, "correct"] += 1
    table.to_parquet(folder / "tally.parquet", index=False)


SPOILED = {
    "a byte of a table": (lambda f: flip(first(f, "predictions/*.parquet")), r"parquet: changed"),
    "a byte of a description": (lambda f: flip(first(f, "splits/*.json")), r"json: changed"),
    "a lost table": (lambda f: first(f, "finetune/*.parquet").unlink(), r"parquet: missing"),
    "a stray file": (lambda f: (f / "artifacts" / "x").touch(), "artifacts/x: not in manifest"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json cannot be read"),
    "another seed in the manifest": (
        lambda f: edit(f / "manifest.json", lambda t: t.replace('"seed": 1', '"seed": 7')),
        "wrong entry",
    ),
    "no tally": (lambda f: (f / "tally.parquet").unlink(), "tally.parquet cannot be read"),
    "a count of the tally": (recount, "tally.parquet: .* does not follow"),
    "a tally without rows": (lambda f: keep_rows(f, 0), "tally.parquet: .* does not follow"),
    "a tally without columns": (
        lambda f: pd.DataFrame().to_parquet(f / "tally.parquet"),
        "tally.parquet: other columns",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_verify_names_what_is_damaged(copied, name):
    spoil, message = SPOILED[name]
    spoil(copied)
    found = verification.verify(copied).damage
    assert found and any(pd.Series(found).str.contains(message))


def test_a_tally_may_have_more_rows_than_can_be_counted_now_but_no_others(exported):
    """Where a run is left out, its rows stand; a row that is counted must stand as it is."""
    table = published.tally(exported)
    assert verification._differing(exported, table.iloc[3:], complete=False) == []
    assert verification._differing(exported, table.iloc[3:], complete=True)
    wrong = table.assign(correct=table["correct"] + (table.index == 0))
    assert len(verification._differing(exported, wrong, complete=False)) == 1


def tamper(folder, pipe, units, change):
    """Change published predictions, and all checksums with them."""
    place = place_of(folder, pipe, units)
    path = place.with_suffix(".images.parquet")
    change(pd.read_parquet(path)).to_parquet(path, compression="zstd", index=False)
    about = json.loads(place.read_text()) | {"tables": {"images": checksum(path)}}
    place.write_text(json.dumps(about))
    (folder / "manifest.json").write_text(json.dumps(published.manifest(folder)))


def test_a_changed_prediction_under_new_checksums_is_found_by_the_tally(made, copied):
    """Right becomes wrong, so a count is one too high or too low."""
    pipe = pipe_of(made[0])

    def change(table):
        right = table["prediction"].iloc[-1] == table["label"].iloc[-1]
        said = table["prediction"].to_numpy().copy()
        said[-1] = (table["label"].iloc[-1] + right) % 10
        return table.assign(prediction=said)

    tamper(copied, pipe, units_of(pipe), change)
    damage = verification.verify(copied).damage
    assert any("random, plain, seed 0 at 0.1 does not follow" in words for words in damage)


@pytest.fixture
def rewrite(monkeypatch):
    """Changes a module's code, which the digests are taken of; to nothing, and it is gone."""
    texts = dict(provenance.CODE)
    monkeypatch.setattr(provenance, "CODE", texts)

    def change(module, how):
        text = how(texts.pop(module))
        texts.update({module: text} if text else {})
        provenance.digest.cache_clear()

    yield change
    provenance.digest.cache_clear()


def test_changed_code_makes_what_rests_on_it_stale(exported, rewrite):
    """A comment, a docstring and a blank line do not."""
    rewrite("training", lambda t: t.replace('"""', '"""Now: ', 1) + "\n\n# the end\n")
    assert verification.verify(exported) == verification.Findings()

    edits = {
        "training": ("return 1.0", "return 2.0"),
        "audit": ("MOST = 512", "MOST = 511"),
        "data": ("TEST, VALIDATION = 0.2", "TEST, VALIDATION = 0.3"),
    }
    for module, change in edits.items():
        rewrite(module, lambda text, change=change: text.replace(*change, 1))
    networks = {"predictions", "finetune", "first_order", "losses", "costs", "twins"}
    found = verification._stale(exported)
    assert {why: {name.split("/")[0] for name in names} for why, names in found.items()} == {
        "relufair.training changed since": networks,
        "relufair.audit changed since": {"twins"},
        "relufair.data changed since": networks | {"splits"},
    }


def test_a_removed_module_counts_as_changed(exported, rewrite):
    rewrite("remedies", lambda text: "")
    found = verification.verify(exported)
    assert not found.damage and "relufair.remedies changed since" in found.stale


@pytest.mark.parametrize(
    ("module", "kind", "reason"),
    [
        (mitigation, "losses", "version 1 of losses, now 2"),
        (pipeline, "predictions", "version 1 of predictions, now 2"),
        (pipeline, "teacher", "not in the tally"),  # whose key is in those of all others
    ],
)
def test_a_raised_version_makes_stale_not_damaged(exported, monkeypatch, module, kind, reason):
    monkeypatch.setitem(module.VERSIONS, kind, 2)
    found = verification.verify(exported)
    assert not found.damage and reason in found.stale


def test_every_kind_has_its_modules():
    """Of what is stored today; each module is there."""
    assert set(verification.versions()) - {"descent"} == set(provenance.RESTS)
    for kind in provenance.RESTS:
        found = provenance.made_by(kind, {"of": {"finetune": "0"}})["sources"]
        assert None not in found.values() and "relufair.sources" in found


def test_a_measure_rests_on_the_network_that_it_is_of():
    """On DeepReDuce's code if that made it, else not."""
    snl, reduced = (
        provenance.made_by("predictions", {kind: "0"})["sources"]
        for kind in ("finetune", "student")
    )
    assert "relufair.linearize.deepreduce" in reduced and "relufair.linearize.snl" not in reduced
    assert "relufair.linearize.snl" in snl and "relufair.linearize.deepreduce" not in snl


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("def f(x):\n    '''One.'''\n    return (x\n        + 1)  # more", True),
        ("def f(x):\n    return x + 2", False),
        ("def f(x):\n    return x + 1.0", False),
        ("def f(y):\n    return y + 1", False),
        ("def f(x):\n    return 'x' + 1", False),
        ("def f(x):\n    return x + 1\nf(None)", False),
    ],
)
def test_a_digest_is_of_what_the_code_does(other, same):
    first = provenance.digest_of("def f(x):\n    return x + 1")
    assert (provenance.digest_of(other) == first) is same


def test_without_a_clone_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "relufair")
    assert provenance.commit.__wrapped__() is None


# Checking -----------------------------------------------------------------------------------------


def test_a_network_computed_anew_agrees_with_itself(made, exported, tmp_path):
    """From scratch, with data, teacher and masks; only half precision is between them."""
    pipe = pipe_of(made[0], remedy=1)
    found = verification.check(pipe.key(units_of(pipe)), Store(tmp_path), None, exported)
    assert found.images == found.same == 504 and found.apart < 1e-3 and found.astray == []
    assert found.groups["n"].sum() == 360
    assert (found.groups["published"] == found.groups["again"]).all()
    assert (tmp_path / "finetune").is_dir()


@pytest.fixture(scope="module")
def afresh(made, exported, tmp_path_factory):
    """A store in which a published network and its teacher have been computed anew."""
    store, pipe = Store(tmp_path_factory.mktemp("afresh")), pipe_of(made[0])
    verification.check(pipe.key(units_of(pipe)), store, None, exported)
    return store


def test_what_was_published_is_not_computed_anew_by_reading_it(made, exported):
    with pytest.raises(ValueError, match="holds .* as it was published"):
        verification.check(pipe_of(made[0]).key(None), made[0], None, exported)


def test_tampered_predictions_do_not_agree(made, afresh, copied):
    """A group that is suddenly always right, or always wrong."""
    pipe = pipe_of(made[0])
    rare = pipe.splits.test.rows[pipe.splits.test.groups == 1]

    def change(table):
        own = table["row"].isin(rare)
        right = (table["prediction"] == table["label"])[own].mean() > 0.5
        said = np.where(own, (table["label"] + right) % 10, table["prediction"])
        return table.assign(prediction=said.astype(np.uint8))

    tamper(copied, pipe, None, change)
    found = verification.check(pipe.key(None)[:10], afresh, None, copied)
    assert found.astray == ["classes 5–9"] and found.same < found.images


def test_outcomes_are_kept_once_and_hold_for_the_code_that_found_them(
    made, afresh, copied, rewrite
):
    """The last one of each key; none once a module has changed."""
    pipe = pipe_of(made[0])
    for units in (None, units_of(pipe), None):
        verification.keep(verification.check(pipe.key(units), afresh, None, copied), copied)
    assert [e["key"] for e in verification.kept(copied)] == [
        pipe.key(units_of(pipe)),
        pipe.key(None),
    ]
    lines = verification.verify(copied).computed
    assert len(lines) == 2 and all("504 of 504" in line for line in lines)
    rewrite("linearize.controls", lambda text: text + "\nx = 1\n")
    (line,) = verification.verify(copied).computed
    assert pipe.key(None) in line


def test_the_interval_is_the_binomial_one():
    """None right of ten: up to 1 - 0.025^(1/10) could be; a count inside agrees, one outside not."""
    assert verification._interval([0, 10]) == pytest.approx((0, 1 - 0.025**0.1))
    group = pd.DataFrame({"n": [10], "published": [0], "low": [0.0], "high": [0.31]}, ["few"])
    for again, astray in ((3, []), (4, ["few"])):
        assert verification.Check(group.assign(again=again), 10, 10, 0.0).astray == astray


def test_what_cannot_be_checked_is_refused(made, exported, copied, tmp_path):
    """No key, too short a one, an unknown run, other data."""
    pipe, store = pipe_of(made[0]), made[0]
    for key, message in (("xyz", "0 published predictions"), ("", "6 published predictions")):
        with pytest.raises(ValueError, match=f"run={key!r}: {message}"):
            verification.check(key, store, None, exported)
    place = place_of(copied, pipe, None)
    about = json.loads(place.read_text())
    about["facts"]["run"]["data"] = "0" * 64
    place.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="data='.{12}': the published run had '000000000000'"):
        verification.check(pipe.key(None), store, None, copied)
    about["facts"].pop("run")
    place.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="was not recorded"):
        verification.check(pipe.key(None), store, None, copied)


def test_one_stage_is_checked_by_its_stage(tmp_path):
    """It is known by the stage whose ReLUs it has, and no row of the tally."""
    study = AccuracyDrops(**PARAMETERS | {"methods": ["deepreduce"], "training": QUICK})
    alone = methods.OneStage(study.runs()[0], Store(tmp_path), None)
    about = json.loads(json.dumps(alone.about(3)))
    assert (about["stage"], about["units"]) == (3, None)
    assert pipeline.Run.read(about, alone.run.budgets) == alone.run


# The command line ---------------------------------------------------------------------------------


def relufair(*arguments):
    return CliRunner().invoke(cli.main, ["results", *map(str, arguments)], prog_name="relufair")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project without published results, in which one stands."""
    root = Path(__file__).resolve().parents[1]
    (tmp_path / "project" / "data").mkdir(parents=True)
    (tmp_path / "project" / "_toc.yml").touch()
    (tmp_path / "project" / "notebooks").symlink_to(root / "notebooks")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("RELUFAIR_DATA", raising=False)
    return tmp_path / "project"


def test_the_commands_of_the_results(made, afresh, project, monkeypatch):
    """Export what a notebook reads, list it, verify it, check it; then spoil it."""
    monkeypatch.setenv("RELUFAIR_STORE", str(made[0].root))
    assert "Nothing is published" in relufair("list").stdout

    fake = types.ModuleType("papermill")
    fake.PapermillExecutionError = type("PapermillExecutionError", (Exception,), {})
    fake.execute_notebook = lambda path, target, given, **_: AccuracyDrops(
        **cli.defaults(path) | given
    ).run()
    monkeypatch.setitem(sys.modules, "papermill", fake)
    given = [f"{k}={json.dumps(v)}" for k, v in ABOUT.items()]
    result = relufair("export", "accuracy_drops", *(part for g in given for part in ("-p", g)))
    assert result.exit_code == 0, result.output
    assert "Published 6 artifacts" in result.stderr and not {
        "RELUFAIR_RECORD",
        "RELUFAIR_OUT",
    } & set(os.environ)
    folder = project / "data" / "results"

    shown = relufair("list").stdout
    assert all(word in shown for word in ("digits, digit by half", "random", "0.1", "0, 1"))
    assert relufair("verify").exit_code == 0
    pipe = pipe_of(made[0])
    assert "Computed anew" not in relufair("verify").stdout
    assert relufair("check", "--run", pipe.key(None), "--store", made[0].root).exit_code == 2
    checked = relufair("check", "--run", pipe.key(None), "--store", afresh.root, "--keep")
    assert checked.exit_code == 0 and "504 of 504 images" in checked.stdout
    assert "It agrees" in checked.stdout
    line = f"Computed anew by this code: predictions/{pipe.key(None)} (random, seed 0 at 1) agrees"
    assert line in relufair("verify").stdout
    assert relufair("check", "--run", "xyz").exit_code == 2

    monkeypatch.setitem(pipeline.VERSIONS, "predictions", 2)
    stale = relufair("verify")
    assert stale.exit_code == 0 and "\n  " not in stale.stdout
    assert "version 1 of predictions, now 2: 4 (4 predictions)" in stale.stdout
    assert "\n  predictions/" in relufair("verify", "--names").stdout
    monkeypatch.setitem(pipeline.VERSIONS, "predictions", 1)
    tamper(folder, pipe, None, lambda t: t.assign(prediction=(t["label"] + 1) % 10))
    assert relufair("verify").exit_code == 1
    flip(first(folder, "predictions/*.parquet"))
    damaged = relufair("verify")
    assert damaged.exit_code == 1 and "DAMAGED" in damaged.stdout

    monkeypatch.setenv("RELUFAIR_PUBLISHED", "1")
    refused = relufair("export", "accuracy_drops")
    assert refused.exit_code == 2 and "RELUFAIR_PUBLISHED=1: unset it" in refused.stderr


def test_where_the_numbers_come_from(exported):
    """Networks, seeds and hours of each machine and code, from the descriptions themselves."""
    table = published.origins(exported)
    about = list(published.described(exported))
    predictions = [own for own in about if own["kind"] == "predictions"]
    assert table["networks"].sum() == len(predictions) > 4
    assert set(table["data"]) == {"digits, digit"} and set(table["seeds"]) == {"0, 1"}
    timed = [o for o in about if o["kind"] != "splits" and "run" in o["facts"]]
    whole = sum(own["facts"]["seconds"] for own in timed) / 3600
    assert 0 < table["hours"].sum() < whole  # the predictions' seconds contain the network's


def test_two_networks_trained_side_by_side_take_twice_the_hours(copied):
    """They may have method, remedy and seed in common."""
    hours = published.origins(copied)["hours"].sum()
    entries = json.loads((copied / "manifest.json").read_text())
    other = [entry | {"arch": "resnet34"} for entry in entries if entry["kind"] != "splits"]
    (copied / "manifest.json").write_text(json.dumps(entries + other))
    assert published.origins(copied)["hours"].sum() == pytest.approx(2 * hours)


def test_time_within_another_artifact_counts_once():
    """The teacher ends at 5 s, the network that needed it began before it; a later one stands alone."""
    made = pd.DataFrame({"end": [7.0, 5.0, 20.0], "seconds": [7.0, 4.0, 3.0]})
    assert published._spent(made) == 10


def chapters_with_results():
    """The chapters whose page shows published results."""
    root = Path(__file__).resolve().parents[1]
    pages = cli.notebooks(root).items()
    return [n for n, path in pages if cli.read_parameters(root, path, cli.PUBLISHED, ())]


@pytest.mark.usefixtures("nothing_is_computed")
@pytest.mark.parametrize("name", chapters_with_results())
def test_what_a_page_shows_is_published(name, capsys):
    """Every network of the chapter's main table, in all its seeds."""
    study, store = studies.published(name), Store(published=True)
    if isinstance(study, Remedied):
        tuned = name == "remedies_compared" and study.tuned(store=store)
        cures = study.cures() if tuned is False else study.chosen(tuned)
        table = study.tally(cures, store=store)
        assert set(table["remedy"]) == {str(cure) for cure in cures}
    else:
        table = study.run(store=store)
    assert set(table["method"]) == set(study.methods)
    by_curve = table.groupby(["method", "remedy"])
    for (method, _), own in by_curve:
        assert set(own["seed"]) == set(study.seeds)
        if method != "deepreduce":  # which cannot have every budget
            shown = own[["seed", "budget"]].drop_duplicates()
            assert len(shown) == len(study.seeds) * (len(study.budgets) + 1)
    assert not capsys.readouterr().out
