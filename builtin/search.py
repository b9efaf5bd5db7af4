"""Searching documents: the passages of Markdown and text files that answer a question.

Documents and questions are compared by their words, in English or Japanese. Japanese words for
what this project is about are read as English ones, since its documents are in English.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

MAX_HITS = 3  # further hits are seldom about the question
MAX_PASSAGE_CHARS = 600  # a paragraph or two
MAX_BLOCK_CHARS = 1500  # a file tree or a short program, which is quoted whole or not at all
TITLE_WEIGHT = 2
PARAGRAPH = 45  # different words
NEARLY = 0.8  # of the best score: a passage that is worth less is left out

# Words of one meaning are read as the first word of their group. Commas separate the groups.
GROUPS = """
port ポート, setting configuration environment 設定, test pytest テスト, run 実行, log ログ, start
install launch 起動 インストール, stop cancel abort quit 止め 停止 中止, event イベント, timeout
time-out タイムアウト, error failure エラー, heartbeat ハートビート, graph グラフ, resume reconnect
disconnect last-event-id connection dropped continue wifi tab 再開 再接続 途中, proxy nginx caddy
balancer プロキシ, model llm claude gemini anthropic モデル, agent エージェント, container docker
deploy コンテナ デプロイ, file ファイル, image upload pdf 画像, server replica copies サーバ 複数,
measurement measured fast speed performance 速 性能, example 例, tool ツール, database
データベース, code コード, approval 承認, licence license free commercially ライセンス 無料 商用,
request api リクエスト, document docs documentation reference 文書, thread conversation history
会話 履歴, keep kept store save saved 保存, delete forget 削除, token password login 認証, page
javascript browser ページ ブラウザ
"""
# These words say that something is asked, not what is asked for.
QUESTION_WORDS = """
a about all already an and another answer any anything app are as at be behind can change close
company connect could did do does explain find for from get give happen has have how i if in
instead into is it its know like make many me mean middle my need of on one or our own please see
set setting should show some something still tell than that the them there this three through to
two up use using version want was we what when where which who why will with work would you your
方法 必要 場合 検索 種類 自分 説明 一覧 追加
"""
# Hiragana are left out: Japanese writes its grammar in them. A run of kanji may be several words,
# so it is compared by its pairs.
JAPANESE = re.compile(r"[ァ-ー]{2,}|(?=([々㐀-鿿]{2}))")
OTHER = re.compile(r"[^\W\u3005-\u9fff]+(?:-[^\W\u3005-\u9fff]+)*")


def stem(word: str) -> str:
    return re.sub(r"(?<=\w\w\w)(?:ing|ed|est|e|s)+$", "", word)


MEANING = {
    stem(word): stem(group.split()[0]) for group in GROUPS.split(",") for word in group.split()
}
ASKING = frozenset(map(stem, QUESTION_WORDS.split()))


def words_of(text: str) -> frozenset[str]:
    """Return the stems of the words of a text; MAX_RUNS gives its parts, too."""
    text = unicodedata.normalize("NFKC", text).lower()
    for word, meaning in MEANING.items():
        if not word.isascii():
            text = text.replace(word, f" {meaning} ")
    words = {match[0] or match[1] for match in JAPANESE.finditer(text)}
    for word in OTHER.findall(text):
        words |= {word, *re.split("[_-]", word)}
    return frozenset(MEANING.get(stem(word), stem(word)) for word in words - {""})


@dataclass(frozen=True)
class Passage:
    """What a search quotes, with its words and those of its title."""

    source: str
    heading: str
    text: str
    words: frozenset[str]
    title: frozenset[str]


def search(passages: list[Passage], question: str) -> list[Passage]:
    """Return at most MAX_HITS passages of different sections, best first.

    A word counts by its rarity, and little if no passage has it. In a title it counts once more, by
    the share of the title that the question names. The sum counts by the share of the question that
    the passage has, and less in a long passage, which has many words by chance.
    """
    words = words_of(question)
    # A question of these words alone, such as "How does it work?", can still name a title.
    asked = words - ASKING or words.intersection(chain(*(each.title for each in passages)))
    having = {word: sum(word in each.words for each in passages) for word in asked}
    rarity = {word: math.log(1 + len(passages) / n) if n else 1 for word, n in having.items()}

    def worth(words: Iterable[str]) -> float:
        return sum(rarity[word] for word in words)

    def score(passage: Passage) -> float:
        found, named = asked & passage.words, asked & passage.title
        if worth(found) <= worth(asked) / 3:
            return 0
        share = len(named) / max(1, len(passage.title - (ASKING - asked)))
        length = max(PARAGRAPH, len(passage.words))
        return (
            (worth(found) + TITLE_WEIGHT * share * worth(named)) * worth(found) / math.sqrt(length)
        )

    scored = sorted(((score(each), each) for each in passages), key=lambda pair: -pair[0])
    hits: dict[tuple[str, str], Passage] = {}
    for value, passage in scored:
        if value > scored[0][0] * NEARLY:
            hits.setdefault((passage.source, passage.heading), passage)
    return list(hits.values())[:MAX_HITS]


# A code fence ends with the marks that began it, a paragraph before a blank line or another block.
BLOCK = re.compile(
    r"""(?mx)
    (?P<fence> ^[ ]*(?P<marks>`{3,}|~{3,}) (?s:.*?) (?: ^[ ]*(?P=marks).*$ | \Z ) ) \n*
  | (?P<heading> ^\#{1,6}[ ].*$                                                   ) \n*
  | (?P<text> ^.*\S.*$ (?: \n(?![ ]*(?:[-*+][ ]|\#{1,6}[ ]|```|~~~)).*\S.*$ )*    ) \n*
    """
)
TABLE = re.compile(r"\|.*\n\|[-:| ]+\n")
PICTURE_OR_HTML = ("![", "[![", "<")
# A long text is cut after a hundred words. Inline code counts as one letter, so it is never cut.
PIECE = re.compile(r"(?:(?:`[^`]{0,200}`|\S){1,60}\s*){1,100}")


def read_passages(root: Path) -> list[Passage]:
    """Return the passages of a file, or of the Markdown and text files below a folder."""
    passages: list[Passage] = []
    for path in [root] if root.is_file() else sorted(root.rglob("*")):
        source = path.name if path == root else path.relative_to(root).as_posix()
        hidden = re.search(r"(?:^|/)(?:\.|node_modules/)", source)
        if path.is_file() and path.suffix.lower() in (".md", ".markdown", ".txt") and not hidden:
            text = re.sub(r"[\x00-\x08\x0b-\x1f]", " ", path.read_text("utf-8-sig", "replace"))
            for heading, blocks in sections(text, path.stem):
                passages += passages_of(source, heading, blocks)
    return passages


def sections(text: str, heading: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each heading of a Markdown text with its blocks; a table gives its head and its rows.

    ``heading`` is for the blocks before the first heading. A colon announces the next block, so the
    two are one.
    """
    blocks: list[str] = []
    for match in BLOCK.finditer(text):
        block = match[0]
        if match["heading"]:
            yield heading, blocks
            heading, blocks = block.strip("# \n"), []
        elif table := TABLE.match(block):
            blocks += [table[0], *re.findall(r".+\n*", block[table.end() :])]
        elif block.startswith(PICTURE_OR_HTML):
            continue
        elif match["text"] or len(block) <= MAX_BLOCK_CHARS:
            first, *rest = PIECE.findall(block) if match["text"] else [block]
            if blocks and blocks[-1].rstrip().endswith(":"):
                first = blocks.pop() + first
            blocks += [first, *rest]
    yield heading, blocks


def passages_of(source: str, heading: str, blocks: list[str]) -> Iterator[Passage]:
    """Yield a passage for each block of a section.

    Its title is the heading, whose words the first block has, too; the title of a table's row is
    its first cell.
    """
    head = ""
    for number, block in enumerate(blocks):
        title, text = heading, quotation(blocks[number:])
        words = words_of(block if number else f"{heading}\n{block}")
        if TABLE.fullmatch(block):
            head = block
        elif block.startswith("|"):
            title, text, words = block.split("|")[1], head + block.strip(), words_of(block)
        yield Passage(source, heading, text, words, words_of(title))


def quotation(blocks: list[str]) -> str:
    """Return the first block and the next ones that fit; … stands for the others."""
    quoted = blocks[0]
    for block in blocks[1:]:
        if len(quoted + block) > MAX_PASSAGE_CHARS:
            return f"{quoted.strip()}\n\n…"
        quoted += block
    return quoted.strip()
