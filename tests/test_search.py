"""Claims about the search: which passage of a document answers a question, and what is quoted."""

import re
from pathlib import Path

import pytest

from builtin.search import MAX_PASSAGE_CHARS, Passage, read_passages, search

ROOT = Path(__file__).resolve().parent.parent
README = """# Harbour

A server that streams an agent's answer.

![A picture of the harbour](harbour.png)

## Quick start

```sh
# a comment, no heading
python app.py
```

## Settings

Each setting is an environment variable.

| variable | default | meaning |
|---|---|---|
| `PORT` | 8000 | the port to listen on |
| `HEARTBEAT_S` | 15 | seconds of silence before a heartbeat |

## Deploying

Publish the port only to the proxy. The proxy needs one line:

```nginx
proxy_buffering off;
```

Heartbeats keep a proxy from closing the stream.

- **Caddy** flushes each event by itself.
- **Traefik** does so, too, without `compress`.

## Cursor

A heartbeat moves no cursor. A cursor is an event id.
"""
GUIDE = (
    "# 手引き\n\n## 再接続\n\nSSEの接続が切れたら、送ります。\n\n## 果物\n\nりんごを食べます。\n"
)


def table(text: str) -> list[list[str]]:
    """Return the cells of ``a → b | c → d``."""
    return [
        cell.strip().split(" → ") for line in text.strip().split("\n") for cell in line.split("|")
    ]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(README, "utf-8")
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "ja.txt").write_text(GUIDE, "utf-8")
    (tmp_path / "latin1.md").write_bytes(b"# Caf\xe9\n\nEspresso caf\xe9\x00\x02.\n")
    (tmp_path / "folder.md").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.md").write_text("# Secret\n\nharpsichord\n", "utf-8")
    return tmp_path


def find(docs: Path, query: str) -> list[Passage]:
    return search(read_passages(docs), query)


def first_quotation(folder: Path, text: str, query: str) -> str:
    """Return what a search quotes first from a file with this text."""
    (folder / "one.md").write_text(text, "utf-8")
    return find(folder / "one.md", query)[0].text


# Finding.

QUESTIONS = """
How do I change the port? → Settings | settings → Settings | HEARTBEAT_S の既定値は? → Settings
deploy nginx → Deploying | espresso → Caf\ufffd | Traefik の設定方法を教えて → Deploying
再接続 → 再接続 | 接続が切れたら? → 再接続 | SSE → 再接続
"port → Settings | port OR → Settings | port* → Settings | NEAR(port → Settings
a:port → Settings | -port → Settings | port'; DROP → Settings | ポートは? → Settings
"""


@pytest.mark.parametrize(("query", "heading"), table(QUESTIONS))
def test_a_question_finds_its_section(docs: Path, query: str, heading: str) -> None:
    assert find(docs, query)[0].heading == heading


@pytest.mark.parametrize(
    "query",
    ["", "?", "harpsichord", "zebra", "は", "\ud800", "___", "world cup of football"],
)
def test_what_is_not_there_gives_no_hits(docs: Path, query: str) -> None:
    assert find(docs, query) == []
    assert find(docs / "none", query) == []


def test_a_row_of_a_table_is_quoted_under_the_tables_head(docs: Path) -> None:
    rows = (
        "| variable | default | meaning |\n|---|---|---|\n| `PORT` | 8000 | the port to listen on |"
    )
    hit = find(docs, "How do I change the port?")[0]
    assert (hit.source, hit.heading, hit.text) == ("README.md", "Settings", rows)


def test_odd_tables_are_read(tmp_path: Path) -> None:
    text = "| a |\n|---|\n\n| b |\n|---|\n| needle\nend of the table\n|\n"
    assert first_quotation(tmp_path, text, "needle") == "| b |\n|---|\n| needle"


def test_the_name_of_a_section_finds_its_beginning(docs: Path) -> None:
    passage = find(docs, "settings")[0].text
    assert passage.startswith("Each setting is an environment variable.\n\n| variable |")
    assert passage.endswith("before a heartbeat |")


