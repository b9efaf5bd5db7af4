"""The built-in agent's four tools, and the demo model, which stands in for one offline.

It is a module of its own because the server and the streaming can be read without it, and because
an offline stand-in for a model is longer than what it stands in for. The demo model reads a message
by plain rules, in English and Japanese, calls the tools through the graph, and streams the results.
"""

import ast
import asyncio
import functools
import json
import math
import operator
import re
import sqlite3
import unicodedata
import uuid
import zoneinfo
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.messages import BaseMessage as Message
from langchain_core.messages.tool import ToolCall, tool_call_chunk
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
MAX_FOLLOW_UP_CHARS = 60

CJK = r"\u3005\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f"
JAPANESE = re.compile(f"[{CJK}]")


def make_tools(docs: Path) -> list[BaseTool]:
    """Return the four tools; ``docs`` is a directory or one file, read at the first search."""
    index = functools.cache(lambda: build_index(docs))
    lock = asyncio.Lock()  # the searches share a connection

    @tool
    async def search_docs(query: str) -> dict[str, Any]:
        """Search the documents of this project; use the words that the documents would use."""
        async with lock:
            hits = await asyncio.to_thread(lambda: find_sections(index(), query))
        return {"query": query, "hits": hits}

    @tool
    async def calculate(expression: str) -> dict[str, Any]:
        """Calculate an arithmetic expression, such as 12 * (3 + 4) or sqrt(2) ** 3."""
        return {"expression": expression, "result": evaluate(expression)}

    @tool
    async def current_time(timezone: str) -> dict[str, str]:
        """Tell the time in an IANA time zone or a large city, such as Asia/Tokyo, Paris or UTC."""
        name, zone = find_zone(timezone)
        now = datetime.now(zone).replace(microsecond=0)
        return {"timezone": name, "time": now.isoformat(), "weekday": f"{now:%A}"}

    @tool
    async def wait(seconds: float, runtime: ToolRuntime[Any, Any]) -> dict[str, float]:
        """Wait for 0 to 60 seconds and report progress every second."""
        if not 0 <= seconds <= MAX_WAIT_S:  # refuses NaN too
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
        # Pydantic's own words quote its internals and a web address.
        each.handle_validation_error = "The arguments do not fit the tool's parameters."
    return tools


# Searching. The separator stands around each CJK character in the index, so that unicode61, which
# does not segment CJK, takes each for a word; highlight() marks what matched. Both are taken out.
OPEN, CLOSE, SEPARATOR = "\x02", "\x03", "\u2063"
STOP_WORDS = """
a about all also an and any are as at be by can could did do docs does find for from get give has
have how i if in is it its know like me more my need not of on or our please search should show some
tell than that the there this to up use was we what when where which who why will with would you
your s t
"""
JAPANESE_STOP = re.compile("教え|下さ|関[しす]|方法|何|検索|調べ|探し|説明|知り|必要|場合|使い?方")
# Runs of one script, for Japanese has no spaces. Its grammar is in hiragana, which are left out.
WORD = re.compile(rf"[\u30a1-\u30fa\u30fc-\u30ff]{{2,}}|[\u3005\u3400-\u9fff]+|[^\W{CJK}]{{2,}}")
FENCED = re.compile(r"(?ms)^ {0,3}(```|~~~).*?(?:^ {0,3}\1|\Z)")


def build_index(root: Path) -> sqlite3.Connection:
    """Return a table of the sections of Markdown and text files; a # heading begins a section."""
    db = sqlite3.connect(":memory:", check_same_thread=False)
    columns = "source UNINDEXED, heading, body, tokenize='porter unicode61'"
    db.execute(f"CREATE VIRTUAL TABLE docs USING fts5({columns})")
    for path in [root] if root.is_file() else sorted(root.rglob("*")):
        name = path.name if path == root else path.relative_to(root).as_posix()
        hidden = re.search(r"(?:^|/)(?:\.|node_modules/)", name)
        if hidden or path.suffix.lower() not in (".md", ".markdown", ".txt"):
            continue
        try:
            text = path.read_text("utf-8-sig", errors="replace")
        except OSError:
            continue
        text = re.sub(r"[\x00-\x08\x0b-\x1f\u2063]", " ", text)
        # In a code fence a # begins a comment; the separator before it is taken out in the end.
        text = FENCED.sub(lambda code: code[0].replace("\n#", f"\n{SEPARATOR}#"), text)
        parts = re.split(r"(?m)^#{1,6}[ \t]+(.*?)[# \t]*$", text)
        for heading, body in zip([path.stem, *parts[1::2]], parts[::2], strict=True):
            if body.strip():
                db.execute("INSERT INTO docs VALUES (?,?,?)", (name, spaced(heading), spaced(body)))
    return db


