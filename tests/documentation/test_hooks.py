"""Pages lead to files outside docs/ as they lie in the repository, and whatever leads nowhere ends a build."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from tests.test_house import REPOSITORY

HEAD = "# A page\n\n"


def built(folder: Path, pages: dict[str, str], nav: list[str] | None = None) -> Path:
    """The site of some pages, built as `make docs` does, without search and Python."""
    for name, text in pages.items():
        page = folder / "docs" / name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(HEAD + text)
    config = load_config(
        str(REPOSITORY / "mkdocs.yml"), strict=True, docs_dir=str(folder / "docs"), site_dir=str(folder / "site"),
        plugins=[], extra_css=[], extra={}, nav=nav or [*pages],
    )  # fmt: skip
    build(config)
    return folder / "site"


def targets(page: Path) -> list[str]:
    """Where the links of the text lead."""
    article = page.read_text().partition("<article")[2].partition("</article>")[0]
    return re.findall(r'<a href="([^"]+)"', article)


def test_files_outside_docs_get_pages(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "LICENSES.md").write_text("# Licenses\n\n[a](more/one.py) [b](docs/within/page.md) [c](more)\n")
    (tmp_path / "more/one.py").write_text("class One: ...\n")
    text = "[a](../LICENSES.md) [b](../more/one.py) `[c](../more)`\n\n```\n[d](../more)\n```\n"
    within = "[e](../../LICENSES.md#licenses) [f](../index.md#a-page) [g](https://example.org/../x) [h](mailto:a@b)\n"
    site = built(tmp_path, {"index.md": text, "within/page.md": within})
    assert targets(site / "index.html") == ["repository/LICENSES.html", "repository/more/one.py.html"]
    assert targets(site / "within/page.html") == [
        *("../repository/LICENSES.html#licenses", "../index.html#a-page", "https://example.org/../x", "mailto:a@b"),
    ]
    assert targets(site / "repository/LICENSES.html") == ["more/one.py.html", "../within/page.html", "more.html"]
    assert '<span class="k">class</span>' in (site / "repository/more/one.py.html").read_text()
    assert "<code>one.py</code>" in (site / "repository/more.html").read_text()


def test_what_leads_nowhere_ends_the_build(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "LICENSES.md").write_text("# Licenses\n")
    links = (
        "[a](nowhere.md) [b](../nowhere.md) [c](#nowhere) [d](../LICENSES.md#nowhere) ![e](nowhere.png) [f](/index.md)"
    )
    with pytest.raises(Abort, match="Aborted with 8 warnings in strict mode"):
        built(tmp_path, {"index.md": f"{links}\n", "forgotten.md": ""}, ["index.md", "gone.md"])
    told = "\n".join(record.message for record in caplog.records if record.levelname == "WARNING")
    for what in ("forgotten.md", "gone.md", "'nowhere.md'", "'../nowhere.md'", "#nowhere", "nowhere.png", "/index.md"):
        assert what in told


def test_a_part_takes_the_place_of_its_mark_and_must_be_known(tmp_path: Path) -> None:
    site = built(tmp_path, {"index.md": "<!-- made: lost attempts -->\n"})
    assert "<td><code>preempted</code></td>" in (site / "index.html").read_text()
    with pytest.raises(Abort, match="Aborted with a BuildError"):
        built(tmp_path, {"index.md": "<!-- made: nothing -->\n"})
