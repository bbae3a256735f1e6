"""Pages of published results: a cell whose results are not there says so, and so do those that need it.

Without this, one missing row would end the whole page. Errors of any other kind still do.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, NoReturn

from relufair.store import NotPublished

if TYPE_CHECKING:
    from nbformat import NotebookNode

HIDDEN = "remove-cell"
GOES_ON = "raises-exception"


class Missing:
    """Stands for what a cell could not compute: to use it is an error that says what is missing."""

    def __init__(self, error: NotPublished):
        self._error = error

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise self._error

    __getattr__ = __getitem__ = __call__ = __iter__ = __len__ = __bool__ = _refuse
    __str__ = __format__ = __lt__ = __gt__ = __le__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _refuse


def assigned(source: str) -> set[str]:
    """The names that the statements of a cell assign.

    >>> sorted(assigned("a, b = f(); c = d = a.x = 1"))
    ['a', 'b', 'c', 'd']
    """
    names = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name))
    return {node.id for node in names if isinstance(node.ctx, ast.Store)}


def announce_missing() -> None:
    """In the running notebook, show :class:`relufair.store.NotPublished` in place of a cell's output.

    What has been shown before is only referred to. The names that the cell would have assigned become
    :class:`Missing`, and not what an earlier cell has left in them.
    """
    import matplotlib.pyplot as plt
    from IPython import get_ipython
    from IPython.display import Markdown, display

    before: set[str] = set()

    def show(shell: Any, _: type, error: NotPublished, *__: Any, **___: Any) -> None:
        kind, key, how = error.args
        how, _, command = how.partition(": ")
        shown = f"{how}:\n\n```bash\n{command}\n```" if command else how
        plt.close("all")  # or the next cell would show what this one has begun
        text = f"{kind}: {key}. {shown}"
        display(
            Markdown(f"**Not published yet**{', as above.' if text in before else f': {text}'}")
        )
        before.add(text)
        shell.user_ns |= dict.fromkeys(assigned(shell.user_ns["In"][-1]), Missing(error))

    get_ipython().set_custom_exc((NotPublished,), show)


def prepare(notebook: NotebookNode) -> NotebookNode:
    """Let the notebook announce what is missing, and go on with the next cell; changed in place."""
    from nbformat.v4 import new_code_cell

    for cell in notebook.cells:
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), GOES_ON]
    call = "from relufair import pages\n\npages.announce_missing()"
    notebook.cells.insert(0, new_code_cell(call, metadata={"tags": [HIDDEN]}))
    return notebook


def restore(notebook: NotebookNode) -> NotebookNode:
    """Take back what :func:`prepare` has added to the executed notebook."""
    notebook.cells = [c for c in notebook.cells if HIDDEN not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        cell.metadata["tags"] = [tag for tag in cell.metadata["tags"] if tag != GOES_ON]
    return notebook