def find_sections(db: sqlite3.Connection, query: str) -> list[dict[str, str]]:
    """Return at most MAX_HITS objects of source, heading and passage, best first."""
    terms = search_terms(query)
    # A heading's word counts as much as four of the body's.
    found = db.execute(
        "SELECT source, highlight(docs, 1, ?1, ?2), highlight(docs, 2, ?1, ?2) FROM docs "
        "WHERE docs MATCH ?3 ORDER BY bm25(docs, 0, 4, 1) LIMIT 40",
        (OPEN, CLOSE, " OR ".join(terms) or '""'),
    )
    return [
        {"source": source, "heading": plain(heading), "passage": best_passage(body)}
        for source, heading, body in found
        # One common word of a long question is no answer.
        if matches(heading + body) * 3 >= len(terms)
    ][:MAX_HITS]


def search_terms(query: str) -> list[str]:
    """Return an FTS5 expression for each telling word of ``query``, quoted: none is syntax."""
    text = normalised(query).lower()
    # A longer run of kanji is found by its pairs; of a query all in hiragana each run is a word.
    words = [word.strip("_") for word in WORD.findall(JAPANESE_STOP.sub(" ", text))]
    if not WORD.search(text):
        words = [run.rstrip("はがをのとも") for run in re.findall("[\u3041-\u309f]{3,}", text)]
    terms = dict.fromkeys(word for word in words if word and word not in STOP_WORDS.split())
    pairs = [re.findall("(?=([\u3400-\u9fff]{2}))", word) or [word] for word in terms]
    return [" OR ".join(f'"{spaced(part)}"' for part in parts) for parts in pairs[:MAX_TERMS]]


def spaced(text: str) -> str:
    """Return ``text`` with separators around each CJK character."""
    return JAPANESE.sub(rf"{SEPARATOR}\g<0>{SEPARATOR}", text)


def plain(marked: str) -> str:
    """Return the text as it stood in the file."""
    return re.sub(f"[{OPEN}{CLOSE}{SEPARATOR}]", "", marked)


def matches(marked: str) -> int:
    """Count the different words that are marked; five letters stand for all inflections."""
    return len({plain(word)[:5].lower() for word in re.findall(f"{OPEN}([^{CLOSE}]*)", marked)})


def best_passage(marked: str) -> str:
    """Return the paragraph with most matches, of a table the rows, and what follows if it fits."""
    blocks = re.split(r"\n\s*\n", marked.strip("\n"))
    best = max(range(len(blocks)), key=lambda i: matches(blocks[i]))
    lines = blocks[best].split("\n")
    if lines[0].startswith("|") and OPEN in blocks[best]:
        lines = lines[:2] + [line for line in lines[2:] if OPEN in line]
    passage = plain("\n".join(lines))
    if len(passage) > MAX_PASSAGE_CHARS:
        start = max(0, len(plain(blocks[best].split(OPEN)[0])) - MAX_PASSAGE_CHARS // 2)
        return "…" * bool(start) + passage[start : start + MAX_PASSAGE_CHARS] + "…"
    grown = accumulate([passage, *map(plain, blocks[best + 1 :])], "{}\n\n{}".format)
    return [text for text in grown if len(text) <= MAX_PASSAGE_CHARS][-1]


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
# Checked before parsing, for the parser warns of oddities such as `1or 2` and knows far more.
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
        value = _value(ast.parse(text, mode="eval").body)
    except (ArithmeticError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ToolException(NO_RESULT.get(type(error), NO_ARITHMETIC)) from None
    if isinstance(value, float):
        value = float(f"{value:.15g}")
        return int(value) if value.is_integer() and abs(value) < 1e15 else value
    return value


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=(int() | float()) as value):
            result = value
        case ast.UnaryOp(op=op, operand=operand):
            result = -_value(operand) if isinstance(op, ast.USub) else _value(operand)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left), _value(right)
            # A power of at least 1000 bits is never begun.
            if isinstance(op, ast.Pow) and abs(a) > 1 and b * math.log2(abs(a)) > 1000:
                raise OverflowError
            result = BINARY[type(op)](a, b)
        case ast.Call(func=ast.Name(id="sqrt"), args=[argument]):
            result = math.sqrt(_value(argument))  # of -1 a ValueError
        case _:
            raise SyntaxError
    if isinstance(result, complex):  # (-8) ** 0.5
        raise ValueError
    if not abs(result) < MAX_RESULT:  # infinity and NaN too
        raise OverflowError
    return result


