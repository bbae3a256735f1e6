"""Look at the built book: are the pages and figures there, and can they be read offline?

Usage: ``python .ci/check_book.py [html folder]``. Prints the faults; exits with 1 if there are any.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).resolve().parent.parent
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
LOADED_RELATIONS = {"stylesheet", "preload", "modulepreload", "icon"}
RAW_TABLE = re.compile(r"<p>\|[^<]*\|")  # a table in Markdown that was taken for text
EXTERNAL_CSS = re.compile(r"""(?:@import\s+|url\()\s*["']?((?:https?:)?//[^"')\s;]+)""")


class Page(HTMLParser):
    """Collects what a page loads, its figures (path, alt text) and its error outputs."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.loads, self.figures, self.errors = path, [], [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        """Note one element."""
        attributes = dict(attrs)
        address = attributes.get(LOADED.get(tag, ""))
        relations = set((attributes.get("rel") or "").split())
        if address and (tag != "link" or relations & LOADED_RELATIONS):
            self.loads.append(address)
        if tag == "img" and "_images/" in (address or ""):
            self.figures.append((address, attributes.get("alt") or ""))
        self.errors += {"output", "traceback"} <= set((attributes.get("class") or "").split())


def pages_of(toc: dict) -> list[str]:
    """The pages of a table of contents, in order."""
    below = [toc.get(key, []) for key in ("parts", "chapters", "sections")]
    own = [toc[key] for key in ("root", "file") if key in toc]
    return own + [page for entries in below for entry in entries for page in pages_of(entry)]


def faults_of(page: Page) -> list[str]:
    """What is wrong with one page, in words."""
    faults = [f"shows {page.errors} error output(s)"] if page.errors else []
    for address in page.loads:
        parts = urlsplit(address)
        if parts.netloc:
            faults.append(f"loads {address}, so it cannot be read offline")
        elif parts.path and not (page.path.parent / unquote(parts.path)).exists():
            faults.append(f"loads {parts.path}, which is not there")
    for address, alt in page.figures:
        if not alt.strip() or Path(address).name in alt:  # Sphinx puts the path where none is given
            faults.append(f"has a figure without alt text: {address}")
    text = page.path.read_text(encoding="utf-8")
    if RAW_TABLE.search(text):
        faults.append("shows a table as text")
    return faults + [f"names {found} in a style" for found in EXTERNAL_CSS.findall(text)]


def check(html: Path, toc: dict) -> list[str]:
    """All faults of the book built in ``html``, each with the page that has it."""
    faults = []
    for name in pages_of(toc):
        path = html / f"{name}.html"
        if not path.is_file():
            faults.append(f"{name}: the page is not there")
            continue
        page = Page(path)
        faults += [f"{name}: {fault}" for fault in faults_of(page)]
        if name.startswith("notebooks/") and not page.figures:
            faults.append(f"{name}: has no figure")
    for sheet in sorted(html.glob("_static/**/*.css")):
        found = EXTERNAL_CSS.findall(sheet.read_text(encoding="utf-8"))
        faults += [f"{sheet.relative_to(html)}: needs {address}" for address in found]
    return faults


def main() -> int:
    """Check the folder given, or ``_build/html``."""
    html = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_build" / "html"
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    faults = check(html, toc)
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(pages_of(toc))} pages checked, {len(faults)} fault(s).")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
