"""What the files beside the code say about it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from edge.requests import REFUSALS
from edge.settings import VERSION, Settings
from events import StreamEvent
from tests.conftest import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def modules() -> list[Path]:
    """Return the files of the server's own modules and packages."""
    rooms = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    return [*ROOT.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py"))]


def test_the_newest_version_of_the_changelog_is_the_servers() -> None:
    versions = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == VERSION


def test_every_link_of_the_documents_into_the_repository_leads_somewhere() -> None:
    wrong, count = [], 0
    for document in DOCUMENTS:
        links = re.findall(r"\]\(([^)#:]+)[^):]*\)", document.read_text())
        wrong += [(document, link) for link in links if not (document.parent / link).exists()]
        count += len(links)
    assert count > 10
    assert wrong == []


def test_the_documents_name_every_setting_event_and_refusal() -> None:
    documents = "".join(document.read_text() for document in DOCUMENTS)
    heading, *events = re.findall(r"^ +(\w+)  +\w", StreamEvent.__doc__ or "", re.MULTILINE)
    assert heading == "type"
    assert len(events) > 8
    settings = [name.upper() for name in Settings.__dataclass_fields__]
    names = [*settings, *events, *REFUSALS]
    assert [name for name in names if f"`{name}`" not in documents] == []


def test_the_readme_names_every_setting() -> None:
    readme = (ROOT / "README.md").read_text()
    settings = [name.upper() for name in Settings.__dataclass_fields__]
    assert [name for name in settings if f"`{name}`" not in readme] == []


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


def test_the_image_leaves_out_no_module() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    needed = [*modules(), *ROOT.glob("static/**/*"), ROOT / "requirements.txt", ROOT / "README.md"]
    for path in needed:
        # A pattern matches a file, or a folder above it. Source: moby/patternmatcher.
        relative = path.relative_to(ROOT)
        names = [relative, *relative.parents][:-1]
        left_out = [
            pattern
            for pattern in patterns
            if any(re.fullmatch(as_regex(pattern), name.as_posix()) for name in names)
        ]
        assert left_out == [], path
    assert "COPY . .\n" in (ROOT / "Dockerfile").read_text()


def as_regex(pattern: str) -> str:
    """Return a pattern of .dockerignore as a regular expression for a whole path."""
    tokens = re.split(r"(\*\*/|\*|\[.*?\])", pattern)
    known = {"**/": "(.*/)?", "*": "[^/]*"}
    return "".join(
        known.get(each) or (each if each.startswith("[") else re.escape(each)) for each in tokens
    )


def test_a_pattern_of_dockerignore_matches_as_docker_has_it() -> None:
    for pattern, path, matches in (
        (".*", ".git", True),
        (".*", "app.py", False),
        ("**/*.py[cod]", "runs/run.pyc", True),
        ("**/*.py[cod]", "run.py", False),
        ("**/__pycache__", "__pycache__", True),
        ("deploy/*", "deploy/nginx.conf", True),
        ("docs", "docs.py", False),
    ):
        assert bool(re.fullmatch(as_regex(pattern), path)) == matches, (pattern, path)
