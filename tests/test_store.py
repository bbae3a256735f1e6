"""The store: what goes in comes out, whatever happens to the files, the processes and the clock."""

import io
import json
import multiprocessing
import os
import pickle
import signal
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

import relufair.store as module
from relufair.store import Artifact, Damaged, Store, key_of

# PyTorch is imported where it is used: the processes started below do not need it.

CONFIG = {"seed": 0, "rate": 0.1, "names": ["a", "b"]}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def artifact(value=0):
    table = pd.DataFrame({"n": [1, 2, value], "word": ["a", None, "ü"]})
    table["group"] = pd.Categorical(["b", "a", None], categories=["b", "unused", "a"], ordered=True)
    arrays = {"a": np.arange(6.0).reshape(2, 3) + value, "b": np.array(value)}
    return Artifact(arrays, {"table": table}, {"units": value, "device": "a · b"})


def same(one, two):
    assert one.arrays.keys() == two.arrays.keys() and one.tables.keys() == two.tables.keys()
    for name, array in one.arrays.items():
        assert array.dtype == two.arrays[name].dtype and array.shape == two.arrays[name].shape
        np.testing.assert_array_equal(array, two.arrays[name])
    for name, table in one.tables.items():
        pd.testing.assert_frame_equal(table, two.tables[name])
    assert one.facts == two.facts


def compute(value=0, calls=None):
    """A computation that counts how often it runs."""

    def run(work):
        assert work.is_dir()
        if calls is not None:
            calls.append(value)
        return artifact(value)

    return run


# Round trips -------------------------------------------------------------------------------------


def test_an_artifact_comes_back_as_it_was(store):
    """Arrays, tables with their categories, and facts; and again the second time."""
    first = store.fetch("kind", 1, CONFIG, compute(3))
    second = Store(store.root).fetch("kind", 1, CONFIG, None)
    same(first, second)
    same(second, store.get("kind", 1, CONFIG))
    column = second.tables["table"]["group"]
    assert list(column.cat.categories) == ["b", "unused", "a"] and column.cat.ordered
    assert second.facts["units"] == 3 and second.facts["device"] == "a · b"
    assert {"relufair", "python", "written", "seconds"} <= second.facts.keys()


kinds = st.sampled_from("u1 i1 i2 i4 i8 f2 f4 f8 ?".split())


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_array_comes_back(tmp_path_factory, data):
    """Any type, shape (also none and empty) and order in memory; values bit for bit."""
    shape = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    array = data.draw(hnp.arrays(data.draw(kinds), shape))
    views = {"whole": array, "turned": array.T}
    if array.ndim:
        views |= {"every": array[::2], "back": array[::-1]}
    store = Store(tmp_path_factory.mktemp("store"))
    store.put("kind", 1, {}, Artifact(dict(views)))
    found = store.get("kind", 1, {}).arrays
    assert found.keys() == views.keys()
    for name, view in views.items():
        assert (found[name].dtype, found[name].shape) == (view.dtype, view.shape)
        assert found[name].tobytes() == view.tobytes()


def test_big_endian_arrays_keep_their_values(store):
    """As some files hold them."""
    store.put("kind", 1, {}, Artifact({"a": np.array([1.5, -2.0], ">f4")}))
    np.testing.assert_array_equal(store.get("kind", 1, {}).arrays["a"], [1.5, -2.0])


def test_an_artifact_is_laid_out_alike_when_computed_and_when_read(store):
    """A network's sums are rounded by the layout of its images, so that it is a part of the result."""
    images = np.arange(24).reshape(2, 3, 4).transpose(0, 2, 1)
    found = [store.fetch("images", 1, CONFIG, lambda _: Artifact({"x": images})) for _ in range(2)]
    first, again = (own.arrays["x"] for own in found)
    assert first.strides == again.strides and (first == images).all() and (again == images).all()


def test_an_artifact_may_be_empty(store):
    """Without arrays, without tables, without facts."""
    store.put("kind", 1, {}, Artifact())
    found = store.get("kind", 1, {})
    assert (found.arrays, found.tables) == ({}, {})


def test_what_is_not_there_is_none(store):
    assert store.get("kind", 1, CONFIG) is None
    assert not store.root.exists()


def test_the_description_lies_beside_the_artifact(store):
    """A person can read what a folder of the store is."""
    store.put("kind", 7, CONFIG, artifact())
    text = json.loads((store.path("kind", 7, CONFIG) / "config.json").read_text())
    assert (text["kind"], text["version"], text["config"]) == ("kind", 7, CONFIG)


