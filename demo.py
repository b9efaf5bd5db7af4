"""The built-in agent's offline half: its four tools and the demo model.

The tools are the same for every model. The demo model needs no key and no network: it reads the
last message by plain rules, calls the bound tools through the graph, and streams what they found.
It understands requests of the kinds below, in English and Japanese; it is no language model.
"""

import ast
import asyncio
import json
import math
import operator
import re
import sqlite3
import threading
import unicodedata
import uuid
import zoneinfo
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any, NamedTuple

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool, ToolException, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.prebuilt import ToolRuntime

MAX_EXPRESSION_CHARS = 200  # bounds the nesting too
MAX_RESULT = 10**300  # below a double's limit, so that a browser does not read Infinity
MAX_WAIT_S = 60
MAX_HITS = 5
MAX_TERMS = 16  # words of a query that are searched for
MAX_PASSAGE_CHARS = 400
MAX_CALLS = 8  # tool calls in one message of the demo model

CJK = r"\u3005\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f"
JAPANESE = re.compile(f"[{CJK}]")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# What a tool refuses to do, in English as the tool says it, and in Japanese for the demo model.
REFUSALS = {
    "syntax": (
        "That is not arithmetic that I can read; I know numbers, + - * / // % **, "
        "parentheses and sqrt(…).",
        "式として読めませんでした。使えるのは数、+ - * / // % **、括弧、sqrt(…) です。",
    ),
    "long": (
        f"The expression is longer than {MAX_EXPRESSION_CHARS} characters.",
        f"式が {MAX_EXPRESSION_CHARS} 文字を超えています。",
    ),
    "large": ("A number in it has more than 300 digits.", "途中か結果の数が 300 桁を超えます。"),
    "zero": ("Division by zero has no result.", "0 で割ることはできません。"),
    "complex": ("The result is not a real number.", "結果が実数になりません。"),
    "zone": (
        "I know no time zone of that name; try an IANA name such as Asia/Tokyo, or a large city.",
        "その名前のタイムゾーンを知りません。Asia/Tokyo のような IANA 名か大きな都市名で"
        "聞いてください。",
    ),
    "tzdata": (
        "This machine has no time zone data, so I can tell only UTC (pip install tzdata helps).",
        "このマシンにはタイムゾーンのデータがないため、UTC だけわかります"
        "(pip install tzdata で入ります)。",
    ),
    "wait": (f"I can wait 0 to {MAX_WAIT_S} seconds.", f"待てるのは 0〜{MAX_WAIT_S} 秒です。"),
}


def refusal(key: str) -> ToolException:
    """Return the exception that a tool raises; its text becomes an error ``ToolMessage``."""
    return ToolException(REFUSALS[key][0])


def make_tools(docs: Path) -> list[BaseTool]:
    """Return the four tools; ``docs`` is a directory or one file, read at the first search."""
    index = DocsIndex(docs)

    @tool
    async def search_docs(query: str) -> dict[str, Any]:
        """Search the documents of this project; use the words that the documents would use."""
        return {"query": query, "hits": await asyncio.to_thread(index.search, query)}

    @tool
    async def calculate(expression: str) -> dict[str, Any]:
        """Calculate an arithmetic expression, such as 12 * (3 + 4) or sqrt(2) ** 3."""
        return {"expression": expression, "result": evaluate(expression)}

    @tool
    async def current_time(timezone: str) -> dict[str, str]:
        """Tell the time in an IANA time zone or a large city, such as Asia/Tokyo, Paris or UTC."""
        name, zone = find_zone(timezone)
        now = datetime.now(zone).replace(microsecond=0)
        return {"timezone": name, "time": now.isoformat(), "weekday": WEEKDAYS[now.weekday()]}

    @tool
    async def wait(seconds: float, runtime: ToolRuntime[Any, Any]) -> dict[str, float]:
        """Wait for 0 to 60 seconds and report progress every second."""
        if not 0 <= seconds <= MAX_WAIT_S:  # refuses NaN too
            raise refusal("wait")
        loop = asyncio.get_running_loop()
        start = loop.time()
        for second in [*range(1, math.ceil(seconds)), seconds]:
            await asyncio.sleep(start + second - loop.time())
            runtime.emit_output_delta(f"{second:g} / {seconds:g} s")
        return {"waited_s": seconds}

    tools: list[BaseTool] = [search_docs, calculate, current_time, wait]
    for each in tools:
        each.handle_tool_error = True
        # Pydantic's own words quote its internals and a web address.
        each.handle_validation_error = "The arguments do not fit the tool's parameters."
    return tools


# Searching.