def normalised(text: str) -> str:
    """Return ``text`` in NFKC, with operators as Python has them and 1,000 as 1000."""
    text = unicodedata.normalize("NFKC", text).translate(SYMBOLS)
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", re.sub(r"[ \t]+", " ", text))


# Telling the time. Zones with other names of theirs; the first Japanese one is used in answers.
PLACES = """
UTC gmt 協定世界時, Asia/Tokyo japan osaka kyoto 東京 日本 大阪 京都, Asia/Seoul korea ソウル 韓国,
Asia/Shanghai beijing china 上海 北京 中国, Asia/Taipei taiwan 台北 台湾, Asia/Dubai ドバイ,
Asia/Singapore シンガポール, Asia/Kolkata india インド デリー, Europe/Paris france パリ フランス,
Europe/Berlin germany ベルリン ドイツ, Europe/London england uk ロンドン イギリス,
America/New_York nyc ニューヨーク, America/Los_Angeles san_francisco ロサンゼルス,
America/Sao_Paulo brazil ブラジル, Pacific/Honolulu hawaii ハワイ, Australia/Sydney シドニー
"""
NAMES = {names[0]: names for names in map(str.split, PLACES.split(","))}
ZONES = {n.split("/")[-1].replace("_", " ").lower(): z for z, names in NAMES.items() for n in names}


def find_zone(name: str) -> tuple[str, tzinfo]:
    """Return the full name and the zone of an IANA name or of a city; no path is made of it."""
    wanted = " ".join(unicodedata.normalize("NFKC", name).replace("_", " ").lower().split())
    if ZONES.get(wanted) == "UTC":
        return "UTC", UTC  # without time zone data, which a slim container may lack
    known = sorted(zoneinfo.available_timezones())
    full = {zone.replace("_", " ").lower(): zone for zone in known}
    cities = {name.rsplit("/", 1)[-1]: zone for name, zone in full.items()}
    found = (full | cities | ZONES).get(wanted, "")
    if found not in known:
        raise ToolException(
            "I know no time zone of that name; try an IANA name such as Asia/Tokyo."
        )
    return found, zoneinfo.ZoneInfo(found)


# The demo model. Its pieces are words with the spaces after them, or up to three CJK characters.
PIECE = re.compile(rf"[{CJK}]{{1,3}}|[^\s{CJK}]{{1,24}}\s*|\s+")


