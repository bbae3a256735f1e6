"""The page "Your own network", followed word for word: its code prints what it shows."""

import contextlib
import io
import re

from test_book import TEXTS, blocks

PAGE = TEXTS["book/own_network.md"]


def test_every_block_prints_what_stands_below_it(tmp_path, monkeypatch):
    """In one session, from top to bottom; blocks without an output print nothing."""
    monkeypatch.chdir(tmp_path)
    session = {"__name__": "page"}
    pairs = re.findall(
        r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", PAGE, re.MULTILINE | re.DOTALL
    )
    assert len(pairs) == len(blocks(PAGE, "python")) == 8
    assert sum(bool(text) for _, text in pairs) == len(blocks(PAGE, "text")) == 7
    for code, text in pairs:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, session)
        assert printed.getvalue() == text