# highlight() marks matches in the stored text. The separator stands around each CJK character, so
# that unicode61, which does not segment CJK, takes each for a word; it is taken out again.
OPEN, CLOSE, SEPARATOR = "\x02", "\x03", "\u2063"
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
HEADING = re.compile(r" {0,3}#{1,6}(?=[ \t]|$)")
STOP_WORDS_TEXT = """
a about all also am an and any are as at be been by can could did do does doing find for from get
give go had has have hello hey hi how i if in into is it its just know let like many may me more
much my need no not of on one or our out please search see shall should show so some tell than
that the their them then there these they thing this those to too up us want was we well were what
when where which who why will with would you your s t re ll ve d m
"""
STOP_WORDS = frozenset(STOP_WORDS_TEXT.split())
# Polite and interrogative phrases; particles and endings are shorter, and dropped by length.
JAPANESE_STOP = re.compile(
    "教えて|下さい|ください|について|に関して|に関する|とは|です|ます|でしょう|ですか|ますか|どうやって|"
    "どうすれば|どうしたら|どのように|どこ|どんな|どれ|どう|なぜ|いつ|なに|何|方法|必要|検索して|調べて|探して|"
    "説明して|知りたい|したい|できる|できます|場合|ときは|いくつ|ありますか|ある|あり|する|して|した|され|いる|"
    "これ|それ|この|その|ため|こと|もの|ください|[いきしちにみりえけせてね]方"
)
# Runs of one script; Japanese has no spaces, but mostly changes script where a word begins.
SCRIPT = re.compile(
    rf"(?P<kana>[\u30a1-\u30fa\u30fc-\u30ff]+)|(?P<kanji>[\u3005\u3400-\u9fff\uf900-\ufaff]+)|"
    rf"(?P<hiragana>[\u3040-\u309f]+)|(?P<word>[^\W{CJK}]+)"
)
# So that a question in Japanese finds an English document, and the other way round.
TRANSLATIONS = {
    "設定": "settings", "環境": "environment", "変数": "variable", "使": "use", "起動": "start",
    "実行": "run", "停止": "stop", "中断": "interrupt", "再開": "resume", "接続": "connection",
    "切断": "disconnect", "再接": "reconnect", "認証": "token", "会話": "thread", "履歴": "history",
    "試験": "test", "検索": "search", "計算": "calculate", "時刻": "time", "速度": "speed",
    "配備": "deploy", "鍵": "key", "制限": "limit", "文書": "docs", "導入": "install",
    "デプロイ": "deploy", "コンテナ": "container", "サーバー": "server", "サーバ": "server",
    "モデル": "model", "ツール": "tool", "エージェント": "agent", "イベント": "event",
    "ハートビート": "heartbeat", "タイムアウト": "timeout", "ライセンス": "licence",
    "キャンセル": "cancel", "インストール": "install", "テスト": "test", "ポート": "port",
    "ブラウザ": "browser", "プロキシ": "proxy", "トークン": "token", "エラー": "error",
    "ストリーム": "stream", "ドキュメント": "docs", "スレッド": "thread", "キー": "key",
    "license": "licence", "licence": "license",
}  # fmt: skip


def search_terms(query: str) -> list[str]:
    """Return one FTS5 expression for each word of ``query`` that can tell sections apart.

    Each is quoted, so no syntax of FTS5 gets through. A longer run of kanji becomes pairs.
    """
    text = unicodedata.normalize("NFKC", query).lower()
    terms: dict[str, None] = {}
    for match in SCRIPT.finditer(JAPANESE_STOP.sub(" ", text)):
        if len(terms) >= MAX_TERMS:
            break
        run = match[0].strip("_")
        kind = match.lastgroup
        least = {"kanji": 1, "hiragana": 3}.get(str(kind), 2)
        if len(run) < least or run in STOP_WORDS:
            continue
        pairs = [run[i : i + 2] for i in range(len(run) - 1)] if kind == "kanji" else []
        for word in pairs or [run]:
            translation = TRANSLATIONS.get(word) or BACK.get(word.rstrip("s"), "")
            both = [spaced(each) for each in (word, translation) if each]
            terms["(" + " OR ".join(f'"{each}"' for each in both) + ")"] = None
    return list(terms)


BACK = {english.rstrip("s"): japanese for japanese, english in reversed(TRANSLATIONS.items())}


def spaced(text: str) -> str:
    """Return ``text`` with separators around each CJK character."""
    return re.sub(f"[{CJK}]", rf"{SEPARATOR}\g<0>{SEPARATOR}", text)