class DemoModel(BaseChatModel):
    """A chat model by rules; streams ``tokens_per_s`` pieces a second, without pause at 0."""

    tokens_per_s: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "demo"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Return this model with tools; it calls them by its rules, whatever ``tool_choice``."""
        names = [convert_to_openai_tool(each)["function"]["name"] for each in tools]
        return self.bind(bound=names, **kwargs)

    def _generate(self, messages: list[Message], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=reply(messages, **kwargs))])

    async def _astream(self, messages: list[Message], *_: Any, **kwargs: Any) -> AsyncIterator[Any]:
        message = reply(messages, **kwargs)
        chunks = [AIMessageChunk(content=piece) for piece in PIECE.findall(message.text)]
        for index, call in enumerate(message.tool_calls):
            text = json.dumps(call["args"], ensure_ascii=False)
            half = len(text) // 2
            # As providers do: name and id come with the first fragment, the index with each.
            first = {"name": call["name"], "args": text[:half], "id": call["id"]}
            for part in (first, {"args": text[half:]}):
                fragments = [tool_call_chunk(**part, index=index)]
                chunks.append(AIMessageChunk(content="", tool_call_chunks=fragments))
        usage = message.usage_metadata
        chunks.append(AIMessageChunk(content="", usage_metadata=usage, chunk_position="last"))
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number, chunk in enumerate(chunks):
            # Against a schedule, so that late pieces do not slow the whole. At rate 0, and when
            # late, it is sleep(0), which lets others run.
            due = start + number / self.tokens_per_s if self.tokens_per_s else start
            await asyncio.sleep(max(0, due - loop.time()))
            yield ChatGenerationChunk(message=chunk)


def reply(messages: Sequence[Message], bound: Collection[str] = (), **_: Any) -> AIMessage:
    """Return the demo model's next message: calls of the ``bound`` tools, or text."""
    humans = [i for i, message in enumerate(messages) if isinstance(message, HumanMessage)]
    history = messages[: humans[-1]] if humans else []
    said = [str(messages[i].text) for i in humans]
    question = said.pop() if said else ""
    # A question without letters, such as 1 + 1, is in the language of those before it.
    lettered = (text for text in (question, *reversed(said)) if re.search(r"[^\W\d_]", text))
    ja = bool(JAPANESE.search(next(lettered, "")))
    results = [*takewhile(lambda message: isinstance(message, ToolMessage), reversed(messages))]
    text = "\n\n".join(told(message, ja) for message in reversed(results))
    text = text or talk(question, history, said, ja)
    calls: list[ToolCall] = [
        {"name": name, "args": args, "id": f"call_{uuid.uuid4().hex[:24]}"}
        for name, args in ([] if text else read_requests(question, history)[:MAX_CALLS])
        if name in bound
    ]
    text = text or ("" if calls else say("no_tool", ja))
    read = sum(len(PIECE.findall(message.text)) for message in messages)
    wrote = len(PIECE.findall(text)) + 2 * len(calls)
    usage = {"input_tokens": read, "output_tokens": wrote, "total_tokens": read + wrote}
    return AIMessage(text, tool_calls=calls, usage_metadata=usage)


