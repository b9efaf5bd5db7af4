"""The offline stand-in for a model: it reads a message by rules and calls real tools.

The rules are a few patterns in English and Japanese. The last message becomes tool calls or one of
LINES, and the results of the tools become sentences. The graph around the model, the tool calls and
the streaming are those of any chat model.
"""

import asyncio
import functools
import json
import re
import unicodedata
import uuid
import zoneinfo
from collections.abc import AsyncIterator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.messages import BaseMessage as Message
from langchain_core.messages.tool import ToolCall, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable

MAX_CALLS = 8  # bounds what one message of 32,000 characters can start
MAX_QUERY_CHARS = 200  # what follows in a longer message is pasted text, not the question
MAX_QUOTED = 2  # a third hit is seldom what was meant

JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
# A stream's pieces, as a model's tokens: a word with the space after it, or three CJK characters.
PIECE = re.compile(r"[\u3000-\u9fff]{1,3}|[^\s\u3000-\u9fff]{1,24}\s*|\s+")


class DemoModel(BaseChatModel):
    """A chat model by rules; it streams ``tokens_per_s`` pieces a second, without pause at 0."""

    tokens_per_s: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "demo"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self  # Its rules know the tools.

    def _generate(self, messages: list[Message], *_: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=reply(messages))])

    async def _astream(self, messages: list[Message], *_: Any, **kwargs: Any) -> AsyncIterator[Any]:
        # In a thread: a long message takes milliseconds, and so do the names of the time zones.
        message = await asyncio.to_thread(reply, messages)
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number, chunk in enumerate(split(message)):
            # Each piece has its own due time, so that a late one does not delay the rest. Without
            # a pace sleep(0) still lets other tasks run.
            due = start + number / self.tokens_per_s if self.tokens_per_s else start
            await asyncio.sleep(max(0, due - loop.time()))
            yield ChatGenerationChunk(message=chunk)


def split(message: AIMessage) -> list[AIMessageChunk]:
    """Return the chunks in which a provider would stream ``message``; usage comes last."""
    chunks = [AIMessageChunk(content=piece) for piece in PIECE.findall(message.text)]
    for index, call in enumerate(message.tool_calls):
        args = json.dumps(call["args"], ensure_ascii=False)
        half = len(args) // 2
        # Name and id come with the first fragment alone, the index with each.
        first = tool_call_chunk(name=call["name"], args=args[:half], id=call["id"], index=index)
        second = tool_call_chunk(args=args[half:], index=index)
        chunks += [AIMessageChunk(content="", tool_call_chunks=[part]) for part in (first, second)]
    usage = message.usage_metadata
    return [*chunks, AIMessageChunk(content="", usage_metadata=usage, chunk_position="last")]


def reply(messages: Sequence[Message]) -> AIMessage:
    """Return the model's next message: sentences for the results of tools, else text or calls."""
    last = max((n for n, each in enumerate(messages) if isinstance(each, HumanMessage)), default=0)
    said = [str(each.text) for each in messages if isinstance(each, HumanMessage)]
    # A question without letters, such as 1 + 1, is in the language of the one before it.
    lettered = [text for text in said if re.search(r"[^\W\d_]", text)]
    ja = bool(lettered and JAPANESE.search(lettered[-1]))
    results = [each for each in messages[last:] if isinstance(each, ToolMessage)]
    text = "\n\n".join(describe(each, ja) for each in results)
    calls: list[ToolCall] = []
    if not results:
        answer = read(said[-1] if said else "", messages[:last])
        if isinstance(answer, str):
            text = say(answer, ja)
        else:
            calls = answer[:MAX_CALLS]
    pieces_in = sum(len(PIECE.findall(message.text)) for message in messages)
    pieces_out = len(PIECE.findall(text)) + 2 * len(calls)  # a call streams in two fragments
    usage = {"input_tokens": pieces_in, "output_tokens": pieces_out}
    usage["total_tokens"] = pieces_in + pieces_out
    return AIMessage(text, tool_calls=calls, usage_metadata=usage)


