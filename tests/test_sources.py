"""The readers: what they return, what they skip, and that they touch nothing else."""

import dataclasses
import hashlib
import io
import os
import pickle
import random
import re
import shutil
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from relufair import data, sources
from relufair.sources import AGES, OBJECTS, RACES, SOURCES
from relufair.store import Store


@pytest.fixture(autouse=True)
def no_data_folder(request, monkeypatch):
    """Only the tests of real data see the user's data folder."""
    if "real" not in request.node.name:
        monkeypatch.delenv("RELUFAIR_DATA", raising=False)


def picture(color, size=20, kind="JPEG"):
    """The bytes of an image of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (size, size), tuple(color)).save(stream, kind, quality=95)
    return stream.getvalue()


def color_of(race, gender, age):
    """What the generated faces show: their own attributes, so that a mix-up is seen."""
    return 50 * race + 20, 200 * gender + 20, 2 * age


def faces(n):
    """Names and bytes of ``n`` faces of all races, genders and many ages."""
    members = {}
    for i in range(n):
        age, gender, race = 1 + i * 7 % 100, i % 2, i % 5
        name = f"{age}_{gender}_{race}_{20170101 + i}.jpg.chip.jpg"
        members[name] = picture(color_of(race, gender, age))
    return members


def write(folder, members):
    """Write files by their relative name."""
    for name, content in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def archive(path, members, extra=()):
    """A tar.gz of the members in random order, then of ready-made headers."""
    names = list(members)
    random.Random(0).shuffle(names)
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(members[name])
            tar.addfile(info, io.BytesIO(members[name]))
        for info in extra:
            tar.addfile(info)


def under(prefix, members):
    return {f"{prefix}/{name}": content for name, content in members.items()}


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


# UTKFace -----------------------------------------------------------------------------------------


def test_faces_from_a_folder_and_from_its_archive_are_the_same(tmp_path):
    """Images, table and fingerprint agree, sorted by name, whatever the order in the archive."""
    members = faces(40)
    write(tmp_path / "a" / "UTKFace", members)
    (tmp_path / "b").mkdir()
    archive(tmp_path / "b" / "UTKFace.tar.gz", under("UTKFace", members))
    one, two = (sources.load("utkface", 16, tmp_path / d, Store(tmp_path / d / "s")) for d in "ab")
    assert one.fingerprint == two.fingerprint
    np.testing.assert_array_equal(one.images, two.images)
    pd.testing.assert_frame_equal(one.table, two.table)
    assert one.images.shape == (40, 3, 16, 16) and one.images.dtype == np.uint8
    assert list(one.table["file"]) == sorted(members)
    assert one.skipped == two.skipped == ()


def test_faces_keep_their_own_attributes(tmp_path):
    """Every image shows what its row in the table says."""
    write(tmp_path / "UTKFace", faces(60))
    found = sources.load("utkface", 32, tmp_path, Store(tmp_path / "store"))
    ages = found.table["file"].str.split("_").str[0].astype(int)
    codes = found.table["race"].cat.codes, found.table["gender"].cat.codes, ages
    shown = found.images.astype(float).mean((2, 3))
    expected = np.array([color_of(*row) for row in zip(*codes, strict=True)])
    assert np.abs(shown - expected).max() < 4
    assert tuple(found.table["race"].cat.categories) == RACES
    assert list(found.table["gender"].cat.categories) == ["male", "female"]


@pytest.mark.parametrize(
    ("age", "band", "five"),
    [
        (0, None, "0–1"),
        (1, None, "0–1"),
        (2, "2–12", "2–12"),
        (12, "2–12", "2–12"),
        (13, "13–17", "13–17"),
        (17, "13–17", "13–17"),
        (18, "18–64", "18–64"),
        (64, "18–64", "18–64"),
        (65, "65+", "65+"),
        (116, "65+", "65+"),
    ],
)
def test_age_bands(tmp_path, age, band, five):
    """The paper's four bands, without ages 0 and 1; its released code's five, with them."""
    write(tmp_path / "UTKFace", {f"{age}_0_0_2017.jpg": picture((9, 9, 9))})
    (row,) = sources.load("utkface", 16, tmp_path, Store(tmp_path / "s")).table.to_dict("records")
    assert row["age5"] == five
    assert row["age"] == band if band else pd.isna(row["age"])


BAD = {
    "61_1_20170109150557335.jpg.chip.jpg": picture((1, 2, 3)),  # no race
    "30_0_2_20170116.jpg": picture((1, 2, 3))[:300],  # half an image
    "31_0_2_20170116.jpg": b"",
    "32_0_5_20170116.jpg": picture((1, 2, 3)),  # there is no race 5
}


def with_bad(count, good=300):
    return faces(good) | dict(list(BAD.items())[:count])


@pytest.mark.parametrize("packed", [False, True])
def test_unusable_faces_are_skipped_counted_and_listed(tmp_path, packed):
    """Up to 1 % of misnamed and corrupt images cost a warning that names them."""
    members = with_bad(3)
    if packed:
        archive(tmp_path / "UTKFace.tar.gz", under("UTKFace", members))
    else:
        write(tmp_path / "UTKFace", members)
    store = Store(tmp_path / "store")
    with pytest.warns(UserWarning, match=r"utkface: 3 of 303 images cannot be used: .*skipped"):
        found = sources.load("utkface", 16, tmp_path, store)
    assert set(found.skipped) == set(list(BAD)[:3])
    assert len(found.images) == len(found.table) == 300
    assert not set(found.table["file"]) & set(BAD)
    assert sources.load("utkface", 16, tmp_path, store).skipped == found.skipped


def test_too_many_unusable_faces_are_an_error(tmp_path):
    """More than 1 %: probably not the data set. Nothing is cached."""
    write(tmp_path / "UTKFace", with_bad(4))
    store = Store(tmp_path / "store")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^utkface: 4 of 304 .*32_0_5_.*More than 1%"):
            sources.load("utkface", 16, tmp_path, store)
    assert not list((tmp_path / "store").glob("images/*"))


@pytest.mark.parametrize(
    ("name", "file", "wanted"),
    [
        ("utkface", "UTKFace/README.txt", "images named [age]_[gender]_[race]_[date].jpg"),
        ("cifar10", "CIFAR-10-images/README", "images named {train,test}/<class>/<name>"),
        ("folder", "labels.csv", "names of images"),
    ],
)
def test_a_place_without_any_image_is_an_error(tmp_path, name, file, wanted):
    """It says what was looked for, where, and how to get it."""
    write(tmp_path, {file: b"file,label\n"})
    where = tmp_path / SOURCES[name].found(tmp_path)[0].name
    message = f"dataset={name!r}: no {wanted} in {where}. {SOURCES[name].how}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sources.load(name, 16, tmp_path, Store(tmp_path / "store"))


@given(st.integers(0, 10_000), st.integers(0, 10_000))
@settings(max_examples=60)
@example(99, 1)
@example(100, 1)
@example(0, 1)
def test_the_limit_is_one_percent(used, bad):
    """Exactly 1 % passes with a warning, more does not, and none bad passes silently."""
    names = [f"{i}.jpg" for i in range(bad)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if bad <= 0.01 * (used + bad):
            sources._check_skipped("toy", names, used)
            assert len(caught) == (bad > 0)
        else:
            with pytest.raises(ValueError, match=f"toy: {bad} of {used + bad} images"):
                sources._check_skipped("toy", names, used)


# Safety ------------------------------------------------------------------------------------------


def everything(folder):
    """All files below ``folder`` with their contents, links and times."""
    return {
        str(path): (path.is_symlink(), path.lstat().st_mtime_ns, path.is_file() and md5(path))
        for path in sorted(folder.rglob("*"))
    }


def test_hostile_archives_write_nothing_and_give_away_nothing(tmp_path, monkeypatch):
    """Paths out of the folder are only names; links in the archive are not followed."""
    secret = tmp_path / "25_1_4_2017.jpg"
    secret.write_bytes(picture((250, 250, 250)))
    good, evil = faces(300), picture((0, 0, 0))
    hostile = {"../evil.jpg": evil, "/".join((str(tmp_path), "absolute.jpg")): evil}
    symbolic, hard = (tarfile.TarInfo(f"UTKFace/2{i}_1_4_2017.jpg") for i in (6, 7))
    symbolic.type, symbolic.linkname = tarfile.SYMTYPE, str(secret)
    hard.type, hard.linkname = tarfile.LNKTYPE, str(secret)
    device = tarfile.TarInfo("UTKFace/28_1_4_2017.jpg")
    device.type = tarfile.CHRTYPE
    folder = tmp_path / "data" / "here"
    folder.mkdir(parents=True)
    members = under("UTKFace", good) | hostile
    archive(folder / "UTKFace.tar.gz", members, [symbolic, hard, device])
    monkeypatch.chdir(folder)
    before = everything(tmp_path)
    images, table, skipped = SOURCES["utkface"].read(folder, 16)
    assert everything(tmp_path) == before
    assert list(table["file"]) == sorted(good) and len(images) == 300
    assert set(skipped) == {"evil.jpg", "absolute.jpg"}


def test_links_in_a_folder_are_not_followed(tmp_path):
    """Neither to a file nor to a folder, and a broken one does no harm."""
    write(tmp_path / "UTKFace", faces(5))
    write(tmp_path / "elsewhere", {"25_1_4_2017.jpg": picture((250, 250, 250))})
    (tmp_path / "UTKFace" / "26_1_4_2017.jpg").symlink_to(tmp_path / "elsewhere/25_1_4_2017.jpg")
    (tmp_path / "UTKFace" / "27_1_4_2017.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "UTKFace" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = sources.load("utkface", 16, tmp_path, Store(tmp_path / "store"))
    assert list(found.table["file"]) == sorted(faces(5))


def test_nothing_is_written_into_the_data_folder(tmp_path):
    """Also when the data are read from an archive and cached."""
    folder = tmp_path / "data"
    folder.mkdir()
    archive(folder / "UTKFace.tar.gz", under("UTKFace", faces(5)))
    before = everything(folder)
    sources.load("utkface", 16, folder, Store(tmp_path / "store"))
    assert everything(folder) == before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no archive"])
def test_a_damaged_archive_is_an_error_that_names_it(tmp_path, damage):
    """Never silently fewer or other images: the archive has a checksum of its own."""
    path = tmp_path / "UTKFace.tar.gz"
    archive(path, under("UTKFace", faces(60)))
    raw = path.read_bytes()
    for place in range(len(raw) // 10, len(raw) - 10, len(raw) // 9):
        if damage == "truncated":
            path.write_bytes(raw[:place])
        elif damage == "flipped":
            path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        else:
            path.write_bytes(b"this is no archive" * place)
        with pytest.raises(ValueError, match="UTKFace.tar.gz"):
            sources.load("utkface", 16, tmp_path, Store(tmp_path / "store"))


# Decoding ----------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sources.FORMATS),
    st.integers(0, 2**32),
    st.integers(0, 8),
    st.one_of(st.none(), st.floats(0, 1)),
)
def test_no_bytes_can_break_the_decoder(kind, seed, flips, cut):
    """A damaged file is an image of the right form, or it is none; never another error."""
    rng = random.Random(seed)
    raw = bytearray(picture((10, 200, 90), 12, kind))
    for _ in range(flips):
        raw[rng.randrange(min(len(raw), rng.choice((40, len(raw)))))] = rng.randrange(256)
    if cut is not None:
        raw = raw[: int(cut * len(raw))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name, image = sources._decode(("x", bytes(raw)), 16)
    assert name == "x"
    if not isinstance(image, str):
        assert image.shape == (3, 16, 16) and image.dtype == np.uint8


@pytest.mark.parametrize("kind", sources.FORMATS)
def test_the_documented_kinds_of_image_are_read(kind):
    _, image = sources._decode(("x", picture((10, 200, 90), 16, kind)), 16)
    assert np.abs(image.mean((1, 2)) - [10, 200, 90]).max() < 4


@pytest.mark.parametrize("kind", ["DDS", "ICO", "JPEG2000", "PCX", "PPM", "SGI", "TGA"])
def test_no_other_decoder_is_reached(kind):
    """Pillow would read them, and some dozen more that hardly anyone looks after."""
    raw = picture((10, 200, 90), 16, kind)
    Image.open(io.BytesIO(raw)).load()
    assert sources._decode(("x.jpg", raw), 16) == ("x.jpg", "")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
def test_every_usual_mode_becomes_colour(mode):
    """Grey, coloured, transparent, with a palette, black and white, for print."""
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), (255, 255, 255)).convert(mode).save(stream, "TIFF")
    _, image = sources._decode(("x", stream.getvalue()), 16)
    assert image.shape == (3, 16, 16) and image.min() >= 254


def stored(pixels, kind="TIFF"):
    """The bytes of a grey image of these pixels, in their own type."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled(kind, order):
    """A grey image of 16 bits keeps its contrast and its white; it is not cut off."""
    deep = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    _, image = sources._decode(("x", stored(deep.astype(order), kind)), 32)
    np.testing.assert_array_equal(image, np.broadcast_to(np.round(deep / 257), (3, 32, 32)))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_thirty_two_bits_are_read_where_eight_are_enough(kind):
    grey = np.arange(256).reshape(16, 16)
    _, image = sources._decode(("x", stored(grey.astype(kind))), 16)
    np.testing.assert_array_equal(image, np.broadcast_to(grey, (3, 16, 16)))


