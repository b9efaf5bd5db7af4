"""What the files beside the code say of it."""

from __future__ import annotations

import re

from app import VERSION
from tests.conftest import ROOT


def test_the_newest_version_of_the_changelog_is_the_servers() -> None:
    versions = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == VERSION


def test_every_link_of_the_readme_into_the_repository_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
