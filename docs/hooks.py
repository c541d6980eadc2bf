"""What the site generator is told: pages from the repository's root, links between them, parts of other files.

In docs/*.md links are those of the repository, so that they work there too. A line

    <!-- include bench/results/study/study.md#Training schemes -->

is replaced by that section of that file, without its heading; where there is no such file yet, by a line that says so.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
INCLUDE = re.compile(r"^<!-- include (\S+?)(?:#(.*?))? -->$", re.MULTILINE)
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the root, and the plots of the benchmarks."""
    from mkdocs.structure.files import File  # not in the environment of the tests, which look into this module too

    for source, page in PAGES.items():
        if (ROOT / source).exists():
            files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for plot in sorted((ROOT / "bench" / "results").glob("*.png")):
        files.append(File.generated(config, plot.relative_to(ROOT).as_posix(), abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Includes, then links."""
    if page.file.src_uri in ("index.md", "benchmarks.md"):  # alone in their sections
        page.meta["hide"] = ["navigation"]
    return with_links_moved(INCLUDE.sub(lambda match: included(*match.groups(default="")), markdown), page.file.src_uri)


def with_links_moved(markdown: str, uri: str) -> str:
    """uri: of the page in the site. A page from the root has links from there, others from where they lie in docs/.
    What is in the repository and not in the site, sources for example, is named without a link.
    """
    at_root = uri in PAGES.values()
    folder = ROOT if at_root else (ROOT / "docs" / uri).parent

    def moved(match: re.Match[str]) -> str:
        text, target, anchor = match.groups(default="")
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = Path(os.path.normpath(folder / target))
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else target
        in_site = name in PAGES or (name.startswith("docs/") and path.is_file()) or path.suffix == ".png"
        if path.exists() and not in_site:
            return text[1:-1]
        to = PAGES.get(name) or name.removeprefix("docs/")
        return f"{text}({posixpath.relpath(to, posixpath.dirname(uri) or '.')}{anchor})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)


def included(path: str, heading: str) -> str:
    """The file's section of that heading ("": all of it), or that it is not there."""
    file = ROOT / path
    if not file.exists():
        return f"*Not measured yet: `{path}` is not there.*"
    if not heading:
        return file.read_text()
    section = re.search(
        rf"^(#+) {re.escape(heading)}$\n(.*?)(?=^#{{1,2}} |\Z)", file.read_text(), re.MULTILINE | re.DOTALL
    )
    return section[2].strip() if section else f"*Not measured yet: `{path}` has no “{heading}”.*"