def test_the_folder_of_the_store(tmp_path, monkeypatch):
    """As given, else from the environment."""
    assert Store(tmp_path).root == tmp_path
    monkeypatch.setenv("RELUFAIR_STORE", str(tmp_path / "other"))
    assert Store().root == tmp_path / "other"


# Keys --------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, width=32)
    .filter(np.isfinite),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), values, min_size=1, max_size=5), st.randoms())
def test_a_key_depends_on_everything_but_the_order(config, random):
    """Kind, version, and every value; not on the order of a dictionary."""
    key = key_of("kind", 1, config)
    assert len(key) == 24 and set(key) <= set("0123456789abcdef")
    names = list(config)
    random.shuffle(names)
    assert key_of("kind", 1, {name: config[name] for name in names}) == key
    assert key_of("other", 1, config) != key
    assert key_of("kind", 2, config) != key
    changed = random.choice(names)
    assert key_of("kind", 1, config | {changed: "another value, surely"}) != key
    assert key_of("kind", 1, {n: v for n, v in config.items() if n != changed}) != key


def test_keys_stay_what_they_are():
    """A key that changed would throw away what people have computed."""
    assert key_of("teacher", 1, {"width": 8, "seed": 0}) == "23bff5e5cc01ea8423db8ea5"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_has_no_key_is_refused(value):
    with pytest.raises((ValueError, TypeError)):
        key_of("kind", 1, {"a": value})


def test_kinds_versions_and_configurations_are_apart(store):
    """Each has an artifact of its own."""
    keys = [("kind", 1, {"a": 1}), ("kind", 2, {"a": 1}), ("kind", 1, {"a": 2}), ("b", 1, {"a": 1})]
    for value, key in enumerate(keys):
        store.fetch(*key, compute(value))
    assert [store.get(*key).facts["units"] for key in keys] == [0, 1, 2, 3]


# Damage ------------------------------------------------------------------------------------------


def flip(path, place=0.5):
    raw = bytearray(path.read_bytes())
    raw[int(place * (len(raw) - 1))] ^= 1
    path.write_bytes(bytes(raw))


FILES = ("arrays.safetensors", "config.json", "table.parquet")
DAMAGES = {
    **{f"a byte of {name}": lambda d, name=name: flip(d / name) for name in FILES},
    **{f"the last byte of {name}": lambda d, name=name: flip(d / name, 1.0) for name in FILES},
    **{f"no {name}": lambda d, name=name: (d / name).unlink() for name in FILES},
    **{f"an empty {name}": lambda d, name=name: (d / name).write_bytes(b"") for name in FILES},
    "no checksums": lambda d: (d / "checksums.json").unlink(),
    "an empty list of checksums": lambda d: (d / "checksums.json").write_text(""),
    "half of the checksums": lambda d: (d / "checksums.json").write_bytes(
        (d / "checksums.json").read_bytes()[:80]
    ),
    "a wrong checksum": lambda d: flip(d / "checksums.json", 0.3),
    "an empty folder": lambda d: [path.unlink() for path in d.iterdir()],
    "a file instead": lambda d: (
        [path.unlink() for path in d.iterdir()], d.rmdir(), d.write_text("x")
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_said_and_repaired(store, capsys, damage):
    """Only the damaged artifact is computed anew; the rest of the store stays as it is."""
    first = store.fetch("kind", 1, CONFIG, compute(1))
    store.fetch("kind", 1, {}, compute(2))
    path = store.path("kind", 1, CONFIG)
    other = {p: p.read_bytes() for p in store.path("kind", 1, {}).iterdir()}
    DAMAGES[damage](path)
    calls = []
    again = store.fetch("kind", 1, CONFIG, compute(1, calls))
    assert calls == [1]
    said = capsys.readouterr()
    assert str(path) in said.err and "anew" in said.err and not said.out
    for name in first.arrays:
        np.testing.assert_array_equal(first.arrays[name], again.arrays[name])
    assert store.fetch("kind", 1, CONFIG, None).facts["units"] == 1
    assert not capsys.readouterr().err
    assert {p: p.read_bytes() for p in other} == other


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_what_is_written_has_the_rights_of_the_umask(store, mask):
    """So that a store can be shared with a group, or kept for oneself."""
    before = os.umask(mask)
    try:
        store.fetch("kind", 1, CONFIG, compute())
    finally:
        os.umask(before)
    folder = store.path("kind", 1, CONFIG)
    (lock,) = (store.root / "locks").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
    assert {p.stat().st_mode & 0o777 for p in (lock, *folder.iterdir())} == {0o666 & ~mask}


def test_what_may_not_be_read_is_not_taken_for_damaged(store, monkeypatch):
    """Another user's artifact, say: the error is heard, and nothing is moved."""
    store.put("kind", 1, CONFIG, artifact())

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "checksum", refuse)
    for use in (store.get, lambda *key: store.fetch(*key, compute(9))):
        with pytest.raises(PermissionError):
            use("kind", 1, CONFIG)
    monkeypatch.undo()
    assert store.fetch("kind", 1, CONFIG, None).facts["units"] == 0


def test_every_single_flipped_bit_is_noticed(store):
    """Anywhere in any file."""
    store.put("kind", 1, CONFIG, artifact())
    path = store.path("kind", 1, CONFIG)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 25)):
            flip(file, place / max(1, len(whole) - 1))
            with pytest.raises(Damaged):
                module._read(path)
            file.write_bytes(whole)
    module._read(path)