DEEP = {
    "int": np.arange(256, dtype=np.int32).reshape(16, 16) + 1,
    "negative": np.arange(256, dtype=np.int32).reshape(16, 16) - 1,
    "a share": np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16),
    "nan": np.full((16, 16), np.nan, np.float32),
    "inf": np.full((16, 16), np.inf, np.float32),
}


@pytest.mark.parametrize("pixels", DEEP.values(), ids=DEEP)
def test_what_eight_bits_cannot_hold_is_refused(pixels):
    """Neither cut off nor guessed; the reason is said."""
    reason = "32-bit pixels other than 0 to 255: save it with 8 or 16 bits"
    assert sources._decode(("x", stored(pixels)), 16) == ("x", reason)


# CIFAR-10 ----------------------------------------------------------------------------------------


def batch(n, seed):
    """Images as rows (red, then green, then blue) and labels, as the official batches have them."""
    rng = np.random.default_rng(seed)
    return {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), "labels": [*range(10)][:n]}


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Small official batches, which torchvision is made to take for the real ones."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    lists, content = {"train_list": [], "test_list": []}, {}
    names = {f"data_batch_{i}": "train_list" for i in range(1, 6)} | {"test_batch": "test_list"}
    for seed, (name, kind) in enumerate(names.items()):
        content[name] = batch(10, seed)
        (folder / name).write_bytes(pickle.dumps(content[name], 2))
        lists[kind].append([name, md5(folder / name)])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(OBJECTS)}, 2))
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}
    for name, value in {**lists, "meta": meta}.items():
        monkeypatch.setattr(CIFAR10, name, value)
    return tmp_path / "data", content