# What a message asks for. A follow-up is rewritten into a whole request, so that the rules after it
# know nothing of the thread. Every pattern is linear in the text: no repetition stands beside
# another that takes the same characters, and none begins anew within what it has scanned.
NUMBER = r"(?<![A-Za-z0-9_.])(?:\d++(?:\.\d++)?|\.\d++)"
REWRITES = (
    # Dates, versions and telephone numbers are no sums.
    (r"(?<![\d.])(?:\d{4}([-/])\d\d?\1\d\d?|\d++(?:\.\d++){2,}|0\d++-[\d-]+|24/7)(?!\d)", "_"),
    (rf"({NUMBER}) ?(?:%|percent|パーセント) ?(?:of|の) ?(?=[\d(])", r"\1 / 100 * "),
    (rf"({NUMBER}) ?の ?({NUMBER})%", r"\1 * \2 / 100"),
    (rf"\bdouble ({NUMBER}|that|it)\b", r"\1 * 2"),
    (rf" ?(?:\bplus|\badd|たす|足す) ?(?=[\d(])| ?に?({NUMBER})を?(?:足|たし)", r" + \1"),
    (rf" ?(?:\bminus|ひく|引く) ?(?=[\d(])| ?(?:から)?({NUMBER})を?(?:引|ひい)", r" - \1"),
    (rf" ?(?:\btimes|かける|掛ける) ?(?=[\d(])| ?[をにの]?({NUMBER})(?:倍|を[掛か]け)", r" * \1"),
    (rf" ?\bdivided?(?: it| that)? by ?(?=[\d(])| ?を?({NUMBER})で(?:割|わ)", r" / \1"),
    (rf" ?の ?({NUMBER})乗", r" ** \1"),
)
OPERATOR = r"(?:\*\*|//|[+\-*/%])"
# Beside an operator it is the last result; a message may also just begin with the operator.
PRONOUN = re.compile(
    r"(?i)(?:^(?:and|then|now)?(?! ?-\d)|\b(?:that|it|this|the result)\b|それ|これ|答え|結果)"
    rf"(?= ?{OPERATOR} ?[\d(])|(?<=[+\-*/] )(?:that\b|it\b|それ)"
)
ATOM = rf"(?:(?:sqrt)?\( ?-?)*+{NUMBER}(?:e[+-]?\d++)?"
# It begins where nothing to calculate stands before it. HTTP/2 and 10:30-11:00 are no sums.
SUM = re.compile(
    rf"(?i)(?<![A-Za-z0-9_.:(+*/%-])(?<![(+*/%-] )-?"
    rf"(?:{ATOM}(?:[)% ]*{OPERATOR}[ +-]*+{ATOM})++|sqrt\({NUMBER})[)% ]*(?![A-Za-z_:])"
)
KNOWN = rf"(?<![A-Za-z])(?i:{'|'.join(sorted(ZONES, key=len)[::-1])})(?![A-Za-z語])"
TIME = re.compile(
    r"(?i:\bwhat(?:'s|’s|s| is)?(?: the)?(?: current)? (?:time|date)\b(?! limit)(?: is it)?|"
    r"\bcurrent time\b|\btime (?:is it|now)\b|\bwhat day is (?:it|today)\b)|"
    rf"\b[Tt]ime (?=in (?:[A-Z]|{KNOWN}))|{KNOWN}(?: time\b|の?時間)|"
    r"何時(?!間)|時刻|日時|何曜日|今日は何日|[今在]の?時間"
)
# Beside the places known here, names that the tool may know: in Lisbon and Oslo, リスボンの時刻.
PLACE = re.compile(
    rf"({KNOWN})|\b(?i:it|time|now|today|date) in (?!the |my |{KNOWN})([\w/]+(?: [A-Z][a-z]+)*)|"
    r"(?:,|\band) ([A-Z][a-z]+(?: [A-Z][a-z]+)*)(?=[?.!,\n]|$| and\b)|"
    r"((?!現在|今|時刻)(?:[A-Z][\w/]{2,30}|[ァ-ー一-鿿]{2,12})) ?[のは](?:時[刻間]|何時)"
)
GO_ON = re.compile(
    r"\A(?:(?i:and|what about|how about|in|じゃあ|では)[,、 ]*)*"
    rf"(?={KNOWN}|(?<= )[A-Z][a-z]+(?: [A-Z]\w+)?\W*\Z)"
)
WAIT = re.compile(
    rf"\b(?i:wait|sleep|pause)(?: for| about)? (-?{NUMBER}) ?(m\b|min)?|"
    rf"(-?{NUMBER}) ?(?:秒|(分))間?(?:だけ|ほど)?[、 ]?待"
)
ASKING = re.compile(r"(?i)\b(?:what|how|why|where|which|explain|find)\b|とは|方法|使い方|設定|どう")


def read_requests(question: str, history: Sequence[Message]) -> list[tuple[str, dict[str, Any]]]:
    """Return the tools to call and their arguments: sums, times, waits, and what else is asked."""
    text = in_full(question, history)
    requests: list[tuple[str, dict[str, Any]]] = []
    for match in SUM.finditer(text):
        expression = match[0].strip()
        surplus = expression.count(")") - expression.count("(")
        expression = expression.removesuffix(")" * surplus).removeprefix("(" * -surplus)
        # One character too many lets the tool refuse a huge expression in its own words.
        requests.append(("calculate", {"expression": expression[: MAX_EXPRESSION_CHARS + 1]}))
    if TIME.search(text):
        names = [match[match.lastindex or 0] for match in PLACE.finditer(text)] or ["UTC"]
        zones = dict.fromkeys(ZONES.get(name.lower(), name) for name in names)
        requests += [("current_time", {"timezone": zone}) for zone in zones]
    for match in WAIT.finditer(text):
        seconds = float(match[1] or match[3]) * (60 if match[2] or match[4] else 1)
        # A number of 400 digits is infinite as a float, which JSON cannot carry.
        requests.append(("wait", {"seconds": min(seconds, 1e9)}))
    if not requests:
        return [("search_docs", {"query": " ".join(question.split())[:200]})]
    for pattern in (SUM, WAIT, PLACE, TIME):
        text = pattern.sub(" ", text)
    for clause in re.split(r"[.?!;,、。\n]+|\band\b", text):
        if ASKING.search(clause) and search_terms(clause):
            requests.append(("search_docs", {"query": " ".join(clause.split())[:200]}))
    return requests


