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
from datetime import datetime
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.messages import BaseMessage as Message
from langchain_core.messages.tool import ToolCall, tool_call
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
        chunks = [AIMessageChunk(content=piece) for piece in PIECE.findall(message.text)]
        calls, usage = message.tool_calls, message.usage_metadata
        last = AIMessageChunk(
            content="", tool_calls=calls, usage_metadata=usage, chunk_position="last"
        )
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number, chunk in enumerate([*chunks, last]):
            # Each piece has its own due time, so that a late one does not delay the rest. Without
            # a pace sleep(0) still lets other tasks run.
            due = start + number / self.tokens_per_s if self.tokens_per_s else start
            await asyncio.sleep(max(0, due - loop.time()))
            yield ChatGenerationChunk(message=chunk)


def reply(messages: Sequence[Message]) -> AIMessage:
    """Return the model's next message: sentences for the results of tools, else text or calls."""
    last = max((n for n, each in enumerate(messages) if isinstance(each, HumanMessage)), default=0)
    said = [str(each.text) for each in messages if isinstance(each, HumanMessage)] or [""]
    # A question without letters, such as 1 + 1, is in the language of the one before it.
    lettered = [text for text in said if re.search(r"[^\W\d_]", text)] or said
    ja = bool(JAPANESE.search(lettered[-1]))
    results = [describe(each, ja) for each in messages[last:] if isinstance(each, ToolMessage)]
    answer = "\n\n".join(results) or read(said[-1], messages[:last], ja)
    text, calls = (answer, []) if isinstance(answer, str) else ("", answer[:MAX_CALLS])
    pieces_in = sum(len(PIECE.findall(message.text)) for message in messages)
    pieces_out = len(PIECE.findall(text)) + len(calls)
    usage = {"input_tokens": pieces_in, "output_tokens": pieces_out}
    usage["total_tokens"] = pieces_in + pieces_out
    return AIMessage(text, tool_calls=calls, usage_metadata=usage)


# What a message asks for. Each pattern reads a text in a time that is linear in its length.

GREETING = r"(?:(?:hi|hello|hey|thanks|thank you|こんにちは|ありがとう)[,.!、。 ]+)?"
# The key of a line, and the messages that it answers, also after a greeting.
SMALL_TALK = {
    "thanks": r"(?:many )?thank(?:s| you)[\w ]{0,20}|(?:どうも)?ありがとう.{0,10}|どうも",
    "fine": r"(?:(?:no|yes|ok|okay|cool|great|nice|continue|bye)\W*)+|はい|いいえ|さようなら",
    "about": r"(?:hi|hello|hey|good \w+)(?: there| all)?|help(?: me)?|(?:who|how) are you"
    r"|what is (?:this|it)(?: project| server| app)?(?: for)?|what can (?:i|it) (?:ask|do)"
    r"|(?:what|which) (?:tools|are you|can you|do you).{0,20}"
    r"|こんにちは|こんばんは|おはよう.{0,5}|ヘルプ|使い方.{0,10}|.{0,6}(?:誰|何[がを]?でき).{0,10}"
    r"|(?:これ|このプロジェクト)は何.{0,10}|.{0,4}ツール(?:は何|が).{0,10}",
    "cannot": r"(?:please |can you |could you )*(?:write|translate|draw|tell me an?)\b.*"
    r"|.*(?:書いて|訳して|要約して|描いて)(?:ください|下さい)?",
}
NUMBER = r"(?<![\w.])(\d+(?:\.\d+)?)"  # not the 8 of utf8, nor the 3 of 1.2.3
# Words for arithmetic, and the operators that replace them.
REWRITES = {
    rf"{NUMBER} ?(?:%|percent) of ": r"\1 / 100 * ",
    rf"{NUMBER}の(\d+) ?%": r"\1 * \2 / 100",
    rf"\bdouble (that|it|{NUMBER})": r"\1 * 2",
    rf"\badd {NUMBER} (?:and|to) (?=\d)": r"\1 + ",
    r"[をの](\d+)倍": r" * \1",
    r"(?:\bplus|たす|足す) ?(?=\d)": "+ ",
    r"(?:\bminus|ひく|引く) ?(?=\d)": "- ",
    r"(?:\btimes |\bx |(?<=\d)x|かける ?|掛ける ?)(?=\d)": "* ",
    r"(?:\bdivided by|わる|割る) ?(?=\d)": "/ ",
    r"\bwait (?:for )?an? (?=sec|min|hour)": "wait 1 ",
    r"(\d{1,6}(?:秒|分|時間)).{0,2}待": r" wait \1 ",
    r"\^": "**",
}
# Two signs that a message means the earlier result: it begins with an operator, or a pronoun stands
# before an operator.
EARLIER = re.compile(r"(?:\A(?:and |then )*(?!-\d)|\b(?:that|it)|それ|これ) ?(?=[-+*/] ?\d)")
# A run of numbers and operators, then the letter or colon after it, if there is one. With a letter
# or a colon beside it a run is no sum: UTF-8, 10:30-11:00.
PART = r"(?:[\d()+\-*/]|\.(?=\d))"
RUN = re.compile(rf"(?<![A-Za-z_:.\d()+\-*/])({PART}(?: ?{PART})*)([A-Za-z_:]?)")
SUM = re.compile(r"\d[) ]*[-+*/][-+*/() ]*\d")
# `calculate` refuses these, with a sentence that says what it can do.
OTHER_SUM = re.compile(r"\d ?% off|\d (?:mod|%) \d|\b(?:root|factorial) of|\bsqrt\b|平方根|階乗")
UNITS = {"": 1, "秒": 1, "min": 60, "分": 60, "hour": 3600, "時間": 3600, "day": 86400}
UNITS |= {"week": 7 * 86400, "month": 30 * 86400, "year": 365 * 86400}
WAIT = re.compile(rf"\bwait (?:for )?(\d{{1,6}}(?:\.\d+)?) ?({'|'.join(list(UNITS)[1:])}|)")
TIME = re.compile(
    r"\b(?:what|current) (?:time|date)\b|\btime in\b|\bthe (?:time|date)(?: today|,? please)?\W*\Z"
    r"|\bwhat day is (?:it|today)\b|今日は?何日|何時(?!間)|時刻"
)
# The other cities are those of the time zones' names.
CITIES = {"東京": "Asia/Tokyo", "ロンドン": "Europe/London", "ニューヨーク": "America/New_York"}
CITIES |= {"パリ": "Europe/Paris", "北京": "Asia/Shanghai", "ソウル": "Asia/Seoul"}


