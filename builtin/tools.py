"""The four tools of the built-in agent: search_docs, calculate, current_time and wait.

Each returns a small JSON object. A tool that cannot do what is asked raises ToolException, and its
sentence becomes an error ToolMessage. No argument of a tool is evaluated as code or used as a path.
"""

import ast
import asyncio
import functools
import math
import operator
import re
import sqlite3
import unicodedata
import zoneinfo
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

from langchain_core.tools import BaseTool, ToolException, tool
from langgraph.prebuilt import ToolRuntime

MAX_WAIT_S = 60  # half of the default RUN_TIMEOUT_S
MAX_HITS = 3  # further hits are seldom about the question
MAX_TERMS = 16  # a pasted page must not become a query of 5,000 words
MAX_PASSAGE_CHARS = 600  # a paragraph or two
MAX_BLOCK_CHARS = 1500  # a file tree or a short program, which is quoted whole or not at all
MAX_EXPRESSION_CHARS = 200  # bounds the nesting of an expression too
MAX_RESULT = 10**300  # below the limit of a double, so that no browser reads Infinity

# Ideographs, kana and their marks: Japanese has no spaces between words.
CJK = r"\u3005\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f"
JAPANESE = re.compile(f"[{CJK}]")


def make_tools(docs: Path) -> list[BaseTool]:
    """Return the four tools; ``docs`` is a directory or one file, read at the first search."""
    index = functools.cache(lambda: build_index(docs))
    lock = asyncio.Lock()  # all searches share one SQLite connection

    @tool
    async def search_docs(query: str) -> dict[str, Any]:
        """Search the documents of this project; use the words that the documents would use."""
        async with lock:
            hits = await asyncio.to_thread(lambda: find_passages(index(), query))
        return {"query": query, "hits": hits}

    @tool
    async def calculate(expression: str) -> dict[str, Any]:
        """Calculate an arithmetic expression, such as 12 * (3 + 4) or sqrt(2) ** 3."""
        return {"expression": expression, "result": evaluate(expression)}

    @tool
    async def current_time(timezone: str) -> dict[str, str]:
        """Return the time in an IANA time zone or a large city, such as Asia/Tokyo, Paris, UTC."""
        name, zone = await asyncio.to_thread(find_zone, timezone)
        now = datetime.now(zone).replace(microsecond=0)
        return {"timezone": name, "time": now.isoformat(), "weekday": f"{now:%A}"}

    @tool
    async def wait(seconds: float, runtime: ToolRuntime[Any, Any]) -> dict[str, float]:
        """Wait for 0 to 60 seconds and report progress every second."""
        if not 0 <= seconds <= MAX_WAIT_S:  # NaN is refused here as well
            raise ToolException(f"I can wait 0 to {MAX_WAIT_S} seconds.")
        loop = asyncio.get_running_loop()
        start = loop.time()
        for second in [*range(1, math.ceil(seconds)), seconds]:
            await asyncio.sleep(start + second - loop.time())
            runtime.emit_output_delta(f"{second:g} / {seconds:g} s")
        return {"waited_s": seconds}

    tools: list[BaseTool] = [search_docs, calculate, current_time, wait]
    for each in tools:
        each.handle_tool_error = True  # the text of a ToolException becomes an error ToolMessage
        # Pydantic's own text quotes its internals and a web address.
        each.handle_validation_error = "The arguments do not fit the tool's parameters."
    return tools


# Searching. The index holds passages: each block of a Markdown section, and each row of a table.

# A code fence ends with the marks that began it, a paragraph before a blank line or another block.
BLOCK = re.compile(
    r"""(?mx)
    (?P<fence> ^[ ]*(?P<marks>`{3,}|~{3,}) (?s:.*?) (?: ^[ ]*(?P=marks).*$ | \Z )        ) \n*
  | (?P<heading> ^\#{1,6}[ ].*$                                                          ) \n*
  | (?P<text> ^.*\S.*$ (?: \n(?![ ]*(?:[-*+]|\d+\.|\#{1,6})[ ]|[ ]*(?:```|~~~)).*\S.*$ )*) \n*
    """
)
TABLE = re.compile(r"\|.*\n\|[-:| ]+\n")
PICTURE_OR_HTML = ("![", "[![", "<")
# A long text is cut after the last sentence that fits, else after the last word. Inline code counts
# as one character, so it is never cut.
CHARS = rf"(?>`[^`]{{0,200}}`|.){{1,{MAX_PASSAGE_CHARS}}}"
PIECE = re.compile(rf"(?s){CHARS}(?:(?<=[.!?])(?=\s)|(?<=。)|\Z)|{CHARS}(?=\s)|{CHARS}")
SETTING = re.compile(r"`([A-Z][A-Z0-9_]+)`")
BOLD_ITEM = re.compile(r"[-*+] \*\*(.+?)\*\*")