def test_a_damaged_artifact_is_set_aside_not_lost(store, capsys):
    """What was found is kept for whoever wants to know what happened."""
    store.put("kind", 1, CONFIG, artifact())
    path = store.path("kind", 1, CONFIG)
    flip(path / "config.json")
    assert store.get("kind", 1, CONFIG) is None
    assert "damaged (config.json)" in capsys.readouterr().err
    assert [p.name for p in path.parent.glob(f"{path.name}.damaged-*/config.json")]
    assert not path.exists()


def test_a_half_written_folder_is_ignored(store):
    """What a killed process leaves behind is never taken for an artifact."""
    store.put("kind", 1, CONFIG, artifact(5))
    path = store.path("kind", 1, CONFIG)
    half = path.with_name(f".{path.name}-abc123")
    path.rename(half)
    (half / "checksums.json").unlink()
    calls = []
    assert store.fetch("kind", 1, CONFIG, compute(6, calls)).facts["units"] == 6
    assert calls == [6] and half.exists()


def test_a_write_that_fails_leaves_nothing(store, monkeypatch):
    """A full disk, say: no artifact, no temporary folder, and the error is heard."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save", full)
    with pytest.raises(OSError, match="No space left"):
        store.fetch("kind", 1, CONFIG, compute())
    assert not list((store.root / "kind").iterdir())
    monkeypatch.undo()
    assert store.fetch("kind", 1, CONFIG, compute(4)).facts["units"] == 4


def test_an_error_in_the_computation_stores_nothing_and_frees_the_lock(store):
    """Its unfinished work stays for the next attempt."""

    def fails(work):
        (work / "checkpoint").write_text("half")
        raise RuntimeError("no good")

    def goes_on(work):
        assert (work / "checkpoint").read_text() == "half"
        return artifact(1)

    with pytest.raises(RuntimeError, match="no good"):
        store.fetch("kind", 1, CONFIG, fails)
    assert store.get("kind", 1, CONFIG) is None
    store.fetch("kind", 1, CONFIG, goes_on)
    assert not list((store.root / "work").iterdir())


# Several processes -------------------------------------------------------------------------------

spawn = multiprocessing.get_context("spawn")


def slow(work, log, started=None):
    """A computation that takes a moment and says that it ran."""
    with Path(log).open("a") as file:
        file.write(f"{os.getpid()}\n")
    if started:
        Path(started).touch()
    time.sleep(1)
    return Artifact({"a": np.array(os.getpid())})


def fetch_slowly(root, log, ready, go, results):
    ready.release()
    go.wait(60)
    found = Store(root).fetch("kind", 1, CONFIG, lambda work: slow(work, log))
    results.put(int(found.arrays["a"]))


def test_two_processes_compute_once_and_get_the_same(store, tmp_path):
    """They start together; the one that comes second waits for the first."""
    ready, go, results = spawn.Semaphore(0), spawn.Event(), spawn.Queue()
    args = (store.root, tmp_path / "log", ready, go, results)
    processes = [spawn.Process(target=fetch_slowly, args=args) for _ in range(2)]
    for process in processes:
        process.start()
    for _ in processes:
        assert ready.acquire(timeout=60)
    go.set()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    pids = (tmp_path / "log").read_text().split()
    assert len(pids) == 1 and found == [int(pids[0])] * 2
    assert {p.exitcode for p in processes} == {0}


def wait_for(path):
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def compute_forever(root, started):
    def run(work):
        (work / "checkpoint").write_text("epoch 3")
        Path(started).touch()
        time.sleep(600)

    Store(root).fetch("kind", 1, CONFIG, run)


def write_forever(root, started):
    def half(folder, *args):
        (folder / "arrays.safetensors").write_bytes(b"half")
        Path(started).touch()
        time.sleep(600)

    module._write = half
    Store(root).fetch("kind", 1, CONFIG, lambda work: artifact(1))


@pytest.mark.parametrize("target", [compute_forever, write_forever])
def test_a_killed_process_leaves_the_key_free(store, tmp_path, target):
    """Killed while it computes, and while it writes: nothing stored, nothing locked."""
    process = spawn.Process(target=target, args=(store.root, tmp_path / "started"))
    process.start()
    wait_for(tmp_path / "started")
    with pytest.raises(TimeoutError):
        store.lock("kind", 1, CONFIG).acquire(timeout=0)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with store.lock("kind", 1, CONFIG).acquire(timeout=5):
        assert store.get("kind", 1, CONFIG) is None
    assert not store.path("kind", 1, CONFIG).exists()
    seen = []

    def goes_on(work):
        seen.extend(p.read_text() for p in work.iterdir())
        return artifact(2)

    assert store.fetch("kind", 1, CONFIG, goes_on).facts["units"] == 2
    assert seen == (["epoch 3"] if target is compute_forever else [])
    assert store.get("kind", 1, CONFIG).facts["units"] == 2


def test_where_another_was_first_its_copy_stays(store):
    """Two that write the same key: the first wins, the second leaves no trace."""
    store.put("kind", 1, CONFIG, artifact(1))
    store.put("kind", 1, CONFIG, artifact(2))
    assert store.get("kind", 1, CONFIG).facts["units"] == 1
    assert [p.name for p in (store.root / "kind").iterdir()] == [key_of("kind", 1, CONFIG)]


def test_what_was_computed_while_waiting_is_not_computed_again(store, monkeypatch):
    """The one that waits for the lock looks once more before it computes."""
    enter = FileLock.acquire

    def late(self, *args, **kwargs):
        monkeypatch.setattr(FileLock, "acquire", enter)
        store.put("kind", 1, CONFIG, artifact(1))
        return enter(self, *args, **kwargs)

    monkeypatch.setattr(FileLock, "acquire", late)
    calls = []
    assert store.fetch("kind", 1, CONFIG, compute(2, calls)).facts["units"] == 1
    assert not calls


def test_a_good_copy_put_by_another_process_is_not_set_aside(store, monkeypatch, capsys):
    """One that has read a damaged artifact looks again before it moves anything."""
    store.put("kind", 1, CONFIG, artifact(1))
    path, read = store.path("kind", 1, CONFIG), module._read
    flip(path / "config.json")

    def repaired_meanwhile(folder):
        monkeypatch.setattr(module, "_read", read)
        try:
            return read(folder)
        finally:
            path.rename(path.with_name("aside"))
            store.put("kind", 1, CONFIG, artifact(2))

    monkeypatch.setattr(module, "_read", repaired_meanwhile)
    assert store.get("kind", 1, CONFIG).facts["units"] == 2
    assert path.exists() and not list(path.parent.glob("*.damaged-*"))
    assert not capsys.readouterr().err


def test_what_is_damaged_is_set_aside_under_its_lock(store):
    """While another process holds it, nothing is moved."""
    store.put("kind", 1, CONFIG, artifact(1))
    flip(store.path("kind", 1, CONFIG) / "config.json")
    with ThreadPoolExecutor() as pool:
        with store.lock("kind", 1, CONFIG):
            waiting = pool.submit(store.get, "kind", 1, CONFIG)
            assert not wait([waiting], timeout=0.3).done
            assert store.path("kind", 1, CONFIG).exists()
        assert waiting.result(60) is None
    assert not store.path("kind", 1, CONFIG).exists()


# Loading never runs code -------------------------------------------------------------------------


class Evil:
    """A pickle that, loaded, makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path):
    """A file that only an executed pickle would make; the fixture shows that one does."""
    path = tmp_path / "executed"
    pickle.loads(pickle.dumps(Evil(path)))
    assert path.exists()
    path.unlink()
    return path