class DocsIndex:
    """The sections of Markdown and text files, found by their words; built at the first search.

    It does not notice files that change afterwards. Only ``#`` headings begin a section.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # each search runs in a thread
        self._db: sqlite3.Connection | None = None

    def search(self, query: str) -> list[dict[str, str]]:
        """Return at most MAX_HITS objects of source, heading and passage, best first."""
        terms = search_terms(query)
        if not terms:
            return []
        with self._lock:
            if self._db is None:
                self._db = self._build()
            matched: Counter[int] = Counter()
            for term in terms:
                rows = self._db.execute("SELECT rowid FROM docs WHERE docs MATCH ?", (term,))
                matched.update(rowid for (rowid,) in rows)
            # A heading's word counts as much as four of the body's.
            found = self._db.execute(
                "SELECT rowid, source, heading, highlight(docs, 2, ?, ?) FROM docs "
                "WHERE docs MATCH ? ORDER BY bm25(docs, 0, 4, 1) LIMIT 40",
                (OPEN, CLOSE, " OR ".join(terms)),
            ).fetchall()
        # One common word of a long question is no answer.
        found = [row for row in found if matched[row[0]] * 3 >= len(terms)]
        # Translated words find less surely: what is in the query's own script comes first.
        japanese = bool(JAPANESE.search(query))
        found.sort(key=lambda row: bool(JAPANESE.search(row[3])) != japanese)
        return [
            {"source": source, "heading": plain(heading), "passage": best_passage(body)}
            for _, source, heading, body in found[:MAX_HITS]
        ]

    def _build(self) -> sqlite3.Connection:
        db = sqlite3.connect(":memory:", check_same_thread=False)
        db.execute(
            "CREATE VIRTUAL TABLE docs USING fts5(source UNINDEXED, heading, body, "
            "tokenize='porter unicode61')"
        )
        root = self._path
        paths = [root] if root.is_file() else sorted(root.rglob("*"))
        for path in paths:
            name = path.name if path == root else path.relative_to(root).as_posix()
            hidden = any(part.startswith(".") or part == "node_modules" for part in name.split("/"))
            if hidden or path.suffix.lower() not in (".md", ".markdown", ".txt"):
                continue
            try:
                text = path.read_text("utf-8-sig", errors="replace")
            except OSError:
                continue
            text = re.sub(r"[\x00-\x08\x0b-\x1f\u2063]", " ", text)
            db.executemany(
                "INSERT INTO docs VALUES (?, ?, ?)",
                [(name, spaced(head), spaced(body)) for head, body in sections(text, path.stem)],
            )
        return db


def sections(text: str, title: str) -> Iterator[tuple[str, str]]:
    """Yield heading and body of each section that has a body; ``title`` heads what is before."""
    found: list[tuple[str, list[str]]] = [(title, [])]
    fence = ""
    for line in text.split("\n"):
        if HEADING.match(line) and not fence:
            found.append((line.strip().strip("#").strip(), []))
        else:
            found[-1][1].append(line)
            fence = fence_after(line, fence)
    for heading, body in found:
        if "".join(body).strip():
            yield heading, "\n".join(body).strip("\n")


def fence_after(line: str, fence: str) -> str:
    """Return the code fence that is open after ``line``, where ``fence`` was open before it."""
    match = FENCE.match(line)
    if not match:
        return fence
    if not fence:
        return match[1]
    return "" if match[1].startswith(fence) and line.strip() == match[1] else fence


def plain(marked: str) -> str:
    """Return the text as it stood in the file."""
    return re.sub(f"[{OPEN}{CLOSE}{SEPARATOR}]", "", marked)


def best_passage(marked: str) -> str:
    """Return the paragraph, table or code with most matches, and what follows it if it fits."""
    blocks: list[list[str]] = [[]]
    fence = ""
    for line in marked.split("\n"):
        fence = fence_after(line, fence)
        if line.strip() or fence:
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    blocks = [block for block in blocks if block]
    best = max(range(len(blocks)), key=lambda i: matches("\n".join(blocks[i])))
    passage = ""
    for block in blocks[best:]:
        room = MAX_PASSAGE_CHARS - len(passage)
        if passage and room < MAX_PASSAGE_CHARS // 3:
            break
        passage += "\n\n" * bool(passage) + shortened(block, room)
    return passage


def matches(marked: str) -> int:
    """Count the different words that are marked."""
    return len(set(re.findall(f"{OPEN}([^{CLOSE}]*)", marked.lower())))


def shortened(lines: list[str], room: int) -> str:
    """Return a block within about ``room`` characters: the frame of code and tables, and of the
    rest the lines that match best, in their order; of a table only the rows that match."""
    table = lines[0].lstrip().startswith("|")
    frame = {0, 1} if table else {0, len(lines) - 1} if FENCE.match(lines[0]) else set()
    inner = [i for i in range(len(lines)) if i not in frame]
    if table and any(OPEN in lines[i] for i in inner):
        inner = [i for i in inner if OPEN in lines[i]]
    room -= sum(len(plain(lines[i])) for i in frame if i < len(lines))
    kept = set(frame)
    for i in sorted(inner, key=lambda i: -matches(lines[i])):
        line = plain(lines[i])
        if len(line) > room and kept == frame:  # one long line: cut it around its first match
            start = max(0, len(plain(lines[i].split(OPEN)[0])) - 80)
            if start and " " in line[start : start + 40]:
                start = line.index(" ", start) + 1
            lines[i] = "…" * bool(start) + line[start : start + max(room, 80)] + "…"
        elif len(line) > room:
            break
        kept.add(i)
        room -= len(line)
    return "\n".join(plain(line) for i, line in enumerate(lines) if i in kept)


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
FUNCTIONS: dict[str, Callable[[Any], Any]] = {"sqrt": math.sqrt, "abs": abs}
# Checked before parsing, for the parser warns of oddities such as `1or 2` and knows far more.
ARITHMETIC = re.compile(r"(?:[\d.+\-*/%() ]|(?<=\d)e(?=[+\-]?\d)|sqrt(?=\()|abs(?=\())+", re.ASCII)
SYMBOLS = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-", "∗": "*", "⋅": "*", "^": "**"})


def evaluate(expression: str) -> int | float:
    """Return the value of an arithmetic expression, never by ``eval``.

    Whole numbers are exact; others are rounded to 15 digits, which hides that 0.1 + 0.2 is
    0.30000000000000004. Raises ToolException with a sentence of REFUSALS.
    """
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise refusal("long")
    text = normalised(expression).strip().lower()
    if len(text) > 2 * MAX_EXPRESSION_CHARS or not ARITHMETIC.fullmatch(text):
        raise refusal("syntax")
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        raise refusal("syntax") from None
    except ZeroDivisionError:
        raise refusal("zero") from None
    except (OverflowError, ValueError) as error:  # sqrt(-1) is a ValueError
        raise refusal("complex" if isinstance(error, ValueError) else "large") from None
    if isinstance(value, float):
        value = float(f"{value:.15g}")
        if value.is_integer() and abs(value) < 1e15:
            return int(value)
    return value


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=(int() | float()) as value):
            result = value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            result = -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            result = _value(operand)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left), _value(right)
            # A power of at least so many bits is never begun.
            whole = isinstance(op, ast.Pow) and isinstance(a, int) and isinstance(b, int)
            if whole and (int(a).bit_length() - 1) * b > MAX_RESULT.bit_length():
                raise refusal("large")
            result = BINARY[type(op)](a, b)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            result = FUNCTIONS[name](_value(argument))
        case _:
            raise refusal("syntax")
    if isinstance(result, complex):  # (-8) ** 0.5
        raise refusal("complex")
    if not abs(result) < MAX_RESULT:  # infinity and NaN too
        raise refusal("large")
    return result


def normalised(text: str) -> str:
    """Return ``text`` in NFKC, with operators as Python has them and 1,000 as 1000."""
    text = unicodedata.normalize("NFKC", text).translate(SYMBOLS)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return re.sub(r"(?<![\w.])0+(?=\d)", "", text)  # Python refuses 007


# Telling the time.

# Names by which a message may call a place. The first Japanese one is used in answers.
# Every other zone is found by the tool, which reads the machine's list, too slow for a model.
PLACES = {
    "UTC": "utc gmt 協定世界時",
    "Asia/Tokyo": "tokyo japan osaka kyoto 東京 日本 大阪 京都",
    "Asia/Seoul": "seoul korea ソウル 韓国",
    "Asia/Shanghai": "shanghai beijing china 北京 上海 中国",
    "Asia/Hong_Kong": "hong_kong 香港",
    "Asia/Taipei": "taipei taiwan 台北 台湾",
    "Asia/Singapore": "singapore シンガポール",
    "Asia/Bangkok": "bangkok バンコク",
    "Asia/Kolkata": "kolkata india delhi mumbai bangalore デリー インド ムンバイ",
    "Asia/Dubai": "dubai ドバイ",
    "Europe/Moscow": "moscow モスクワ",
    "Europe/Berlin": "berlin germany munich frankfurt ベルリン ドイツ",
    "Europe/Paris": "paris france パリ フランス",
    "Europe/London": "london england uk ロンドン イギリス",
    "Europe/Madrid": "madrid spain barcelona マドリード スペイン",
    "Europe/Rome": "rome italy milan ローマ イタリア",
    "Europe/Amsterdam": "amsterdam アムステルダム",
    "Africa/Cairo": "cairo カイロ",
    "America/New_York": "new_york nyc boston washington ニューヨーク ワシントン",
    "America/Chicago": "chicago houston dallas シカゴ",
    "America/Los_Angeles": "los_angeles san_francisco seattle california ロサンゼルス "
    "サンフランシスコ シアトル",
    "America/Sao_Paulo": "sao_paulo brazil サンパウロ",
    "Pacific/Honolulu": "honolulu hawaii ホノルル ハワイ",
    "Australia/Sydney": "sydney melbourne シドニー",
}
ZONES = {name: zone for zone, names in PLACES.items() for name in names.split()}
JAPANESE_PLACE = re.compile(
    "|".join(sorted((name for name in ZONES if not name.isascii()), key=len, reverse=True))
)


def find_zone(name: str) -> tuple[str, tzinfo]:
    """Return the full name and the zone of an IANA name or of a city.

    No path is made of ``name``: it is looked up among the zones that there are. UTC needs no time
    zone data, which a slim container may lack.
    """
    wanted = re.sub(r"\s+", "_", unicodedata.normalize("NFKC", name).strip()).lower()
    found = ZONES.get(wanted)
    if found == "UTC" or wanted in ("etc/utc", "z", "zulu"):
        return "UTC", UTC
    known = zoneinfo.available_timezones()
    if not known:
        raise refusal("tzdata")
    if found is None:
        by_name = {zone.rsplit("/", 1)[-1].lower(): zone for zone in sorted(known)}
        by_name |= {zone.lower(): zone for zone in known}
        found = by_name.get(wanted)
    if found is None or found not in known:
        raise refusal("zone")
    return found, zoneinfo.ZoneInfo(found)


# The demo model.

SAY = {
    "help": (
        "I am the **demo model**: I work offline, read your message by plain rules, and use real "
        "tools through the same graph as any model. Ask me for\n\n"
        "- something in the documents: “How do I change the port?”\n"
        "- a calculation: “12 * (3 + 4)”, “15% of 80”, then “double that”\n"
        "- the time: “What time is it in Tokyo and London?”\n"
        "- a slow tool with progress: “wait 5 seconds”\n\n"
        "You can ask for several at once. For a real model, set `OPENAI_API_KEY`, or "
        "`OPENAI_BASE_URL` for a server of your own (Ollama, vLLM, llama.cpp), and start again.",
        "私は**デモモデル**です。オフラインで動き、決まった規則でメッセージを読み、実際のツールを"
        "本物のモデルと同じグラフを通して使います。たとえば次のように聞いてください。\n\n"
        "- ドキュメントの検索: 「ポートの設定方法は?」\n"
        "- 計算: 「12 * (3 + 4)」「80の15%」、続けて「それを2倍して」\n"
        "- 時刻: 「東京とロンドンの時刻は?」\n"
        "- 進み具合の見える遅いツール: 「5秒待って」\n\n"
        "一度にいくつ頼んでもかまいません。本物のモデルを使うには `OPENAI_API_KEY` を、自分の"
        "サーバー(Ollama、vLLM、llama.cpp)なら `OPENAI_BASE_URL` を設定して起動し直してください。",
    ),
    "greeting": ("Hello!", "こんにちは!"),
    "thanks": ("You are welcome.", "どういたしまして。"),
    "noted": ("I will remember that in this conversation:", "この会話の間、覚えておきます。"),
    "asked": ("Before this, you wrote:", "これまでのメッセージはこちらです。"),
    "nothing_asked": (
        "This is your first message in this conversation.",
        "この会話では、これが最初のメッセージです。",
    ),
    "recall": ("You wrote earlier:", "前にこう書かれていました。"),
    "no_recall": (
        "You have not told me that in this conversation.",
        "この会話では、まだうかがっていません。",
    ),
    "found": ("From the documents:", "ドキュメントからの引用です。"),
    "more": ("Further passages:", "ほかの箇所です。"),
    "more_left": (
        "Say “tell me more” for {0} more.",
        "「もっと詳しく」で、あと {0} 件を示します。",
    ),
    "no_more": (
        "That was all that I found in the documents; other words may find more.",
        "見つかったのは以上です。別の言葉なら、ほかにも見つかるかもしれません。",
    ),
    "none": (
        "I found nothing about that in the documents. As the demo model I can only quote them, "
        "calculate, tell the time and wait; “What can you do?” shows examples.",
        "ドキュメントには見つかりませんでした。デモモデルにできるのは、ドキュメントの引用、計算、"
        "時刻、待つことだけです。「何ができる?」で例を示します。",
    ),
    "calculate": ("{0} = **{1}**", "{0} = **{1}** です。"),
    "time": (
        "It is **{1:%H:%M}** in {0} ({2} {1.day} {1:%B %Y}, UTC{3}).",
        "{0}の時刻は **{1:%H:%M}** です({1.year}年{1.month}月{1.day}日 {2}、UTC{3})。",
    ),
    "wait": ("I waited {0:g} s.", "{0:g} 秒待ちました。"),
    "refused": ("{0}: {1}", "{0}: {1}"),
    "no_tool": ("The tool for that is not bound here.", "そのためのツールがここにはありません。"),
}

# What the rules look for. Every pattern is linear in the text: no repetition stands beside another
# that takes the same characters, and numbers are possessive (++) or start behind a look-behind.
NUMBER = r"(?<![A-Za-z0-9_.])\d++(?:\.\d++)?"
GREETING = re.compile(
    r"(?:hi|hello|hey|good (?:morning|afternoon|evening)|"
    r"こんにちは|こんばんは|おはよう(?:ございます)?|やあ|はじめまして)(?: there| all)?"
)
THANKS = re.compile(
    r"thanks?(?: you)?(?: (?:very|so) much)?|(?:どうも)?ありがとう(?:ございま(?:す|した))?"
)
HELP = re.compile(
    r"what (?:can|do) you do|(?:who|what) are you|^(?:please )?help(?: me)?$|"
    r"何(?:が|を)?(?:でき|出来)|できること|^(?:ヘルプ|使い方)$|(?:あなた|君|きみ)は(?:誰|だれ|何)"
)
MORE = re.compile(
    r"(?:please )?(?:(?:can you )?(?:tell|show|give) me )?(?:some )?more"
    r"(?: details?| about (?:it|that|this))?(?: please)?|go on|continue|(?:what|anything) else|"
    r"(?:もっと|さらに|もう少し)?(?:詳しく|くわしく|続き|つづき|他には?|ほかには?|もっと)(?:を|も)?"
    r"(?:教えて|お願い|見せて|知りたい)?(?:ください|下さい|します)?"
)
ASKED = re.compile(
    r"what (?:did|have) i (?:just )?(?:ask|say|said|write|asked|written|tell)|"
    r"what was my (?:last|first|previous) (?:question|message)|"
    r"(?:さっき|先ほど|前|以前|これまで|今まで)に?(?:私|僕|俺)?[はが]?(?:何|なに)[をと]"
)
# "What is my name?" looks for the words that told it.
RECALL = re.compile(
    r"(?:what(?:'s|’s| is| was| are)|tell me|do you (?:know|remember)|remember) "
    r"(my [a-z]+(?: [a-z]+)?)$|"
    r"((?:私|僕|俺)の[^はを\s]{1,12})(?:は|を)(?:何|なん|なに|いつ|どこ|誰|覚えて|$)|"
    r"(who am i$|(?:私|僕|俺)は(?:誰|だれ))"
)
NAME_TOLD = ("my name", "i am ", "i'm ", "i’m ", "call me", "名前は", "といいます", "と申します")
TOLD = re.compile(
    r"^(?:please )?remember (?!me)|\bmy (?:name|birthday|job|favou?rite [a-z]+) is |"
    r"^(?:hi|hello)?[, !]*call me |"
    r"^(?:hi|hello|hey)[, !.]+i(?:'m|’m| am) [a-z]+$|覚えておいて|覚えてください|"
    r"(?:私|僕|俺)?の?(?:名前|誕生日|仕事|好きな[^は\s]{1,8})は[^?何なだ誰]+$|(?:といいます|と申します)"
)

# Words that stand for an operator beside a number.
REWRITES = (
    (r"(?<=\d) ?(?:percent\b|パーセント)", "%"),
    (rf"({NUMBER})%(?: of |の)(?=[\d(])", r"\1 / 100 * "),
    (rf"({NUMBER}) ?の ?({NUMBER})%", r"\1 * \2 / 100"),
    (rf"({NUMBER})に({NUMBER})を(?:足|たし|加え)", r"\1 + \2 "),
    (rf"({NUMBER})から({NUMBER})を(?:引|ひい)", r"\1 - \2 "),
    (rf"({NUMBER})に({NUMBER})を(?:掛|かけ)", r"\1 * \2 "),
    (rf"({NUMBER})を({NUMBER})で(?:割|わ)", r"\1 / \2 "),
    (rf"({NUMBER}) ?の ?(\d++)乗", r"\1 ** \2"),
    (rf"({NUMBER}) ?の(?:平方根|ルート)", r"sqrt(\1)"),
    (rf"\b(?:the )?square root of ({NUMBER})", r"sqrt(\1)"),
    (r"(?<=[\d)]) ?(?:to the power of) ?(?=[\d(])", " ** "),
    (r"(?<=[\d)]) ?(?:plus|たす|足す) ?(?=[\d(])", " + "),
    (r"(?<=[\d)]) ?(?:minus|ひく|引く) ?(?=[\d(])", " - "),
    (r"(?<=[\d)])(?: ?(?:times|multiplied by|かける|掛ける) ?| x )(?=[\d(])", " * "),
    (r"(?<=[\d)]) ?(?:divided by|わる|割る) ?(?=[\d(])", " / "),
)
# Numbers with operators that are no sums: dates, versions, clock times, telephone numbers.
NO_SUM = re.compile(
    r"(?<!\d)(?:\d{4}[-/]\d\d?(?:[-/]\d\d?)?|\d\d?/\d\d?/\d{2,4}|"
    r"\d++(?:\.\d++){2,}|\d\d?:\d\d(?::\d\d)?|"
    r"0\d++-\d++(?:-\d++)?)(?!\d)"
)
SUM = re.compile(r"(?:sqrt(?=\()|abs(?=\()|(?<=\d)e(?=[+\-]?\d)|[\d.+\-*/%() ])+", re.ASCII)
OPERATION = re.compile(r"[\d)] *(?:\*\*|//|[+\-*/%]) *[+\-]?(?:[\d(.]|sqrt|abs)|sqrt\(|abs\(")
RANGE = re.compile(r"\d+[-/]\d+")  # "24/7" is a sum only when nothing else is asked
# What may follow a result; the number is the group that matched, or the default.
FOLLOW_UPS = (
    (r"(?:plus|add|\+) ?(\d[\d.]*)|(\d[\d.]*)を?(?:足|たし|加え)", "+", ""),
    (r"(?:minus|subtract|-) ?(\d[\d.]*)|(\d[\d.]*)を?(?:引|ひい)", "-", ""),
    (r"(?:divided?(?: it| that)? by|/) ?(\d[\d.]*)|(\d[\d.]*)で(?:割|わ)", "/", ""),
    (r"(?:times|by|\*) ?(\d[\d.]*)|(\d[\d.]*)(?:倍|を?(?:掛け|かけ))", "*", ""),
    (r"\bdouble|二倍|倍に", "*", "2"),
    (r"\bhalf\b|\bhalve|半分", "/", "2"),
    (r"\bsquared?\b|[2二]乗", "**", "2"),
)
PRONOUN = re.compile(
    r"(?:\b(?:that|it|the result|this)\b|それ|これ|その答え|答え)(?= ?[+\-*/%] ?[\d(])"
)

WAIT = re.compile(
    r"\b(?:wait|sleep|pause)\b[^\d.\n-]{0,20}(-?\d++(?:\.\d++)?) ?(m\b|min)?|"
    r"(-?(?<!\d)\d++(?:\.\d++)?) ?(?:秒|(分))間?(?:だけ|ほど|くらい)?[、 ]?(?:待|まっ|スリープ)"
)
TIME = re.compile(
    r"\bwhat(?:'s|’s| is|s)?(?: the)?(?: current| local)? (?:time|date)\b(?: is it| now)?|"
    r"\bcurrent time\b|\bwhat day is (?:it|today)\b|\btoday's date\b|\btime (?:is it|now)\b|"
    r"何時(?!間)|時刻|何曜日|今日は何日|"
    r"(?:現在|今|いま)の?時間|日時",
    re.IGNORECASE,
)
PLACE_TIME = re.compile(r"\btime\b|時間")  # a question for the time only beside a place
IN_PLACES = re.compile(r"\b(?:in|at|for|about) ([A-Za-z_ ,'/-]{1,60})")
JAPANESE_IN = re.compile(
    r"([^\s、。,はのでと今現在]{2,12})(?:の|は|で)(?:今の|現在の)?(?:時刻|時間|何時)"
)
ZONE_NAME = re.compile(
    r"\b(?:[A-Z][A-Za-z]+(?:/[A-Z][A-Za-z_+\-0-9]+)+|(?:UTC|GMT)(?:[+-]\d\d?(?::\d\d)?)?)"
)
NO_PLACE_TEXT = "the my your a an this here now it that right how what why is please all"
NO_PLACE = frozenset(NO_PLACE_TEXT.split())
CLAUSE = re.compile(r"[.?!;,、。\n]+|\b(?:and|then|also)\b")
SEARCH_CUE = re.compile(
    r"\b(?:what|how|why|where|which|who|when|explain|describe|search|find|docs?|tell me about)\b|"
    r"とは|方法|使い方|について|設定|検索|調べ|説明|どう"
)
SEARCH_PREFIX = re.compile(
    r"(?:please )?(?:search|look up|look in|find)"
    r"(?: (?:in )?(?:the )?(?:docs|documents|documentation|readme))?(?: for)? ",
    re.IGNORECASE,
)


class Request(NamedTuple):
    """One thing that a message asks for, and where in the text it stands."""

    start: int
    end: int
    tool: str
    args: dict[str, Any]


def reply(messages: Sequence[BaseMessage], bound: frozenset[str]) -> AIMessage:
    """Return the demo model's next message: tool calls without text, or text.

    Only tools named in ``bound`` are called.
    """
    humans = [i for i, message in enumerate(messages) if isinstance(message, HumanMessage)]
    question = messages[humans[-1]].text if humans else ""
    history = messages[: humans[-1]] if humans else []
    said = [str(message.text) for message in history if isinstance(message, HumanMessage)]
    # A question without letters, such as 1 + 1, is in the language of those before it.
    lettered = [text for text in (question, *reversed(said)) if re.search(r"[^\W\d_]", text)]
    ja = bool(lettered and JAPANESE.search(lettered[0]))
    if messages and isinstance(messages[-1], ToolMessage):
        return AIMessage(answer(messages, ja))
    requests = read_requests(question, history)
    if not requests:
        text = talk(question, history, said, ja)
        if text:
            return AIMessage(text)
        query = SEARCH_PREFIX.sub("", " ".join(question.split()), count=1)[:200]
        requests = [Request(0, 0, "search_docs", {"query": query})]
    calls = [
        {"name": each.tool, "args": each.args, "id": f"call_{uuid.uuid4().hex[:24]}"}
        for each in sorted(requests, key=lambda each: each.start)[:MAX_CALLS]
        if each.tool in bound
    ]
    if not calls:
        return AIMessage(say("no_tool", ja) + "\n\n" + say("help", ja))
    return AIMessage("", tool_calls=calls)


def say(key: str, ja: bool, *values: object) -> str:
    """Return a sentence of SAY in English or Japanese."""
    return SAY[key][ja].format(*values)


def read_requests(question: str, history: Sequence[BaseMessage]) -> list[Request]:
    """Return what a message asks of calculate, current_time and wait, and a search beside them."""
    text = normalised(question)
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text)
    requests = read_waits(text)
    rest = blanked(text, requests)
    requests += (times := read_times(rest, history))
    rest = blanked(rest, times)
    sums = read_sums(rest) or read_follow_up(rest, history)
    requests += sums
    rest = blanked(rest, sums)
    if requests:
        # Beside other requests only a clause that asks something is a search.
        position = 0
        rest = TIME.sub(" ", rest)
        for clause in CLAUSE.split(PLACE_TIME.sub(" ", rest) if times else rest):
            position += len(clause)
            if SEARCH_CUE.search(clause.lower()) and search_terms(clause):
                query = " ".join(clause.split())[:200]
                requests.append(Request(position, position, "search_docs", {"query": query}))
    return requests


def blanked(text: str, requests: Sequence[Request]) -> str:
    """Return ``text`` with spaces where ``requests`` stand, so that positions stay."""
    pieces, end = [], 0
    for each in sorted(requests, key=lambda each: each.start):
        pieces += [text[end : each.start], " " * (each.end - max(each.start, end))]
        end = max(end, each.end)
    return "".join([*pieces, text[end:]])


def read_waits(text: str) -> list[Request]:
    """Return the requests to wait."""
    requests = []
    for match in WAIT.finditer(text.lower()):
        seconds = float(match[1] or match[3]) * (60 if match[2] or match[4] else 1)
        # A number of 400 digits is infinite as a float, which JSON cannot carry.
        args = {"seconds": min(seconds, 1e9)}
        requests.append(Request(match.start(), match.end(), "wait", args))
    return requests


def read_times(text: str, history: Sequence[BaseMessage]) -> list[Request]:
    """Return the requests for the time: one for each place, or for UTC where none is named."""
    cue = TIME.search(text)
    tools = [each.name for each in history if isinstance(each, ToolMessage)]
    going_on = len(text) <= 60 and tools[-1:] == ["current_time"]  # "and in London?"
    if not (cue or going_on or PLACE_TIME.search(text.lower())):
        return []
    places = {m.start(): (m.end(), m[0]) for m in ZONE_NAME.finditer(text)}
    places |= {m.start(): (m.end(), ZONES[m[0]]) for m in JAPANESE_PLACE.finditer(text)}
    words = list(re.finditer(r"[A-Za-z]+", text))
    for first, last in [*zip(words, words, strict=True), *zip(words, words[1:], strict=False)]:
        name = first[0] if first is last else f"{first[0]}_{last[0]}"
        if name.lower() in ZONES:
            places[first.start()] = (last.end(), ZONES[name.lower()])
    # A place that only the tool may know: "in Lisbon and Reykjavik".
    if cue or places or re.search(r"\btime in [A-Z]|^(?i:and|what about|how about) ", text):
        known = {at for start, (end, _) in places.items() for at in range(start, end)}
        for match in [*IN_PLACES.finditer(text), *JAPANESE_IN.finditer(text)]:
            # The comma that stands for "and" is as long, so that positions stay.
            for part in re.finditer(r"[^\s,][^,]*", match[1].replace(" and ", " ,   ")):
                start, name = match.start(1) + part.start(), part[0].strip()
                words_of_it = name.lower().split()
                is_name = len(words_of_it) <= 3 and not NO_PLACE.intersection(words_of_it)
                if is_name and known.isdisjoint(range(start, start + len(name))):
                    places[start] = (start + len(name), name)
    if not places and cue:
        return [Request(cue.start(), cue.end(), "current_time", {"timezone": "UTC"})]
    requests: dict[str, Request] = {}
    for start, (end, name) in sorted(places.items()):
        requests.setdefault(name, Request(start, end, "current_time", {"timezone": name}))
    return list(requests.values())


def read_sums(text: str) -> list[Request]:
    """Return the arithmetic expressions of a text."""
    words = bool(search_terms(re.sub(r"\d", " ", text)))
    text = NO_SUM.sub(lambda match: "x" * len(match[0]), text.lower())
    requests: list[Request] = []
    for match in SUM.finditer(text):
        if len(requests) >= MAX_CALLS:
            break
        left = len(match[0]) - len(match[0].lstrip(" .+*/%)"))
        expression = balanced(match[0][left:].rstrip(" .+-*/(").removeprefix("- "))
        start, end = match.start() + left, match.start() + left + len(expression)
        # A letter beside it makes it part of a name: HTTP/2, v1-2.
        beside = text[max(0, start - 1) : start] + text[end : end + 1]
        if not OPERATION.search(expression) or re.search("[a-z_]", beside):
            continue
        if words and RANGE.fullmatch(expression):
            continue
        # One character too many lets the tool refuse a huge expression in its own words.
        args = {"expression": expression[: MAX_EXPRESSION_CHARS + 1]}
        requests.append(Request(start, end, "calculate", args))
    return requests


def balanced(expression: str) -> str:
    """Return an expression without the outer parentheses that have no partner."""
    missing = expression.count("(") - expression.count(")")
    while missing > 0 and expression.startswith("("):
        expression, missing = expression[1:].lstrip(), missing - 1
    while missing < 0 and expression.endswith(")"):
        expression, missing = expression[:-1].rstrip(), missing + 1
    return expression


def read_follow_up(text: str, history: Sequence[BaseMessage]) -> list[Request]:
    """Return a calculation that goes on from the thread's last result, such as "times 2"."""
    last = last_result(history, "calculate").get("result")
    if last is None or len(text) > 60:
        return []
    value = f"({last})" if last < 0 else f"{last}"
    if PRONOUN.search(text.lower()):
        return read_sums(PRONOUN.sub(value, text.lower()))
    for pattern, sign, default in FOLLOW_UPS:
        if match := re.search(pattern, text.lower()):
            number = next((group for group in match.groups() if group), default)
            args = {"expression": f"{value} {sign} {number}"}
            return [Request(match.start(), match.end(), "calculate", args)]
    return []