# What a message asks for. Each pattern reads a text in a time that is linear in its length.

# A greeting before a question.
GREETING = re.compile(
    r"\A(?:hi|hello|hey|thanks|thank you|こんにちは|ありがとう(?:ございます)?)[ ,.!、。]+"
    r"(?:and |but )?(?=.*(?:\?|\b(?:how|wh\w+|can)\b))"
)
# A whole message, and the key of the line that answers it.
SMALL_TALK = {
    r"(?:many )?(?:thanks|thank you).{0,30}|(?:どうも)?ありがとう.{0,10}|どうも": "thanks",
    r"(?:(?:no|yes|ok|okay|cool|great|nice|continue|(?:good)?bye)\W*)+": "fine",
    r"さようなら|はい|いいえ|了解.{0,5}|わかりました": "fine",
    r"(?:hi|hello|hey|good \w+)(?: there| all)?|help(?: me)?|(?:who|how) are you": "about",
    r"what is (?:this|it)(?: project| server| app)?(?: for)?|what can (?:i|it) (?:ask|do)": "about",
    r"what (?:are|can|do) you.{0,20}|(?:what|which) tools\b.{0,20}": "about",
    r"こんにちは|こんばんは|おはよう.{0,5}|ヘルプ|使い方.{0,10}": "about",
    r"(?:これ|このプロジェクト)は何.{0,10}|.{0,6}(?:誰|何[がを]?でき).{0,10}": "about",
    r".{0,4}ツール(?:は何|が).{0,10}": "about",
    r"(?:please |can you |could you )*(?:write|translate|draw|tell me an?)\b.*": "cannot",
    r".*(?:書いて|訳して|要約して|描いて)(?:ください|下さい)?": "cannot",
}
NUMBER = r"(?<![\w.])(\d+(?:\.\d+)?)"  # not the 8 of utf8, nor the 3 of 1.2.3
# Words for arithmetic, and the operators that replace them.
REWRITES = {
    rf"{NUMBER} ?(?:%|percent) of ": r"\1 / 100 * ",
    rf"{NUMBER}の(\d+) ?%": r"\1 * \2 / 100",
    rf"\bdouble (that|it|{NUMBER})": r"\1 * 2",
    r"[をの](\d+)倍": r" * \1",
    r"(?:\bplus|たす) ?(?=\d)": "+ ",
    r"(?:\bminus|ひく) ?(?=\d)": "- ",
    r"(?:\btimes |\bx |(?<=\d)x|かける ?)(?=\d)": "* ",
    r"(?:\bdivided by|わる) ?(?=\d)": "/ ",
    r"\bto the power of (?=\d)": "** ",
}
# Two signs that a message means the earlier result: it begins with an operator, or a pronoun stands
# before an operator.
EARLIER = re.compile(r"(?:\A(?:and |then )*(?!-\d)|\b(?:that|it)|それ|これ) ?(?=[-+*/] ?\d)")
# A run of numbers and operators, then the letter or colon after it, if there is one. With a letter
# or a colon beside it a run is no sum: UTF-8, 10:30-11:00.
PART = r"(?:[\d()+\-*/]|\.(?=\d))"
RUN = re.compile(rf"(?<![A-Za-z_:.\d()+\-*/])({PART}(?: ?{PART})*)([A-Za-z_:]?)")
SUM = re.compile(r"\d[) ]*[-+*/][-+*/() ]*\d")
# What `calculate` refuses, with a sentence that says what it can do.
OTHER_SUM = re.compile(r"\d ?% off|\b(?:root|factorial) of|\b(?:sqrt|sin|cos|log)\(|平方根|階乗")
UNITS = {"": 1, "秒": 1, "min": 60, "分": 60, "hour": 3600, "時間": 3600, "day": 86400, "日": 86400}
UNITS |= {"week": 7 * 86400, "month": 30 * 86400, "year": 365 * 86400}
WAIT = re.compile(
    r"\bwait (?:for )?(\d{1,6}(?:\.\d+)?) ?(min|hour|day|week|month|year|)"
    r"|(\d{1,6})(秒|分|時間(?=.{0,2}待)|日(?=.{0,2}待))"
)
TIME = re.compile(
    r"what time|\b(?:time|date) (?:is it|in|now)\b"
    r"|\bthe (?:time|date)(?: now| today| in\b|\W*(?:please\W*)?\Z)"
    r"|何時(?!間)|時刻"
)
# The other cities are those of the time zones' names.
CITIES = {"東京": "Asia/Tokyo", "ソウル": "Asia/Seoul", "北京": "Asia/Shanghai"}
CITIES |= {"ロンドン": "Europe/London", "パリ": "Europe/Paris", "ベルリン": "Europe/Berlin"}
CITIES |= {"ニューヨーク": "America/New_York", "シドニー": "Australia/Sydney"}