def test_cifar10_from_the_official_batches(official, tmp_path):
    """Training batches in order, then the test batch; bytes and labels as they are written."""
    folder, content = official
    found = sources.load("cifar10", 32, folder, Store(tmp_path / "store"))
    rows = np.concatenate([part["data"] for part in content.values()])
    np.testing.assert_array_equal(found.images, rows.reshape(-1, 3, 32, 32))
    assert list(found.table["split"]) == ["train"] * 50 + ["test"] * 10
    assert list(found.table["object"]) == [*OBJECTS] * 6
    assert list(found.table["half"]) == (["classes 0–4"] * 5 + ["classes 5–9"] * 5) * 6
    assert list(found.table["object"].cat.categories) == list(OBJECTS)
    assert found.table["file"].is_unique


def test_cifar10_can_be_resized(official, tmp_path):
    folder, content = official
    found = sources.load("cifar10", 16, folder, Store(tmp_path / "store"))
    assert found.images.shape == (60, 3, 16, 16)
    first = content["data_batch_1"]["data"][0].reshape(3, 32, 32).astype(float)
    assert np.abs(found.images[0].mean((1, 2)) - first.mean((1, 2))).max() < 6


class Evil:
    """A pickle that, loaded, makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_cifar10_with_a_wrong_checksum_is_refused_unread(official, tmp_path):
    """The batches are pickles: what is not the official file is never loaded."""
    folder, _ = official
    evil, marker = pickle.dumps(Evil(tmp_path / "marker")), tmp_path / "marker"
    pickle.loads(evil)
    assert marker.exists()  # it works
    marker.unlink()
    (folder / "cifar-10-batches-py" / "data_batch_3").write_bytes(evil)
    with pytest.raises((ValueError, RuntimeError), match="corrupted"):
        sources.load("cifar10", 32, folder, Store(tmp_path / "store"))
    assert not marker.exists()


@pytest.fixture
def packed(official):
    """The data folder with the official archive as downloaded, and what is in its batches."""
    folder, content = official
    place = folder / "cifar-10-batches-py"
    members = {path.name: path.read_bytes() for path in place.iterdir()} | {"readme.html": b"<p>"}
    shutil.rmtree(place)
    members = under("cifar-10-batches-py", members)
    archive(folder / "cifar-10-python.tar.gz", members)
    return folder, content, members


def test_cifar10_from_the_official_archive(packed, tmp_path):
    """As it was downloaded: the same as from its batches, and nothing is left of it anywhere."""
    folder, content, _ = packed
    before = everything(tmp_path)
    images, table, skipped = SOURCES["cifar10"].read(folder, 32)
    assert everything(tmp_path) == before
    rows = np.concatenate([part["data"] for part in content.values()])
    np.testing.assert_array_equal(images, rows.reshape(-1, 3, 32, 32))
    assert list(table["split"]) == ["train"] * 50 + ["test"] * 10 and not skipped
    assert list(table["object"]) == [*OBJECTS] * 6


def test_a_hostile_official_archive_writes_and_runs_nothing(packed, tmp_path, monkeypatch):
    """Names that lead elsewhere and links are left; a batch with a wrong checksum is not loaded."""
    folder, _, members = packed
    path, marker = folder / "cifar-10-python.tar.gz", tmp_path / "marker"
    evil = pickle.dumps(Evil(marker))
    places = ("../evil", f"{tmp_path}/absolute", "cifar-10-batches-py/../../data_batch_1")
    link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    link.type, link.linkname = tarfile.SYMTYPE, str(marker)
    archive(path, members | dict.fromkeys(places, evil), [link])
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = everything(tmp_path)
    assert len(SOURCES["cifar10"].read(folder, 32)[0]) == 60
    after = everything(tmp_path)
    assert after.keys() == before.keys() and not marker.exists()
    archive(path, members | {"cifar-10-batches-py/data_batch_3": evil})
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz is damaged .*corrupted.*anew"):
        SOURCES["cifar10"].read(folder, 32)
    assert not marker.exists() and not list(temporary.iterdir())


def test_a_cut_official_archive_is_an_error_that_names_it(packed, tmp_path):
    folder, _, members = packed
    path = folder / "cifar-10-python.tar.gz"
    for damage in ("cut", "incomplete"):
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:-9])
        else:
            archive(path, {n: m for n, m in members.items() if "test_batch" not in n})
        with pytest.raises(ValueError, match="cifar-10-python.tar.gz is damaged"):
            sources.load("cifar10", 32, folder, Store(tmp_path / "store"))


def objects(per_class=2):
    """The edition as image files: the colour tells the class and the part."""
    return {
        f"CIFAR-10-images/{part}/{name}/{i:04d}.jpg": picture((20 * c, 100 * (part == "test"), 50))
        for part in ("train", "test")
        for c, name in enumerate(OBJECTS)
        for i in range(per_class)
    }


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_as_image_files(tmp_path, packed):
    """From a folder and from an archive: part, class and image belong together."""
    if packed:
        archive(tmp_path / "CIFAR-10-images.tar.gz", objects())
    else:
        write(tmp_path, objects())
    found = sources.load("cifar10", 32, tmp_path, Store(tmp_path / "store"))
    table = found.table
    assert Counter(table["split"]) == {"train": 20, "test": 20}
    assert list(table["split"]) == ["train"] * 20 + ["test"] * 20
    assert set(Counter(zip(table["split"], table["object"], strict=True)).values()) == {2}
    red = found.images.astype(float).mean((2, 3))[:, 0] / 20
    np.testing.assert_array_equal(red.round(), table["object"].cat.codes)
    green = found.images.astype(float).mean((2, 3))[:, 1]
    np.testing.assert_array_equal(green > 50, table["split"] == "test")
    assert list(table["half"].cat.codes) == [int(c >= 5) for c in table["object"].cat.codes]
    assert table["file"].is_unique


def test_cifar10_folder_and_archive_agree(tmp_path):
    (tmp_path / "b").mkdir()
    write(tmp_path / "a", objects())
    archive(tmp_path / "b" / "CIFAR-10-images.tar.gz", objects())
    one, two = (sources.load("cifar10", 32, tmp_path / d, Store(tmp_path / d / "s")) for d in "ab")
    assert one.fingerprint == two.fingerprint


def test_cifar10_with_strange_files(tmp_path):
    """A class that CIFAR-10 does not have, and a part that it does not have."""
    strange = {
        f"CIFAR-10-images/{p}/0001.jpg": picture((1, 1, 1)) for p in ("train/cow", "val/cat")
    }
    write(tmp_path, objects(10) | strange)
    with pytest.warns(UserWarning, match="2 of 202"):
        found = sources.load("cifar10", 32, tmp_path, Store(tmp_path / "store"))
    assert set(found.skipped) == set(strange)


# SVHN --------------------------------------------------------------------------------------------


@pytest.fixture
def houses(tmp_path, monkeypatch):
    """Small files in the official layout, which torchvision is made to take for the real ones."""
    from torchvision.datasets import SVHN

    folder, lists, content = tmp_path / "data", {}, {}
    folder.mkdir()
    for seed, part in enumerate(("train", "test")):
        rng = np.random.default_rng(seed)
        labels = np.array([10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 3][: 12 - seed], np.uint8)
        images = rng.integers(0, 256, (32, 32, 3, len(labels)), dtype=np.uint8)
        path = folder / f"{part}_32x32.mat"
        savemat(path, {"X": images, "y": labels[:, None]})
        lists[part] = ["", path.name, md5(path)]
        content[part] = images, labels
    monkeypatch.setattr(SVHN, "split_list", lists | {"extra": ["", "extra_32x32.mat", ""]})
    return folder, content


def test_svhn_from_the_official_files(houses, tmp_path):
    """Upright, in colour, training first; the label 10 stands for the digit 0."""
    folder, content = houses
    found = sources.load("svhn", 32, folder, Store(tmp_path / "store"))
    expected = np.concatenate([x.transpose(3, 2, 0, 1) for x, _ in content.values()])
    np.testing.assert_array_equal(found.images, expected)
    digits = np.concatenate([y % 10 for _, y in content.values()])
    assert list(found.table["digit"]) == [str(d) for d in digits]
    assert list(found.table["digit"].cat.categories) == [str(d) for d in range(10)]
    assert list(found.table["split"]) == ["train"] * 12 + ["test"] * 11
    np.testing.assert_array_equal(found.table["half"].cat.codes, digits >= 5)


def test_svhn_with_a_wrong_checksum_is_refused(houses, tmp_path):
    folder, _ = houses
    (folder / "test_32x32.mat").write_bytes((folder / "train_32x32.mat").read_bytes())
    with pytest.raises((ValueError, RuntimeError), match="corrupted"):
        sources.load("svhn", 32, folder, Store(tmp_path / "store"))


def test_svhn_needs_both_files(houses):
    folder, _ = houses
    (folder / "test_32x32.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"train_32x32.mat \+ test_32x32.mat not found"):
        sources.locate("svhn", folder)


# The user's own folder ---------------------------------------------------------------------------


def own(folder, table, images=None):
    """A folder with a labels.csv and the images it names."""
    folder.mkdir(exist_ok=True)
    (folder / "labels.csv").write_text(table)
    for i, name in enumerate(images or ()):
        write(folder, {name: picture((20 * i, 0, 0), kind="PNG")})
    return folder


def read_own(folder, size=16):
    return sources.load("folder", size, folder, Store(folder.parent / "store"))


def test_own_images(tmp_path):
    """Images of subfolders, in the order of their names, with all attributes of the table."""
    csv = "site,file,label\nnorth,b.png,cat\nsouth,sub/a.png,dog\nnorth,a.png,dog\n"
    folder = own(tmp_path / "own", csv, ["b.png", "sub/a.png", "a.png"])
    found = read_own(folder)
    assert list(found.table["file"]) == ["a.png", "b.png", "sub/a.png"]
    assert list(found.table["label"]) == ["dog", "cat", "dog"]
    assert list(found.table["site"]) == ["north", "north", "south"]
    np.testing.assert_array_equal(found.images[:, 0, 0, 0], [40, 0, 20])
    assert sources.attributes("folder", folder) == {"site": 2, "label": 2}


def test_numbers_are_ordered_as_numbers_and_words_as_words(tmp_path):
    csv = "file,age,word\na.png,10,b\nb.png,9,a\nc.png,100,c\nd.png,-1,a\n"
    table = sources.read_labels(own(tmp_path / "own", csv))
    assert list(table["age"].cat.categories) == ["-1", "9", "10", "100"]
    assert list(table["word"].cat.categories) == ["a", "b", "c"]
    assert list(table["age"]) == ["10", "9", "100", "-1"]
    assert table["age"].cat.ordered


def test_missing_cells_are_missing(tmp_path):
    """And they leave the names of the others alone: 1 stays 1."""
    csv = "file,label,site\na.png,1,\nb.png,,x\nc.png,20,y\nd.png,3,x\n"
    table = sources.read_labels(own(tmp_path / "own", csv))
    assert list(table["label"].isna()) == [False, True, False, False]
    assert list(table["site"].isna()) == [True, False, False, False]
    assert list(table["label"].cat.categories) == ["1", "3", "20"]


def test_only_empty_cells_are_missing(tmp_path):
    """A region called NA and a treatment called None are values."""
    csv = "file,region,treatment\na.png,NA,None\nb.png,EU,null\nc.png,,x\n"
    table = sources.read_labels(own(tmp_path / "own", csv))
    assert list(table["region"].isna()) == [False, False, True]
    assert sorted(table["treatment"].cat.categories) == ["None", "null", "x"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\na.png,x\na.png,y\n", "'a.png' is named twice"),
        ("file,label\na.png,x\n,y\n", "named twice or empty"),
        ("file,label\n../x.png,x\n", "'../x.png' leaves the folder"),
        ("file,label\nsub/../../x.png,x\n", "leaves the folder"),
        ("file,label\n/etc/x.png,x\n", "'/etc/x.png' leaves the folder"),
        ("file,label\nlink/x.png,x\n", "'link/x.png' leaves the folder"),
        ("name,label\na.png,x\n", "needs a column 'file'.*it has name, label"),
        ("file\na.png\n", "at least one more"),
        ("file;label\na.png;x\n", "it has file;label"),
        ("file,split\na.png,x\n", "none of them named 'split'"),
        ("", "labels.csv"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, table, message):
    """The error names the file, what is wrong, and what is wanted."""
    folder = own(tmp_path / "own", table)
    (tmp_path / "outside").mkdir()
    (folder / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(ValueError, match=message) as caught:
        sources.read_labels(folder)
    assert "labels.csv" in str(caught.value)


def own_many(tmp_path, n=200):
    names = [f"{i:03d}.png" for i in range(n)]
    rows = "".join(f"{name},{i % 3}\n" for i, name in enumerate(names))
    return own(tmp_path / "own", "file,label\n" + rows, names)


def test_missing_and_broken_own_images_are_skipped_and_listed(tmp_path):
    folder = own_many(tmp_path)
    (folder / "007.png").unlink()
    (folder / "100.png").write_bytes(b"no image")
    with pytest.warns(
        UserWarning, match="folder: 2 of 200 images cannot be used: 007.png, 100.png"
    ):
        found = read_own(folder)
    assert found.skipped == ("007.png", "100.png")
    assert len(found.images) == len(found.table) == 198
    label = found.table.set_index("file")["label"]
    assert label["008.png"] == "2" and label["199.png"] == "1"


def test_an_own_image_that_is_refused_has_its_reason(tmp_path):
    """In the warning and in the list; the others are read."""
    folder = own_many(tmp_path)
    (folder / "007.png").write_bytes(stored(DEEP["a share"]))
    entry = "007.png (32-bit pixels other than 0 to 255: save it with 8 or 16 bits)"
    with pytest.warns(UserWarning, match=re.escape(f"1 of 200 images cannot be used: {entry}")):
        found = read_own(folder)
    assert found.skipped == (entry,)
    assert len(found.images) == len(found.table) == 199


def test_too_many_missing_own_images_are_an_error(tmp_path):
    folder = own_many(tmp_path)
    for i in range(3):
        (folder / f"{i:03d}.png").unlink()
    message = "folder: 3 of 200 images cannot be used.*More than 1%.*BMP, GIF, .*TIFF or WEBP$"
    with pytest.raises(ValueError, match=message):
        read_own(folder)


# Caching -----------------------------------------------------------------------------------------


@pytest.fixture
def counting(monkeypatch):
    """Count how often each reader runs."""
    calls = Counter()

    def counted(name, read):
        def wrapper(*args):
            calls[name] += 1
            return read(*args)

        return wrapper

    for name, source in list(SOURCES.items()):
        own_source = dataclasses.replace(source, read=counted(name, source.read))
        monkeypatch.setitem(SOURCES, name, own_source)
    return calls


def same(one, two):
    np.testing.assert_array_equal(one.images, two.images)
    pd.testing.assert_frame_equal(one.table, two.table)
    assert (one.skipped, one.fingerprint) == (two.skipped, two.fingerprint)


def test_what_was_read_is_not_read_again(tmp_path, counting):
    """The second load takes all from the store, also the names that no image uses."""
    write(tmp_path / "UTKFace", {"30_0_3_2017.jpg": picture((1, 1, 1))})
    store = Store(tmp_path / "store")
    first, second = (sources.load("utkface", 16, tmp_path, store) for _ in range(2))
    assert counting["utkface"] == 1
    same(first, second)
    assert tuple(second.table["race"].cat.categories) == RACES
    assert list(second.table["age5"].cat.categories) == list(AGES)
    sources.load("utkface", 20, tmp_path, store)
    assert counting["utkface"] == 2


def later(path, content):
    """Write ``content`` with a time that differs from the one before."""
    before = path.stat().st_mtime_ns if path.exists() else time.time_ns()
    path.write_bytes(content)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_changed_faces_are_read_again(tmp_path, counting):
    """A changed image of the same length, a new one, one less; not a second look at the same."""
    folder, store = tmp_path / "UTKFace", Store(tmp_path / "store")
    members = faces(5)
    name = min(members)
    write(folder, members | {name: picture((0, 0, 0), kind="BMP")})
    first = sources.load("utkface", 16, tmp_path, store)
    later(folder / name, picture((255, 255, 255), kind="BMP"))
    changed = sources.load("utkface", 16, tmp_path, store)
    assert counting["utkface"] == 2 and changed.images[0].min() == 255
    assert changed.fingerprint != first.fingerprint
    write(folder, {"30_0_3_2018.jpg": picture((1, 1, 1))})
    assert len(sources.load("utkface", 16, tmp_path, store).images) == 6
    (folder / name).unlink()
    assert len(sources.load("utkface", 16, tmp_path, store).images) == 5
    sources.load("utkface", 16, tmp_path, store)
    assert counting["utkface"] == 4


def test_a_changed_archive_is_read_again(tmp_path, counting):
    path, store = tmp_path / "UTKFace.tar.gz", Store(tmp_path / "store")
    for n in (5, 6):
        archive(path, under("UTKFace", faces(n)))
        assert len(sources.load("utkface", 16, tmp_path, store).images) == n
    assert counting["utkface"] == 2


def test_changed_own_images_are_read_again(tmp_path, counting):
    """Not only a changed table: an image that was missing and is there now counts, too."""
    folder, store = own_many(tmp_path), Store(tmp_path / "store")
    (folder / "007.png").unlink()
    with pytest.warns(UserWarning, match="1 of 200"):
        sources.load("folder", 16, folder, store)
    later(folder / "007.png", picture((3, 3, 3), kind="PNG"))
    found = sources.load("folder", 16, folder, store)
    assert (counting["folder"], len(found.images)) == (2, 200)
    later(folder / "008.png", picture((255, 255, 255), kind="PNG"))
    assert sources.load("folder", 16, folder, store).images[8].min() > 250


def test_a_changed_table_is_read_again(tmp_path, counting):
    folder, store = own_many(tmp_path), Store(tmp_path / "store")
    sources.load("folder", 16, folder, store)
    text = (folder / "labels.csv").read_text().replace("000.png,0", "000.png,2")
    later(folder / "labels.csv", text.encode())
    assert sources.load("folder", 16, folder, store).table["label"][0] == "2"


def test_images_moved_to_another_class_are_read_again(tmp_path, counting):
    """Where the folder names the class, a file's place counts and not only its name."""
    write(tmp_path, {name: image for name, image in objects().items() if "/deer/" not in name})
    store = Store(tmp_path / "store")
    first = sources.load("cifar10", 32, tmp_path, store)
    assert Counter(first.table["object"])["deer"] == 0
    for part in ("train", "test"):
        (tmp_path / "CIFAR-10-images" / part / "cat").rename(
            tmp_path / "CIFAR-10-images" / part / "deer"
        )
    second = sources.load("cifar10", 32, tmp_path, store)
    assert Counter(second.table["object"])["deer"] == 4


