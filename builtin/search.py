"""Searching documents: the passages of Markdown and text files that answer a question.

Documents and questions are compared by their words, in English or Japanese. Japanese words for
what this project is about are read as English ones, since its documents are in English.
"""

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_HITS = 3
MAX_PASSAGE_CHARS = 700  # some paragraphs
MAX_WHOLE_CHARS = 1500  # a longer program or table is left out, since neither is cut
TITLE_WEIGHT = 2
NEARLY = 0.8  # of the best score: a passage that is worth less is left out

# Words of one meaning are read as the first word of their group. Commas separate the groups.
GROUPS = """
port ポート, setting configuration 設定, test pytest テスト, run 実行, log ログ, event イベント,
file ファイル, start install launch 起動 インストール, stop cancel abort quit 止め 停止 中止,
timeout タイムアウト, error failure エラー, heartbeat ハートビート, graph グラフ, model llm claude
gemini モデル, agent エージェント, resume reconnect disconnect connection dropped continue wifi 再開
再接続 切断 途中, proxy nginx caddy balancer プロキシ, container docker deploy コンテナ デプロイ,
image pdf upload 画像, server replica copies サーバ 複数, measurement fast speed performance 速
性能, byte big large size, example 例, tool ツール, database データベース, licence license free
commercially ライセンス 無料, code コード, request api リクエスト, document docs documentation 文書,
thread conversation history 会話 履歴, keep kept store save 保存, delete forget 削除, token password
login authentication 認証, key キー, page browser ページ
"""
# These words say that something is asked, not what is asked for.
QUESTION_WORDS = """
a about all already an and another answer any app are as at be behind can change could did do does
explain find for from get give happen has have how i if in instead into is it its know like list
make many me mean middle my need of on one or our own please see set setting should show some
something still tell than that the there this three through to two use using version want was we
what when where which who why will with work would you your 方法 必要 場合 種類 自分 説明 一覧 追加
"""
# Hiragana are left out: Japanese writes its grammar in them. A run of kanji may be several words,
# so it is compared by its pairs.
WORD = re.compile(r"[ァ-ー]{2,}|(?=([々㐀-鿿]{2}))|[^\W_\u3005-\u9fff]+")


def stem(word: str) -> str:
    return re.sub(r"(?<=\w\w\w)(?:ing|ed|est|e|s)+$", "", word)


MEANING = {
    stem(word): stem(group.split()[0]) for group in GROUPS.split(",") for word in group.split()
}
ASKING = frozenset(map(stem, QUESTION_WORDS.split()))


def words_of(text: str) -> frozenset[str]:
    """Return the stems of the words that say what a text is about; of all words if none does."""
    text = unicodedata.normalize("NFKC", text).lower()
    for word, meaning in MEANING.items():
        if not word.isascii():
            text = text.replace(word, f" {meaning} ")
    stems = [stem(match[0] or match[1]) for match in WORD.finditer(text)]
    words = frozenset(MEANING.get(each, each) for each in stems)
    return words - ASKING or words


@dataclass(frozen=True)
class Passage:
    """What a search quotes, with its words and those of its title."""

    source: str
    heading: str
    text: str
    words: frozenset[str]
    title: frozenset[str]


def search(passages: list[Passage], question: str) -> list[Passage]:
    """Return at most MAX_HITS passages, best first.

    A word counts by its rarity. In a title it counts once more, by its share of the title.
    """
    asked = words_of(question)
    having = {word: sum(word in each.words for each in passages) for word in asked}

    def worth(words: frozenset[str]) -> float:
        return sum(math.log(1 + len(passages) / having[word]) for word in words & asked)

    def score(passage: Passage) -> float:
        share = worth(passage.title) / max(1, len(passage.title))
        return worth(passage.words) + TITLE_WEIGHT * share

    ranked = sorted(passages, key=score, reverse=True)[:MAX_HITS]
    return [each for each in ranked if score(each) > NEARLY * score(ranked[0])]


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
# A long text is cut after a hundred words, or as many Japanese letters. Inline code counts as one
# letter, so it is never cut.
PIECE = re.compile(r"(?:(?:(?:`[^`]{0,200}`|[^\s\u3000-\u9fff]){1,60}|\S)\s*){1,100}")


def read_passages(root: Path) -> list[Passage]:
    """Return the passages of a file, or of the Markdown and text files below a folder."""
    passages: list[Passage] = []
    for path in [root] if root.is_file() else sorted(root.rglob("*")):
        source = path.name if path == root else path.relative_to(root).as_posix()
        hidden = re.search(r"(?:^|/)(?:\.|node_modules/)", source)
        if path.is_file() and path.suffix.lower() in (".md", ".markdown", ".txt") and not hidden:
            text = re.sub(r"[\x00-\x08\x0b-\x1f]", " ", path.read_text("utf-8-sig", "replace"))
            for heading, title, quoted in quotations(text, path.stem):
                words = words_of(title) | words_of(quoted)
                if quoted:
                    passages.append(Passage(source, heading, quoted, words, words_of(title)))
    return passages


def quotations(text: str, heading: str) -> Iterator[tuple[str, str, str]]:
    """Yield each passage of a Markdown text as its heading, its title and its text.

    A passage is as many blocks of a section as fit; its title is the heading. The rows of a table
    are passages, too, each under the table's head; their title is the first cell. ``heading`` is
    for what comes before the first heading.
    """
    passage = ""
    for match in BLOCK.finditer(text):
        block = match[0]
        if match["heading"]:
            yield heading, heading, passage.strip()
            heading, passage = block.strip("# \n"), ""
            continue
        if table := TABLE.match(block):
            for row in re.findall(r"(?m)^\|.+", block[table.end() :]):
                yield heading, row.split("|")[1], table[0] + row
        whole = table or match["fence"]
        if whole and len(block) > MAX_WHOLE_CHARS or block.startswith(PICTURE_OR_HTML):
            continue
        for piece in [block] if whole else PIECE.findall(block):
            # A colon announces the next block, so the two stay together.
            if len(passage + piece) > MAX_PASSAGE_CHARS and not passage.rstrip().endswith(":"):
                yield heading, heading, passage.strip()
                passage = ""
            passage += piece
    yield heading, heading, passage.strip()