def read(question: str, history: Sequence[Message]) -> str | list[ToolCall]:
    """Return the tool calls that a question asks for, or the key of a line in LINES."""
    text = unicodedata.normalize("NFKC", question).lower()
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text).translate(str.maketrans("×÷−", "*/-"))
    text = text.replace("^", "**")
    for pattern, replacement in REWRITES.items():
        text = re.sub(pattern, replacement, text)
    if EARLIER.search(text):
        earlier = [each for each in history if each.name == "calculate"]
        result = result_of(earlier[-1]).get("result") if earlier else None
        if result is None:
            return "no_result"
        text = EARLIER.sub(f"({result}) " if result < 0 else f"{result} ", text)
    text = GREETING.sub("", text)
    for pattern, line in SMALL_TALK.items():
        if re.fullmatch(f"(?s){pattern}", text.strip(" \n.?!,、。")):
            return line
    calls = []
    for number, unit, number_ja, unit_ja in WAIT.findall(text):
        wanted = float(number or number_ja) * UNITS[unit or unit_ja]
        calls.append(call("wait", seconds=wanted))
    for run, after in RUN.findall(WAIT.sub(" ", text)):
        if SUM.search(run) and not after:
            calls.append(call("calculate", expression=run))
    if not calls and OTHER_SUM.search(text):
        calls.append(call("calculate", expression=text[:MAX_QUERY_CHARS]))
    if TIME.search(text):
        zones, city = cities()
        for zone in [zones[name] for name in city.findall(text.replace("_", " "))] or ["UTC"]:
            calls.append(call("current_time", timezone=zone))
    query = " ".join(question.split())[:MAX_QUERY_CHARS]
    return calls or [call("search_docs", query=query)]


def call(tool: str, **args: Any) -> ToolCall:
    return tool_call(name=tool, args=args, id=f"call_{uuid.uuid4().hex}")


@functools.cache
def cities() -> tuple[dict[str, str], re.Pattern[str]]:
    """Return the time zones by the name of their city, and a pattern of these names."""
    known = sorted(zoneinfo.available_timezones())
    zones = {zone.rsplit("/", 1)[-1].replace("_", " ").lower(): zone for zone in known} | CITIES
    names = "|".join(map(re.escape, sorted(zones, key=len, reverse=True)))
    return zones, re.compile(rf"(?<![a-z])(?:{names})(?![a-z])")


# What the model says.


def result_of(message: Message) -> dict[str, Any]:
    """Return the JSON object of a tool's message; empty for a failure."""
    try:
        result = json.loads(message.text)
    except ValueError:
        return {}
    return result if isinstance(result, dict) else {}