def build_index(root: Path) -> sqlite3.Connection:
    """Return a full-text table of the passages in the Markdown and text files of ``root``."""
    db = sqlite3.connect(":memory:", check_same_thread=False)
    db.execute(
        "CREATE VIRTUAL TABLE passages USING fts5(title, text, source UNINDEXED,"
        " heading UNINDEXED, passage UNINDEXED, tokenize='porter unicode61')"
    )
    for path in [root] if root.is_file() else sorted(root.rglob("*")):
        source = path.name if path == root else path.relative_to(root).as_posix()
        hidden = re.search(r"(?:^|/)(?:\.|node_modules/)", source)
        if hidden or path.suffix.lower() not in (".md", ".markdown", ".txt"):
            continue
        with suppress(OSError):  # a directory, or a file without read permission
            text = re.sub(r"[\x00-\x08\x0b-\x1f]", " ", path.read_text("utf-8-sig", "replace"))
            for heading, blocks in split_sections(text, path.stem):
                for title, block, passage in split_passages(heading, blocks):
                    row = (spaced(title), spaced(block), source, heading, passage)
                    db.execute("INSERT INTO passages VALUES (?, ?, ?, ?, ?)", row)
    return db


def split_sections(text: str, heading: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each heading of a Markdown text with its blocks; a table gives its head and its rows.

    ``heading`` is for the blocks before the first heading. Pictures, HTML and code that is too long
    to quote are empty blocks.
    """
    blocks: list[str] = []
    for match in BLOCK.finditer(text):
        block = match[0]
        if match["heading"]:
            yield heading, blocks
            heading, blocks = match["heading"].strip("# "), []
        elif block.startswith(PICTURE_OR_HTML):
            blocks.append("")
        elif table := TABLE.match(block):
            blocks += [table[0], *re.findall(r".+\n*", block[table.end() :])]
        elif match["fence"]:
            blocks.append(block if len(block) <= MAX_BLOCK_CHARS else "")
        else:
            blocks += PIECE.findall(block) if len(block) > MAX_PASSAGE_CHARS else [block]
    yield heading, blocks


def split_passages(heading: str, blocks: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield title, searched text and quotation of each passage of a section.

    A title is the heading for the first block, the first column's name for the head of a table,
    the settings in its first cell for a row, and the bold words that an item of a list begins with.
    """
    title, head = heading, ""
    for number, block in enumerate(blocks):
        if not block:
            continue
        passage = quotation(blocks, number)
        if TABLE.fullmatch(block):
            head = block
            title += block.split("|")[1]
        elif block.startswith("|"):
            title += " ".join(SETTING.findall(block.split("|")[1]))
            passage = head + block.strip()
        elif item := BOLD_ITEM.match(block):
            title += item[1]
        yield title, block, passage
        title = ""


def quotation(blocks: list[str], start: int) -> str:
    """Return the block at ``start`` and the next ones that fit; … stands for the others."""
    quoted = blocks[start]
    for number in range(start + 1, len(blocks)):
        # A colon or the head of a table announces what follows, so the two stay together.
        announced = quoted.rstrip().endswith((":", "-|", ":|"))
        limit = MAX_BLOCK_CHARS if announced else MAX_PASSAGE_CHARS
        if not blocks[number] or len(quoted + blocks[number]) > limit:
            return f"{quoted.strip()}\n\n…"
        quoted += blocks[number]
    return quoted.strip()


# Words with one meaning; commas separate the groups. A Japanese word stands for its inflections.
GROUPS = """
port ポート, setting configuration environment 設定, test pytest テスト, run 実行, work 仕組み,
start install launch 起動 インストール, stop cancel abort 止め 停止 中止, log ログ, event イベント,
timeout time-out タイムアウト, resume reconnect last-event-id 再開 再接続 途中, proxy プロキシ,
heartbeat ハートビート, error failure エラー, model llm モデル, graph グラフ, agent エージェント,
docker container コンテナ, deploy デプロイ, replica 複数, licence license ライセンス, server サーバ,
fast speed performance measured 速 性能, database データベース, wire protocol frame フレーム,
file ファイル, code コード, docs documents 文書, thread conversation 会話, max maximum limit 上限,
javascript react frontend browser ブラウザ, token password authenticate authentication 認証
"""
SYNONYMS = {word: group for group in map(str.split, GROUPS.split(",")) for word in group}
SYNONYMS["run"] = SYNONYMS["start"]  # for "How do I run it?"
# These words say that something is asked, not what is asked for. Those that have synonyms too, such
# as run and setting, are searched for if there is nothing else.
ASKING = """
a about after all also an and any are as at be by can change connect could did do does explain find
for from get give happen has have how i in is it its know like make many me mean my need of on or
our own please run see send set setting several should show some tell than that the them there this
to up use using want was we what when where which who why will with work would you your
必要 場合 検索 方法 種類 自分 説明 一覧
"""
STOP_WORDS = frozenset(ASKING.split())
# Katakana, kanji or other letters. Hiragana are left out: Japanese writes its grammar in them.
WORD = re.compile(
    rf"[\u30a1-\u30fa\u30fc-\u30ff]{{2,}}|[\u3005\u3400-\u9fff]{{2,}}|[^\W{CJK}]{{2,}}(?:-[a-z]+)*"
)
WEIGHTS = (("title", 4), ("text", 1))  # a word in a title counts as much as four in the text


def find_passages(db: sqlite3.Connection, query: str) -> list[dict[str, str]]:
    """Return at most MAX_HITS objects of source, heading and passage, best first.

    Each term that a passage has adds its rarity to the score, times the weight of the column. A
    passage is a hit if it scores half of what all terms are worth, and half of the best score.
    SQLite's own rank decides between equal scores.
    """
    [(count,)] = db.execute("SELECT count(*) FROM passages")
    scores: defaultdict[int, float] = defaultdict(float)
    ranks: defaultdict[int, float] = defaultdict(float)
    worth = 0.0
    for term in search_terms(query):
        weights: defaultdict[int, int] = defaultdict(int)
        for column, weight in WEIGHTS:
            matching = "SELECT rowid, rank FROM passages WHERE passages MATCH ?"
            for row, rank in db.execute(matching, (f"{column}: ({term})",)):
                weights[row] += weight
                ranks[row] += rank
        rarity = math.log(1 + count / max(1, len(weights)))
        worth += rarity
        for row, weight in weights.items():
            scores[row] += weight * rarity
    least = max([worth, *scores.values()]) / 2
    hits: dict[tuple[str, str], dict[str, str]] = {}
    for row in sorted(scores, key=lambda row: (-scores[row], ranks[row])):
        if scores[row] < least or len(hits) == MAX_HITS:
            break
        columns = "SELECT source, heading, passage FROM passages WHERE rowid = ?"
        [(source, heading, passage)] = db.execute(columns, (row,))
        hit = {"source": source, "heading": heading, "passage": passage}
        hits.setdefault((source, heading), hit)
    return list(hits.values())


def search_terms(query: str) -> list[str]:
    """Return an FTS5 expression for each word of ``query`` that says what is asked for.

    Words of the same meaning are joined by OR. All are quoted, so none is read as syntax.
    """
    text = unicodedata.normalize("NFKC", query).lower()
    for word, group in SYNONYMS.items():
        if not word.isascii():
            text = text.replace(word, f" {group[0]} ")
    words = WORD.findall(text)
    if not words:  # perhaps a word in hiragana, with a particle after it
        words = [run.rstrip("はがをのとも") for run in re.findall("[ぁ-ゖ]{3,}", text)]
    telling = [word for word in words if not STOP_WORDS & {word, word.removesuffix("s")}]
    terms = []
    for word in telling or [word for word in words if synonyms(word)]:
        # A run of kanji may be several words, so it is found by its pairs.
        parts = synonyms(word) or re.findall("(?=([\u3400-\u9fff]{2}))", word) or [word]
        terms.append(" OR ".join(f'"{spaced(part)}"' for part in parts))
    return list(dict.fromkeys(terms))[:MAX_TERMS]


def synonyms(word: str) -> list[str]:
    """Return the words of the same meaning, the word itself included; empty if there are none."""
    return SYNONYMS.get(word) or SYNONYMS.get(word.removesuffix("s")) or []


def spaced(text: str) -> str:
    """Return ``text`` with spaces around each CJK character, so that FTS5 takes it for a word."""
    return JAPANESE.sub(r" \g<0> ", text)


# Calculating.

BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
# Checked before parsing, because the parser knows far more and warns of oddities such as `1or 2`.
ARITHMETIC = re.compile(r"(?:[\d.+\-*/%() ]|(?<=\d)e(?=[+\-]?\d)|sqrt(?=\())+", re.ASCII)
SYMBOLS = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-", "∗": "*", "⋅": "*", "^": "**"})
NO_ARITHMETIC = "I can read only numbers, + - * / // % **, parentheses and sqrt(…)."
NO_RESULT: dict[type[Exception], str] = {
    ZeroDivisionError: "Division by zero has no result.",
    OverflowError: "A number in it has more than 300 digits.",
    ValueError: "The result is not a real number.",
}


def evaluate(expression: str) -> int | float:
    """Return the value of an arithmetic expression, never by ``eval``; fractions to 15 digits."""
    text = normalised(expression).strip().lower()
    if len(text) > MAX_EXPRESSION_CHARS:
        raise ToolException(f"The expression is longer than {MAX_EXPRESSION_CHARS} characters.")
    try:
        if not ARITHMETIC.fullmatch(text):
            raise SyntaxError
        value = node_value(ast.parse(text, mode="eval").body)
    except (ArithmeticError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ToolException(NO_RESULT.get(type(error), NO_ARITHMETIC)) from None
    if isinstance(value, float):
        value = float(f"{value:.15g}")
        return int(value) if value.is_integer() and abs(value) < 1e15 else value
    return value


def node_value(node: ast.expr) -> int | float:
    """Return the value of a parsed expression; any other syntax raises SyntaxError."""
    match node:
        case ast.Constant(value=(int() | float()) as value):
            result = value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            result = -node_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            result = node_value(operand)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = node_value(left), node_value(right)
            # A power of more than 1000 bits is never begun.
            if isinstance(op, ast.Pow) and abs(a) > 1 and b * math.log2(abs(a)) > 1000:
                raise OverflowError
            result = BINARY[type(op)](a, b)
        case ast.Call(func=ast.Name(id="sqrt"), args=[argument]):
            result = math.sqrt(node_value(argument))  # ValueError for a negative number
        case _:
            raise SyntaxError
    if isinstance(result, complex):  # (-8) ** 0.5
        raise ValueError
    if not abs(result) < MAX_RESULT:  # infinity and NaN are refused here as well
        raise OverflowError
    return result


def normalised(text: str) -> str:
    """Return ``text`` in NFKC, with the operators that Python has, and 1,000 as 1000."""
    text = unicodedata.normalize("NFKC", text).translate(SYMBOLS)
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)


# Telling the time.

# Names that the database of time zones lacks. A zone's first name is used in Japanese answers.
PLACES = {
    "Asia/Tokyo": "東京 日本 大阪 京都 japan osaka kyoto",
    "Asia/Seoul": "ソウル 韓国 korea",
    "Asia/Shanghai": "上海 北京 中国 china beijing",
    "Asia/Singapore": "シンガポール",
    "Asia/Kolkata": "インド india",
    "Europe/Paris": "パリ フランス france",
    "Europe/Berlin": "ベルリン ドイツ germany",
    "Europe/London": "ロンドン イギリス england uk",
    "America/New_York": "ニューヨーク nyc",
    "America/Los_Angeles": "ロサンゼルス california",
    "Pacific/Honolulu": "ハワイ hawaii",
    "Australia/Sydney": "シドニー",
}


def find_zone(name: str) -> tuple[str, tzinfo]:
    """Return the full name and the zone of an IANA name or of a city; no path is made of it.

    UTC works without a database of time zones, which Windows and slim containers may lack.
    """
    wanted = " ".join(unicodedata.normalize("NFKC", name).replace("_", " ").lower().split())
    if wanted in ("utc", "gmt", "協定世界時"):
        return "UTC", UTC
    zone = zone_names().get(wanted)
    if zone is None:
        raise ToolException(
            "I know no time zone of that name; try an IANA name such as Asia/Tokyo."
        )
    return zone, zoneinfo.ZoneInfo(zone)


@functools.cache
def zone_names() -> dict[str, str]:
    """Return the zones by name, by city and by PLACES, in lower case; reading them takes 30 ms."""
    known = sorted(zoneinfo.available_timezones())
    cities = {zone.rsplit("/", 1)[-1]: zone for zone in known}
    places = {name: zone for zone in PLACES if zone in known for name in PLACES[zone].split()}
    names = cities | {zone: zone for zone in known} | places
    return {name.replace("_", " ").lower(): zone for name, zone in names.items()}
