"""Put MathJax into the book, so that its formulas can be read offline.

The pinned package ``sphinx-mathjax-offline`` ships all of MathJax and, used as an extension, copies
15 MB of it. Two things are enough: ``tex-svg.js``, which draws with paths and needs no font, and
the small files that it loads for less common commands (bold symbols, colours, cancellations).
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

TEX_EXTENSIONS = "input/tex/extensions"


def copy_mathjax(app) -> None:
    """Copy the script to where ``mathjax_path`` in ``_config.yml`` looks for it."""
    if app.builder.format != "html":
        return
    bundle = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
    script = Path(app.outdir, "_static", app.config.mathjax_path)
    script.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(bundle / script.name, script)
    shutil.copytree(bundle / TEX_EXTENSIONS, script.parent / TEX_EXTENSIONS, dirs_exist_ok=True)


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("builder-inited", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