def describe(message: ToolMessage, ja: bool) -> str:
    """Return the sentences for one tool's result, or for its refusal."""
    match result_of(message):
        case {"expression": expression, "result": result}:
            return say("calculate", ja, expression, result)
        case {"timezone": zone, "time": time, "weekday": day}:
            name = zone.rsplit("/", 1)[-1].replace("_", " ")
            if ja:
                name = next((name for name in CITIES if CITIES[name] == zone), name)
            told = say("time", ja, name, time[11:16], day, time[:10], time[19:])
            return told if zone != "UTC" else told + say("utc", ja)
        case {"waited_s": seconds}:
            return say("wait", ja, seconds)
        case {"hits": []}:
            return say("none", ja)
        case {"hits": hits}:
            return "\n\n".join([say("found", ja), *map(quote, hits[:MAX_QUOTED])])
    return say("refused", ja, message.text)


def quote(hit: dict[str, str]) -> str:
    """Return a hit as a Markdown quotation under its heading and source."""
    quoted = "> " + hit["passage"].replace("\n", "\n> ")
    return f"**{hit['heading']}** (`{hit['source']}`)\n\n{quoted}"


def say(key: str, ja: bool, *values: object) -> str:
    """Return a line of LINES in English or Japanese."""
    return LINES[key][ja].format(*values)


ABOUT_ENGLISH = """\
I am the **demo model** of this server. I need no key and no network: I read your \
message by plain rules and call real tools: `search_docs`, `calculate`, `current_time` and `wait`. \
Try one of these:

- “How do I change the port?” searches the documents
- “What is 15% of 80?”, and then “double that”
- “What time is it in Tokyo and London?”

For a real model, set `OPENAI_API_KEY`, or `OPENAI_BASE_URL` for a server of your own, and start \
the server again."""
ABOUT_JAPANESE = """\
私はこのサーバーの**デモモデル**です。キーもネットワークも使わず、決まった規則でメッセージを読み、実際の\
ツール(`search_docs`、`calculate`、`current_time`、`wait`)を呼びます。たとえば:

- 「ポートの設定方法は?」でドキュメントを検索します
- 「80の15%は?」、続けて「それを2倍して」で計算します
- 「東京とロンドンの時刻は?」

本物のモデルを使うには、`OPENAI_API_KEY` か、自分のサーバーなら `OPENAI_BASE_URL` を設定して、\
サーバーを起動し直してください。"""
LINES = {
    "about": (ABOUT_ENGLISH, ABOUT_JAPANESE),
    "thanks": ("You are welcome.", "どういたしまして。"),
    "fine": (
        "All right. “What can you do?” shows what you can ask.",
        "わかりました。「何ができる?」で例を示します。",
    ),
    "cannot": (
        "I am only a demo model, so I cannot do that. A real model can: set `OPENAI_API_KEY` or "
        "`OPENAI_BASE_URL` and start the server again.",
        "私はデモモデルなので、それはできません。`OPENAI_API_KEY` か `OPENAI_BASE_URL` を設定して"
        "サーバーを起動し直すと、本物のモデルが答えます。",
    ),
    "no_result": (
        "There is no earlier result here. Ask “What is 15% of 80?” first, then “double that”.",
        "この会話にはまだ計算の結果がありません。先に「80の15%は?」と聞いてください。",
    ),
    "none": (
        "I found nothing about that in the documents. Try “How do I change the port?”, or ask "
        "“What can you do?”.",
        "ドキュメントには見つかりませんでした。「何ができる?」で、ほかの例を示します。",
    ),
    "found": ("From the documents:", "ドキュメントからの引用です。"),
    "calculate": ("`{}` = **{}**", "`{}` = **{}** です。"),
    "time": ("It is **{1}** in {0} ({2} {3}, UTC{4}).", "{0}は **{1}** です({3}、UTC{4})。"),
    "utc": (
        " I found no city that I know, so this is UTC. Ask for a time zone such as Asia/Kolkata.",
        "知っている都市名がないので UTC です。Asia/Kolkata のようなタイムゾーンでも聞けます。",
    ),
    "wait": ("I waited {:g} s.", "{:g} 秒待ちました。"),
    "refused": ("That did not work: {}", "うまくいきませんでした。{}"),
}