def zipped(marker):
    """A checkpoint in PyTorch's own form, with something evil in it."""
    import torch

    stream = io.BytesIO()
    torch.save({"net": {"weight": Evil(marker)}, "log": []}, stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["arrays.safetensors", "table.parquet"])
@pytest.mark.parametrize("form", [lambda m: pickle.dumps(Evil(m)), zipped], ids=["pickle", "torch"])
@pytest.mark.parametrize("forged", [False, True])
def test_a_pickle_in_the_store_is_not_run(store, marker, capsys, name, form, forged):
    """Neither where the checksums tell it, nor where they were made to fit: it is damaged."""
    store.put("kind", 1, CONFIG, artifact(1))
    path = store.path("kind", 1, CONFIG)
    (path / name).write_bytes(form(marker))
    if forged:
        sums = {file: module.checksum(path / file) for file in (*FILES,)}
        (path / "checksums.json").write_text(json.dumps(sums))
    assert store.fetch("kind", 1, CONFIG, compute(2)).facts["units"] == 2
    assert "anew" in capsys.readouterr().err
    assert not marker.exists()


def test_the_arrays_are_in_a_format_without_code(store):
    """Anyone can read them with safetensors alone."""
    store.put("kind", 1, CONFIG, artifact(1))
    found = load_file(store.path("kind", 1, CONFIG) / "arrays.safetensors")
    np.testing.assert_array_equal(found["a"], artifact(1).arrays["a"])