def read(question: str, history: Sequence[Message], ja: bool) -> str | list[ToolCall]:
    """Return the tool calls that a question asks for, or the line that answers it."""
    text = unicodedata.normalize("NFKC", question).lower()
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text).translate(str.maketrans("×÷−", "*/-"))
    for pattern, replacement in REWRITES.items():
        text = re.sub(pattern, replacement, text)
    if EARLIER.search(text):
        earlier = [each for each in history if each.name == "calculate"]
        result = result_of(earlier[-1]).get("result") if earlier else None
        if result is None:
            return say("no_result", ja)
        text = EARLIER.sub(f"({result}) " if result < 0 else f"{result} ", text)
    for line, pattern in SMALL_TALK.items():
        if re.fullmatch(f"(?s){GREETING}(?:{pattern})", text.strip(" \n.?!,、。")):
            return say(line, ja)
    calls = [call("wait", seconds=float(n) * UNITS[unit]) for n, unit in WAIT.findall(text)]
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
        case {"timezone": zone, "time": time}:
            names = {zone: name for name, zone in CITIES.items()} if ja else {}
            name = names.get(zone, zone.rsplit("/", 1)[-1].replace("_", " "))
            told = say("time", ja, name, datetime.fromisoformat(time))
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


ABOUT = (
    """\
I am the **demo model** of this server. I need no key and no network: I read your message by plain
rules and call real tools (`search_docs`, `calculate`, `current_time`, `wait`). Try one of these:

- “How do I change the port?”
- “What is 15% of 80?”, and then “double that”
- “What time is it in Tokyo and London?”

""",
    """\
私はこのサーバーの**デモモデル**です。キーもネットワークも使わず、決まった規則でメッセージを読み、
本物のツール(`search_docs`、`calculate`、`current_time`、`wait`)を呼びます。たとえば:

- 「ポートの設定方法は?」
- 「80の15%は?」、続けて「それを2倍して」
- 「東京とロンドンの時刻は?」

""",
)
REAL_MODEL = (
    "With `OPENAI_API_KEY`, or `OPENAI_BASE_URL` for a server of your own, a real model answers.",
    "`OPENAI_API_KEY` か `OPENAI_BASE_URL` を設定すると、本物のモデルが答えます。",
)
LINES = {
    "about": (ABOUT[0] + REAL_MODEL[0], ABOUT[1] + REAL_MODEL[1]),
    "cannot": ("My rules cannot do that. " + REAL_MODEL[0], "できません。" + REAL_MODEL[1]),
    "thanks": ("You are welcome.", "どういたしまして。"),
    "fine": ("All right. Try “What can you do?”.", "わかりました。「何ができる?」もどうぞ。"),
    "no_result": ("Ask “What is 15% of 80?” first.", "先に「80の15%は?」と聞いてください。"),
    "none": (
        "I found nothing about that in the documents. Try “What can you do?”.",
        "ドキュメントには見つかりませんでした。「何ができる?」もどうぞ。",
    ),
    "found": ("From the documents:", "ドキュメントからの引用です。"),
    "calculate": ("`{}` = **{}**", "`{}` = **{}** です。"),
    "time": (
        "It is **{1:%H:%M}** in {0} ({1:%A %Y-%m-%d}, {1.tzinfo}).",
        "{0}は **{1:%H:%M}** です({1:%Y-%m-%d}、{1.tzinfo})。",
    ),
    "utc": (" Try a city or zone, such as Asia/Kolkata.", "Asia/Kolkata なども聞けます。"),
    "wait": ("I waited {:g} s.", "{:g} 秒待ちました。"),
    "refused": ("That did not work: {}", "うまくいきませんでした。{}"),
}