def last_result(messages: Sequence[BaseMessage], name: str) -> dict[str, Any]:
    """Return the last result of a tool in a thread, or an empty object."""
    results = (parsed(each) for each in reversed(messages)
               if isinstance(each, ToolMessage) and each.name == name)  # fmt: skip
    return next(filter(None, results), {})


def parsed(message: ToolMessage) -> dict[str, Any]:
    """Return the object that a tool returned, or an empty one."""
    if message.status == "error":
        return {}
    try:
        data = json.loads(message.text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def talk(question: str, history: Sequence[BaseMessage], said: list[str], ja: bool) -> str:
    """Return an answer that needs no tool, from the thread alone; empty when it needs a search."""
    text = " ".join(unicodedata.normalize("NFKC", question).lower().split()).strip(" .!?,、。~")
    if not text or HELP.search(text) or GREETING.fullmatch(text):
        return (say("greeting", ja) + "\n\n" if GREETING.fullmatch(text) else "") + say("help", ja)
    if THANKS.fullmatch(text):
        return say("thanks", ja)
    if MORE.fullmatch(text):
        return more(history, ja)
    if ASKED.search(text):
        earlier = [quoted(each) for each in said[-3:]]
        return "\n\n".join([say("asked" if earlier else "nothing_asked", ja), *earlier])
    if match := RECALL.search(text):
        subject = match[1] or match[2] or "my name"
        wanted = NAME_TOLD if re.search("name|名前|誰|だれ", match[0] + subject) else (subject,)
        for each in reversed(said):
            words = each.lower()
            if any(word in words for word in wanted) and not words.rstrip().endswith(("?", "?")):
                return say("recall", ja) + "\n\n" + quoted(each)
        return say("no_recall", ja)
    if len(text) <= 200 and TOLD.search(text) and not question.rstrip().endswith(("?", "?")):
        return say("noted", ja) + "\n\n" + quoted(question)
    return ""


def quoted(text: str) -> str:
    """Return a Markdown block quote of a text, of its beginning if it is long."""
    text = text if len(text) <= 2 * MAX_PASSAGE_CHARS else text[: 2 * MAX_PASSAGE_CHARS] + "…"
    return "\n".join(f"> {line}".rstrip() for line in text.strip().split("\n"))


def cited(hit: dict[str, str]) -> str:
    """Return a hit as a quotation under its heading and source."""
    return f"**{hit['heading']}** (`{hit['source']}`)\n\n{quoted(hit['passage'])}"


def more(history: Sequence[BaseMessage], ja: bool) -> str:
    """Return the hits of the thread's last search that no answer has quoted yet."""
    found = last_result(history, "search_docs")
    if not found:
        return say("help", ja)
    answers = "\n\n".join(each.text for each in history if isinstance(each, AIMessage))
    left = [text for text in map(cited, found["hits"]) if text not in answers]
    return "\n\n".join([say("more", ja), *left]) if left else say("no_more", ja)


def answer(messages: Sequence[BaseMessage], ja: bool) -> str:
    """Return one answer out of the tool messages that end the thread, in their order."""
    end = len(messages)
    while end and isinstance(messages[end - 1], ToolMessage):
        end -= 1
    asked = messages[end - 1] if end else None
    calls = asked.tool_calls if isinstance(asked, AIMessage) else []
    args = {call["id"]: call["args"] for call in calls}
    return "\n\n".join(
        told(message, args.get(message.tool_call_id, {}), ja)
        for message in messages[end:]
        if isinstance(message, ToolMessage)
    )


def told(message: ToolMessage, args: dict[str, Any], ja: bool) -> str:
    """Return the sentences for one tool's result or refusal."""
    match parsed(message):
        case {"expression": expression, "result": result}:
            return say("calculate", ja, code(expression), result)
        case {"timezone": zone, "time": time}:
            moment = datetime.fromisoformat(time)
            day = moment.weekday()
            weekday = "月火水木金土日"[day] + "曜日" if ja else WEEKDAYS[day]
            japanese = [name for name in PLACES.get(zone, "").split() if not name.isascii()]
            name = japanese[0] if ja and japanese else zone.rsplit("/", 1)[-1].replace("_", " ")
            return say("time", ja, name, moment, weekday, time[-6:])
        case {"waited_s": seconds}:
            return say("wait", ja, seconds)
        case {"hits": []}:
            return say("none", ja)
        case {"hits": hits}:
            shown = [cited(hit) for hit in hits[:2]]
            left = len({cited(hit) for hit in hits[2:]} - set(shown))
            ending = [say("more_left", ja, left)] if left else []
            return "\n\n".join([say("found", ja), *shown, *ending])
    # A refusal, or what another tool returned.
    sentence = str(message.text)
    if ja:
        sentence = dict(REFUSALS.values()).get(sentence, sentence)
    subject = next(iter(args.values()), "")
    return say("refused", ja, code(subject), sentence) if subject != "" else sentence


def code(value: object) -> str:
    """Return a short value as Markdown code."""
    text = f"{value:g}" if isinstance(value, float) else str(value).replace("`", "'")
    return f"`{text if len(text) <= 80 else text[:80] + '…'}`"


# Words with the spaces after them, up to three CJK characters, and what else there is: together
# they are the text. A word of one kind of character is bounded, as a model's tokens are.
PIECE = re.compile(rf"[{CJK}]{{1,3}}|[^\s{CJK}]{{1,24}}\s*|\s+")


class DemoModel(BaseChatModel):
    """A chat model by rules; streams ``tokens_per_s`` pieces a second, without pause at 0."""

    tokens_per_s: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "demo"

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this model with tools; it calls them by its rules, whatever ``tool_choice``."""
        return self.bind(tools=[convert_to_openai_tool(each) for each in tools], **kwargs)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        message = AIMessageChunk(content="")
        for chunk in self._stream(messages, **kwargs):
            assert isinstance(chunk.message, AIMessageChunk)
            message += chunk.message
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        bound = frozenset(each["function"]["name"] for each in kwargs.get("tools", ()))
        message = reply(messages, bound)
        chunks = [AIMessageChunk(content=piece) for piece in PIECE.findall(message.text)]
        for index, call in enumerate(message.tool_calls):
            args = json.dumps(call["args"], ensure_ascii=False)
            middle = len(args) // 2
            # As providers do: name and id come with the first fragment, the index with each.
            fragments = [
                tool_call_chunk(name=call["name"], args=args[:middle], id=call["id"], index=index),
                tool_call_chunk(args=args[middle:], index=index),
            ]
            chunks += [AIMessageChunk(content="", tool_call_chunks=[each]) for each in fragments]
        read = sum(len(PIECE.findall(each.text)) for each in messages)
        usage = UsageMetadata(
            input_tokens=read, output_tokens=len(chunks), total_tokens=read + len(chunks)
        )
        chunks.append(AIMessageChunk(content="", usage_metadata=usage, chunk_position="last"))
        yield from (ChatGenerationChunk(message=chunk) for chunk in chunks)

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number, chunk in enumerate(self._stream(messages, **kwargs)):
            # Against a schedule, so that late pieces do not slow the whole. At rate 0, and when
            # late, it is sleep(0), which lets others run.
            due = start + number / self.tokens_per_s if self.tokens_per_s else start
            await asyncio.sleep(max(0, due - loop.time()))
            yield chunk
