"""Every page is followed, block by block, by a reader who has done the tutorial."""

from __future__ import annotations

import pytest

from tests.docs.readers_folder import TUTORIAL, follow_after_tutorial, shared_folder
from tests.docs.unrun import followed, followed_pages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_the_tutorial_can_be_followed(tmp_path_factory: pytest.TempPathFactory) -> None:
    follow_after_tutorial((), shared_folder(tmp_path_factory))


@pytest.mark.parametrize("page", [page for page in followed_pages() if page != TUTORIAL])
def test_a_page_can_be_followed(page: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    follow_after_tutorial(followed(page), shared_folder(tmp_path_factory))