# Digits, and where data are looked for -----------------------------------------------------------


def test_digits_are_embedded_and_always_the_same(tmp_path):
    """1,797 images of one channel, with the labels of scikit-learn."""
    from sklearn.datasets import load_digits

    one, two = (sources.load("digits", 16, None, Store(tmp_path / s)) for s in "ab")
    same(one, two)
    assert one.images.shape == (1797, 1, 16, 16) and one.images.dtype == np.uint8
    assert one.images.min() == 0 and one.images.max() > 240
    original = load_digits()
    np.testing.assert_array_equal(one.table["digit"].astype(int), original.target)
    np.testing.assert_array_equal(one.table["half"].cat.codes, original.target >= 5)
    assert SOURCES["digits"].expected == len(one.images)
    coarse = one.images[:, 0].reshape(-1, 8, 2, 8, 2).mean((2, 4)) / 255 * 16
    assert np.corrcoef(coarse.ravel(), original.images.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("name", ["utkface", "cifar10", "svhn", "folder"])
def test_missing_data_say_what_is_missing_and_how_to_get_it(tmp_path, name):
    """With a data folder the error names it, without one it says how to give one."""
    source = SOURCES[name]
    for folder, where in ((None, "RELUFAIR_DATA"), (tmp_path, str(tmp_path))):
        with pytest.raises(FileNotFoundError) as caught:
            sources.load(name, 32, folder, Store(tmp_path / "store"))
        text = str(caught.value)
        assert f"dataset={name!r}" in text and where in text and source.how in text
        assert all(file in text for group in source.files for file in group)


def test_the_data_folder(tmp_path, monkeypatch):
    """As given, else from the environment, else none; a wrong one is refused."""
    assert sources.data_folder() is None
    monkeypatch.setenv("RELUFAIR_DATA", str(tmp_path))
    assert sources.data_folder() == tmp_path
    (tmp_path / "other").mkdir()
    assert sources.data_folder(tmp_path / "other") == tmp_path / "other"
    with pytest.raises(FileNotFoundError, match="data='/no/such/place': no such folder"):
        sources.data_folder("/no/such/place")


# Real data ---------------------------------------------------------------------------------------


def real(name):
    """The real data set, or a skip that says why."""
    folder = os.environ.get("RELUFAIR_DATA")
    if not folder:
        pytest.skip("RELUFAIR_DATA names no folder with real data")
    if not SOURCES[name].found(Path(folder)):
        pytest.skip(f"{name} is not in the data folder")
    return Path(folder)


def test_real_faces(tmp_path):
    """The counts of the data set as distributed, which are the paper's percentages."""
    folder = real("utkface")
    store = Store(tmp_path / "store")
    start = time.process_time()
    with pytest.warns(UserWarning, match="3 of 23707"):
        found = sources.load("utkface", 32, folder, store)
    assert time.process_time() - start < 60
    assert len(found.images) == SOURCES["utkface"].expected == 23_704
    assert {name.split(".")[0] for name in found.skipped} == {
        "61_1_20170109150557335",
        "61_1_20170109142408075",
        "39_1_20170116174525125",
    }
    races = found.table["race"].value_counts(sort=False)
    assert list(races) == [10_078, 4_525, 3_434, 3_975, 1_692]
    ages = found.table["age5"].value_counts(sort=False)
    assert list(ages) == [1_123, 2_289, 820, 17_514, 1_958]
    share = found.table["age"].value_counts(sort=False, normalize=True) * 100
    assert list(share.round(2)) == [10.14, 3.63, 77.56, 8.67]
    assert found.table["age"].isna().sum() == 1_123
    start = time.process_time()
    again = sources.load("utkface", 32, folder, store)
    assert time.process_time() - start < 2
    same(again, found)


def test_real_cifar10(tmp_path):
    """5,000 and 1,000 images a class; under the protocol 90 % and 10 % of them for training."""
    folder = real("cifar10")
    store = Store(tmp_path / "store")
    start = time.process_time()
    found = sources.load("cifar10", 32, folder, store)
    assert time.process_time() - start < 60
    counts = Counter(zip(found.table["split"], found.table["object"], strict=True))
    assert counts == {(p, o): n for p, n in (("train", 5000), ("test", 1000)) for o in OBJECTS}
    splits = data.load(data.Choice("cifar10"), 0, folder, store)
    assert list(splits.train.sizes().values()) == [4050] * 5 + [450] * 5
    assert list(splits.validation.sizes().values()) == [500] * 10
    assert list(splits.test.sizes().values()) == [1000] * 10