def test_the_blocks_of_a_section_are_quoted_together(docs: Path) -> None:
    passage = find(docs, "Traefik")[0].text
    assert passage.startswith("Publish the port only to the proxy.")
    assert passage.endswith("\n- **Traefik** does so, too, without `compress`.")


def test_a_comment_in_a_fence_is_no_heading(docs: Path) -> None:
    hit = find(docs, "comment")[0]
    assert hit.heading == "Quick start"
    assert hit.text == "```sh\n# a comment, no heading\npython app.py\n```"


def test_a_picture_is_not_quoted(docs: Path) -> None:
    assert find(docs, "picture") == []


def test_an_unclosed_fence_ends_with_the_file(tmp_path: Path) -> None:
    assert first_quotation(tmp_path, "# A\n```\n# needle\n", "needle") == "```\n# needle"


def test_a_program_that_does_not_fit_is_quoted_by_itself(tmp_path: Path) -> None:
    fence = "```\n" + "line\n" * 200 + "```"
    text = f"# A\n\nneedle\n\n{fence}\n\nMore.\n"
    assert first_quotation(tmp_path, text, "needle") == "needle"
    assert first_quotation(tmp_path, text, "line") == fence


def test_a_very_long_program_or_table_is_left_out(tmp_path: Path) -> None:
    for text in ("```\n" + "line\n" * 400 + "```", "| a |\n|---|\n" + "| row |\n" * 400):
        assert first_quotation(tmp_path, f"# A\n\nneedle\n\n{text}\n\nMore.\n", "needle") == (
            "needle\n\nMore."
        )
    assert find(tmp_path, "line") == []
    assert find(tmp_path, "row")[0].text == "| a |\n|---|\n| row |"


def test_a_sentence_that_ends_with_a_colon_keeps_its_command(tmp_path: Path) -> None:
    fence = "```\n" + "line\n" * 200 + "```"
    text = f"# A\n\nneedle:\n\n{fence}\n\nMore.\n"
    assert first_quotation(tmp_path, text, "needle") == f"needle:\n\n{fence}"


def test_a_long_text_is_cut_between_words(tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text("# A\n\n" + "word " * 500, "utf-8")
    passages = read_passages(tmp_path)
    assert len(passages) > 1
    for passage in passages:
        assert set(passage.text.split()) == {"word"}
        assert len(passage.text) <= MAX_PASSAGE_CHARS


def test_a_long_text_is_quoted_where_its_match_is(tmp_path: Path) -> None:
    filler = "It has some words, and then it ends. " * 99
    passage = first_quotation(tmp_path, f"# A\n\n{filler}A needle. {filler}", "needle")
    assert "A needle." in passage


def test_a_long_text_is_not_cut_in_inline_code(tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text("# A\n\n" + "word `a. b. c. d` " * 500, "utf-8")
    passages = read_passages(tmp_path)
    assert len(passages) > 1
    assert [passage.text.count("`") % 2 for passage in passages] == [0] * len(passages)


def test_a_text_without_any_border_is_still_quoted(tmp_path: Path) -> None:
    quoted = first_quotation(tmp_path, "# A\n\n" + "無" * 100_000, "無無")
    assert 600 <= len(quoted) <= MAX_PASSAGE_CHARS


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name
)
def test_no_quotation_from_this_project_cuts_a_word_or_code(path: Path) -> None:
    text = path.read_text("utf-8")
    passages = read_passages(path)
    assert len(passages) > 3
    for passage in passages:
        quoted = passage.text
        assert len(re.findall("(?m)^ *```", quoted)) % 2 == 0, quoted
        assert re.sub("(?s)```.*?```", "", quoted).count("`") % 2 == 0, quoted
        # The head of a table need not stand right before the row that is quoted.
        body = quoted.split("\n", 2)[-1] if quoted.startswith("|") else quoted
        begin = text.index(body)
        assert text[begin - 1].isspace(), quoted
        assert text[begin + len(body)].isspace(), quoted
