"""Hooks of MkDocs: links to files outside docs/, and the parts of the reference that are made out of the code.

A page of docs/ links to any file of this repository by its relative path, as code hosts read it; the site gets a page
of each such file. `<!-- made: NAME -->` in a page becomes what `PARTS[NAME]` makes.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import TYPE_CHECKING

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, InclusionLevel

from documentation import commands, formats, reasons, space_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

__all__ = ["PARTS", "on_files", "on_page_markdown"]

PARTS: dict[str, Callable[[], str]] = {
    "commands": commands.verbs,
    "ends of trials": reasons.ends_of_trials,
    "exit codes": reasons.exit_codes,
    "formats": formats.files,
    "hyperparameters": space_keys.hyperparameters,
    "lost attempts": reasons.lost_attempts,
    "sequence parameters": space_keys.sequence_parameters,
    "space file": space_keys.file,
}
# Pages of files outside docs/ lie here in the site.
_ELSEWHERE = "repository"
_PART = re.compile(r"^<!-- made: (.+) -->$", re.MULTILINE)
# Code is left alone; the target of a link or picture is the group.
_LINK = re.compile(r"^(`{3,}).*?^\1|(`+).+?\2|(?<=\]\()(?P<target>[^)\s#]+)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside docs/ that a page links to, and for those that they link to."""
    root = Path(config.docs_dir).parent
    waiting = [(f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    while waiting:
        place, markdown = waiting.pop()
        found = {_path(root, place, link["target"]) for link in _LINK.finditer(markdown)}
        for path in sorted(filter(None, found)):
            address = _address(path)
            if path.startswith("docs/") or address in files.src_uris:
                continue
            content = _page_of(root, path)
            files.append(File.generated(config, address, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
            if path.endswith(".md"):
                waiting.append((path, content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Put the parts in their places, and let links lead to where files lie in the site."""
    address, within = page.file.src_uri, f"{_ELSEWHERE}/"
    place = address.removeprefix(within) if address.startswith(within) else f"docs/{address}"
    if address.startswith("reference/"):  # who looks for a flag or a field finds it here first
        page.meta["search"] = {"boost": 2}

    def moved(link: re.Match[str]) -> str:
        path = _path(Path(config.docs_dir).parent, place, link["target"])
        return link[0] if path is None else relpath(_address(path), str(PurePosixPath(address).parent))

    return _LINK.sub(moved, _PART.sub(lambda found: _part(found[1], address), markdown))


def _part(name: str, page: str) -> str:
    if name not in PARTS:
        raise PluginError(f"{page}: a part must be one of {', '.join(PARTS)}, got {name!r}")
    return PARTS[name]()


def _path(root: Path, place: str, target: str | None) -> str | None:
    """What a link on the page at `place` leads to, from the root of the repository; None where it is no file of it."""
    if not target or "://" in target or target.startswith(("mailto:", "/")):
        return None
    path = normpath(PurePosixPath(place).parent / target)
    return path if not path.startswith("..") and (root / path).exists() else None


def _address(path: str) -> str:
    """Where a file of the repository lies below the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{_ELSEWHERE}/{path}" if path.endswith(".md") else f"{_ELSEWHERE}/{path}.md"


def _page_of(root: Path, path: str) -> str:
    file, head = root / path, "---\nsearch: {exclude: true}\n---\n\n"
    if path.endswith(".md"):
        return head + file.read_text("utf-8")
    if file.is_dir():
        names = sorted(one.name for one in file.iterdir() if one.name != "__pycache__")
        return f"{head}# {path}/\n\n" + "".join(f"- `{name}`\n" for name in names)
    return f"{head}# {path}\n\n````{file.suffix[1:] or 'text'}\n{file.read_text('utf-8')}````\n"
