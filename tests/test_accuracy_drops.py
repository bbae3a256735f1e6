"""The notebook on accuracy drops, followed cell by cell, on small stand-ins for the large data sets."""

import hashlib

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from scipy.io import savemat
from test_sources import color_of, objects, picture, write

from relufair import plots, report
from relufair.sources import OBJECTS, RACES
from relufair.store import project_root

# One hasty seed of a tiny network, by both methods.
QUICK = {
    "width": 2, "size": 16, "budgets": [0.5], "seeds": [0],
    "training": {
        "teacher_epochs": 2, "masks_lr": 0.05, "threshold": 0.05, "lasso": 0.01, "lasso_growth": 1.5,
        "finetune_epochs": 1, "student_epochs": 1,
    },
}  # fmt: skip


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """Execute the cells of the live run with these parameters; the names that they leave."""
    monkeypatch.setenv("RELUFAIR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RELUFAIR_OUT", str(tmp_path / "out"))
    monkeypatch.setattr(plt, "show", lambda: None)

    def follow(**parameters):
        path = project_root() / "notebooks" / "03_accuracy_drops.ipynb"
        cells = nbformat.read(path, as_version=4).cells
        published = [c.source.startswith("## The same for age") for c in cells].index(True)
        (first, *others) = (c for c in cells[:published] if c.cell_type == "code")
        names = {}
        exec(first.source, names)
        assert set(parameters) | set(QUICK) <= set(names)
        names |= QUICK | parameters
        for cell in others:
            exec(cell.source, names)
        return names

    yield follow
    plt.close("all")


def test_faces_by_gender_compared_by_race_gender_and_age(followed, tmp_path):
    """Of twenty groups two are large enough to be drawn; the others are named, with their sizes."""
    sizes = dict.fromkeys((f"{a}_{g}_{r}" for a in (30, 70) for g in (0, 1) for r in range(5)), 40)
    sizes |= {"30_0_0": 220, "30_1_0": 200}
    faces = {
        f"UTKFace/{name}_{20170101 + i}.jpg.chip.jpg": picture(
            color_of(*map(int, reversed(name.split("_"))))
        )
        for name, n in sizes.items()
        for i in range(n)
    }
    write(tmp_path / "data", faces)
    names = followed(dataset="utkface", target="gender", groups="race,gender,age")

    table = names["table"]
    shown = report.pretty(table).reset_index().set_index("group")
    assert table["group"].nunique() == 20 and table["group"].str.startswith(RACES).all()
    drawn = ["White × male × 18–64", "White × female × 18–64"]
    assert list(plots.styles(table)) == drawn
    for method in ("SNL", "DeepReDuce"):
        own = shown[(shown["method"] == method) & (shown["ReLUs kept"] == "50 %")]
        few = own["accuracy (%)"] == "fewer than 30 images"
        assert list(own.index[~few]) == [*drawn, "all"]
        assert (own["test images"][few] < 30).all() and few.sum() == 18
    small = names["note"].partition("fewer than 30 test images: ")[2]
    assert all(f"{group} (" in small for group in table["group"] if group not in drawn)
    assert not any(f"{group} (" in small for group in drawn)
    assert "utkface, gender by race,gender,age" in names["note"]
    assert (tmp_path / "out" / "criticality.parquet").exists()


def test_objects_by_class(followed, tmp_path):
    """CIFAR-10 as image files: by default its ten classes, five of them kept at a tenth."""
    write(tmp_path / "data", objects(40))
    few = QUICK["training"] | {"search_batch": 16}  # there are two hundred images to train on
    table = followed(dataset="cifar10", groups="label", training=few)["table"]
    whole = table[(table["method"] == "snl") & (table["budget"] == 1)].set_index("group")
    assert list(whole.index) == list(OBJECTS) and set(whole["n"]) == {40}
    assert set(whole["train_n"]) == {32, 4}
    assert len(plots.styles(table)) == len(plots.styles(table, every=True)) == 10


def test_house_numbers(followed, tmp_path, monkeypatch):
    """SVHN from its official files, all images kept; without DeepReDuce there is no criticality."""
    from torchvision.datasets import SVHN

    rng, lists = np.random.default_rng(0), {}
    (tmp_path / "data").mkdir()
    for part in ("train", "test"):
        path = tmp_path / "data" / f"{part}_32x32.mat"
        images = rng.integers(0, 256, (32, 32, 3, 400), dtype=np.uint8)
        savemat(path, {"X": images, "y": np.arange(400)[:, None] % 10 + 1})
        lists[part] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", lists)
    names = followed(dataset="svhn", methods=["snl"])
    whole = names["table"].query("budget == 1")
    assert list(whole["group"]) == [str(digit) for digit in range(10)]
    assert set(whole["n"]) == {40} and set(whole["train_n"]) == {36}
    assert "critical" not in names and not list((tmp_path / "out").glob("criticality*"))
