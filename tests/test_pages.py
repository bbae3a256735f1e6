"""What a page says where a result is not published."""

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from relufair import pages
from relufair.store import NotPublished

CELLS = """
from relufair.store import NotPublished
===
table = "an old one"
===
raise_it = True
if raise_it:
    raise NotPublished("predictions", "abc", "To compute it: relufair run")
table = 1
===
table["group"]
===
print("goes on")
"""


def execute(tmp_path, source=CELLS):
    cells = [new_code_cell(text.strip()) for text in source.split("===")]
    prepared = pages.prepare(new_notebook(cells=cells))
    path = tmp_path / "page.ipynb"
    papermill.execute_notebook(
        prepared, str(path), kernel_name="python3", progress_bar=False, log_output=False
    )
    return pages.restore(nbformat.read(path, 4))


@pytest.mark.filterwarnings("ignore")
def test_a_missing_result_is_said_where_it_is_needed(tmp_path):
    """In its own cell and where its names are used, which are not the old ones; then it goes on."""
    page = execute(tmp_path)
    shown = [cell.outputs for cell in page.cells if cell.cell_type == "code"]
    assert len(shown) == 5 and not shown[0] and not shown[1]
    (first,), (second,) = shown[2:4]
    assert first["data"]["text/markdown"] == (
        "**Not published yet**: predictions: abc. To compute it:\n\n```bash\nrelufair run\n```"
    )
    assert second["data"]["text/markdown"] == "**Not published yet**, as above."
    assert shown[4][0]["text"] == "goes on\n"
    assert not any({pages.GOES_ON, pages.HIDDEN} & set(c.metadata["tags"]) for c in page.cells)


@pytest.mark.filterwarnings("ignore")
def test_another_error_is_an_error(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="ZeroDivisionError"):
        execute(tmp_path, "1 / 0\n===\n2")


USES = [
    bool, len, list, str, "{:.1f}".format, lambda m: m.x, lambda m: m["x"], lambda m: m(1),
    lambda m: [*m], lambda m: m < 1, lambda m: 1 - m, lambda m: m / 2,
]  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_nothing_can_be_done_with_what_is_missing(use):
    with pytest.raises(NotPublished):
        use(pages.Missing(NotPublished("predictions", "abc")))


HALF_DRAWN = """
import matplotlib.pyplot as plt
from relufair.store import NotPublished
===
plt.subplots()
raise NotPublished("predictions", "abc", "To compute it: relufair run")
===
plt.plot([1, 2])
plt.show()
"""


@pytest.mark.filterwarnings("ignore")
def test_what_a_cell_had_begun_to_draw_is_not_shown(tmp_path):
    """Neither there nor by the next cell."""
    *_, begun, last = execute(tmp_path, HALF_DRAWN).cells
    assert [list(output["data"]) for output in begun.outputs] == [["text/markdown", "text/plain"]]
    assert ["image/png" in output["data"] for output in last.outputs] == [True]
