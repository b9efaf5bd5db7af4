"""What the files beside the code say of it."""

from __future__ import annotations

import re

import yaml

from app import VERSION, Settings
from events import StreamEvent
from tests.conftest import ROOT


def test_the_newest_version_of_the_changelog_is_the_servers() -> None:
    versions = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == VERSION


def test_every_link_of_the_readme_into_the_repository_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_names_every_setting_event_and_refusal() -> None:
    readme = (ROOT / "README.md").read_text()
    code = (ROOT / "app.py").read_text()
    refusals = re.findall(r'\(\s*\d{3}, "([a-z_]+)"|\d{3}: \("([a-z_]+)"', code)
    heading, *events = re.findall(r"^ +(\w+)  +\w", StreamEvent.__doc__ or "", re.MULTILINE)
    assert heading == "type"
    settings = [name.upper() for name in Settings.__dataclass_fields__]
    codes = [first or second for first, second in refusals]
    assert len(codes) > 15
    assert len(events) > 8
    assert [name for name in settings + events + codes if f"`{name}`" not in readme] == []


def test_the_composition_sets_what_there_is_to_set() -> None:
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    names = {name.lower() for name in services["agent"]["environment"]}
    assert names <= Settings.__dataclass_fields__.keys()
    # What it replaces in the configuration for nginx is there, once.
    replaced = services["nginx"]["command"][2].split("/")[1]
    assert (ROOT / "deploy/nginx.conf").read_text().count(f"server {replaced} ") == 1
    (volume,) = services["nginx"]["volumes"]
    assert (ROOT / "deploy" / volume.split(":")[0]).is_file()
    (requirements,) = services["agent"]["build"]["args"].values()
    assert (ROOT / requirements).is_file()