def fit(checkpoint, epochs=2):
    """A tiny training; all its weights in one array."""
    import torch

    from relufair import models, training
    from relufair.objectives import CrossEntropy
    from relufair.training import Samples

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 1, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.arange(16) % 2
    half = torch.full((1, 1, 1), 0.5)
    net = models.build("resnet18", classes=2, channels=1, width=2)
    log = training.fit(
        net, Samples(images, labels, labels, half, half), CrossEntropy(),
        training.sgd(net, 0.01, 0.0), epochs=epochs, batch=8, seed=(0,), checkpoint=checkpoint,
    )  # fmt: skip
    assert len(log) == epochs
    return np.concatenate([v.double().numpy().ravel() for v in net.state_dict().values()])


@pytest.mark.parametrize("form", [lambda m: pickle.dumps(Evil(m)), zipped], ids=["pickle", "torch"])
def test_a_pickle_as_a_checkpoint_is_not_run(tmp_path, marker, capsys, form):
    """Training says that it is damaged and starts over."""
    (tmp_path / "checkpoint").write_bytes(form(marker))
    weights = fit(tmp_path / "checkpoint")
    assert not marker.exists()
    assert "checkpoint is damaged" in capsys.readouterr().err
    np.testing.assert_array_equal(weights, fit(None))


def test_checkpoints_are_read_as_weights_only(tmp_path, monkeypatch):
    """Also a sound one: PyTorch is told to run no code from it."""
    import torch

    fit(tmp_path / "checkpoint", epochs=1)
    load, asked = torch.load, []

    def watched(*args, **kwargs):
        asked.append(kwargs.get("weights_only"))
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    fit(tmp_path / "checkpoint")
    assert asked and all(answer is True for answer in asked)


@pytest.mark.parametrize("cut", [0, 1, 100, 0.5, 0.99])
def test_half_a_checkpoint_is_noticed(tmp_path, capsys, cut):
    """Training starts over, with the same result."""
    path = tmp_path / "checkpoint"
    fit(path, epochs=1)
    raw = path.read_bytes()
    path.write_bytes(raw[: cut if isinstance(cut, int) else int(cut * len(raw))])
    weights = fit(path)
    assert "damaged" in capsys.readouterr().err
    np.testing.assert_array_equal(weights, fit(None))


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path, capsys):
    """Wherever it is: a wrong weight must not find its way into a result."""
    path, weights = tmp_path / "checkpoint", fit(None)
    fit(path, epochs=1)
    raw = path.read_bytes()
    for place in (0.1, 0.3, 0.5, 0.8):
        path.write_bytes(raw)
        flip(path, place)
        np.testing.assert_array_equal(fit(path), weights, err_msg=str(place))
        assert "damaged" in capsys.readouterr().err


def test_a_checkpoint_is_replaced_in_one_step(tmp_path, monkeypatch):
    """A write that dies leaves the checkpoint of the epoch before."""
    import torch

    path = tmp_path / "checkpoint"
    fit(path, epochs=1)
    before, save = path.read_bytes(), torch.save

    def dies(state, target, *args):
        save(state, target, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        fit(path, epochs=3)
    assert path.read_bytes() == before