def in_full(question: str, history: Sequence[Message]) -> str:
    """Return a message with operators for words and, from the thread, what it leaves unsaid."""
    text = normalised(question).strip()
    for pattern, replacement in REWRITES:
        text = re.sub(f"(?i){pattern}", replacement, text)
    if len(text) > MAX_FOLLOW_UP_CHARS:
        return text
    if isinstance(result := facts(history).get("result"), int | float):  # "times 2" is "42 * 2"
        text = PRONOUN.sub(f"({result})" if result < 0 else f"{result}", text)
    tools = [message.name for message in history if isinstance(message, ToolMessage)]
    return GO_ON.sub("What time is it in ", text) if tools[-1:] == ["current_time"] else text


def facts(messages: Sequence[Message]) -> dict[str, Any]:
    """Return what the tools last found, by name."""
    found: dict[str, Any] = {}
    for message in messages:
        if isinstance(message, ToolMessage) and message.status != "error":
            with suppress(ValueError, TypeError):
                found |= dict(json.loads(message.text))
    return found


# What needs no tool, from the thread alone. A group is named for what is said.
TALK = re.compile(
    r"(?i)(?P<help>|(?:please )?help(?: me)?|(?:hi|hello|hey|good (?:morning|evening))(?: there)?|"
    r"(?:.{0,20} )?what can you do.{0,20}|who are you|ヘルプ|こんにちは|.{0,8}何[がを]?でき.{0,8})|"
    r"(?P<thanks>(?:thanks|thank you).{0,20}|(?:どうも)?ありがとう.{0,8})|"
    r"(?P<no_more>(?:please )?(?:(?:tell|show) me )?more(?: about (?:it|that))?|go on|continue|"
    r"(?:もっと|さらに|もう少し)?(?:詳しく|続き|他には|ほかには)(?:教えて|お願い)?.{0,4})|"
    r"(?P<noted>(?:my (?:name|birthday|favou?rite \w+) is |remember |(?:私|僕)の[^は]{1,12}は).+)"
)
# What the pattern takes is how one asks; the words that are left are what one asks for.
RECALL = re.compile(
    r"(?i)what (?:did|have) i (?:asked|ask|said|say|told|tell|write)(?: you)?(?: before)?|"
    r"what(?:'s|’s| is| was) my (?=\w+(?: \w+)?$)|"
    r"(?:さっき|先ほど|前に|これまで)(?:私は)?何[をと](?:聞|言|書).{0,10}|"
    r"(?:私|僕)の(?=[^はの]{1,12}は(?:何|いつ|どこ|誰)?(?:ですか|でしたか|だっけ)?$)"
)


def talk(question: str, history: Sequence[Message], said: list[str], ja: bool) -> str:
    """Return an answer that needs no tool; empty when the question needs one."""
    text = normalised(question).strip(" \n.!?,、。~")
    if RECALL.search(text):
        asked = set(search_terms(RECALL.sub(" ", text)))
        found = [
            "> " + each[: 2 * MAX_PASSAGE_CHARS].replace("\n", "\n> ")
            for each in said
            if not asked or (asked <= set(search_terms(each)) and each.strip()[-1:] not in "??")
        ]
        return "\n\n".join([say("recall" if found else "no_recall", ja), *found[-3:]])
    kind = (match := TALK.fullmatch(text)) and match.lastgroup
    if kind == "no_more":
        answers = "\n\n".join(each.text for each in history if isinstance(each, AIMessage))
        hits = map(cited, facts(history).get("hits", ()))
        if left := [hit for hit in hits if hit not in answers]:
            return "\n\n".join([say("found", ja), *left])
    return say(kind, ja) if kind else ""


def cited(hit: dict[str, str]) -> str:
    """Return a hit as a quotation under its heading and source."""
    quoted = "> " + hit["passage"].replace("\n", "\n> ")
    return f"**{hit['heading']}** (`{hit['source']}`)\n\n{quoted}"


def told(message: Message, ja: bool) -> str:
    """Return the sentences for one tool's result or refusal."""
    match facts([message]):
        case {"expression": expression, "result": result}:
            return say("calculate", ja, expression, result)
        case {"timezone": zone, "time": time, "weekday": day}:
            name = zone.rsplit("/", 1)[-1].replace("_", " ")
            if ja:
                name = next(filter(JAPANESE.match, NAMES.get(zone, ())), name)
                day = "月火水木金土日"[datetime.fromisoformat(time).weekday()] + "曜日"
            return say("time", ja, name, time[11:16], day, time[:10], time[19:])
        case {"waited_s": seconds}:
            return say("wait", ja, seconds)
        case {"hits": []}:
            return say("none", ja)
        case {"hits": hits}:
            left = [say("more_left", ja, len(hits) - 2)] if len(hits) > 2 else []
            return "\n\n".join([say("found", ja), *map(cited, hits[:2]), *left])
    return say("refused", ja, message.text)


def say(key: str, ja: bool, *values: object) -> str:
    """Return a sentence of SAY in English or Japanese."""
    return SAY[key][ja].format(*values)


HELP_ENGLISH = """\
I am the **demo model**: offline, by plain rules, I use real tools. Ask for one thing or several:

- something in the documents, in their own words: “How do I change the port?”
- a calculation, “15% of 80”, then “double that”; or a slow tool, “wait 5 seconds”
- the time: “What time is it in Tokyo and London?”
- for a real model, start me with `OPENAI_API_KEY`, or `OPENAI_BASE_URL` for a server of your own"""
HELP_JAPANESE = """\
私は**デモモデル**です。オフラインで、決まった規則で、実際のツールを使います。いくつでも一度にどうぞ。

- ドキュメントの検索(そこにある言葉で): 「PORT の設定方法は?」
- 計算「80の15%」、続けて「それを2倍して」、時間のかかるツール「5秒待って」
- 時刻「東京とロンドンの時刻は?」
- 本物のモデルには `OPENAI_API_KEY` を、自分のサーバーなら `OPENAI_BASE_URL` を設定して起動"""
SAY = {
    "help": (HELP_ENGLISH, HELP_JAPANESE),
    "none": (
        "I found nothing about that in the documents; “What can you do?” shows what else I do.",
        "見つかりませんでした(英語の文書は英語で探します)。「何ができる?」でほかの例を示します。",
    ),
    "thanks": ("You are welcome.", "どういたしまして。"),
    "noted": ("I will remember that in this conversation.", "この会話の間、覚えておきます。"),
    "recall": ("You wrote earlier:", "前にこう書かれていました。"),
    "no_recall": ("You have not told me that here.", "この会話では、まだうかがっていません。"),
    "found": ("From the documents:", "ドキュメントからの引用です。"),
    "more_left": ("Say “tell me more” for {} more.", "「もっと詳しく」で、あと {} 件を示します。"),
    "no_more": ("I have nothing more; ask in other words.", "以上です。別の言葉で聞いてください。"),
    "calculate": ("`{}` = **{}**", "`{}` = **{}** です。"),
    "time": ("It is **{1}** in {0} ({2} {3}, UTC{4}).", "{0}は **{1}** です({3} {2}、UTC{4})。"),
    "wait": ("I waited {:g} s.", "{:g} 秒待ちました。"),
    "refused": ("That did not work: {}", "うまくいきませんでした。{}"),
    "no_tool": ("The tool for that is not bound here.", "そのためのツールがここにはありません。"),
}
