"""The offline stand-in for a model: it reads a message by rules and calls real tools.

The rules are a few patterns in English and Japanese. From the last message they make tool calls or
one of LINES; from the results of the tools they make sentences. The graph around the model, the
tool calls and the streaming are those of any chat model.
"""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.messages import BaseMessage as Message
from langchain_core.messages.tool import ToolCall, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool

from builtin.tools import CJK, JAPANESE, PLACES, normalised, zone_names

MAX_CALLS = 8  # bounds what one message of 32,000 characters can start
MAX_QUERY_CHARS = 200  # what follows in a longer message is pasted text, not the question
MAX_QUOTED = 2  # a third hit is seldom what was meant

Request = tuple[str, dict[str, Any]]  # a tool's name and its arguments

# A stream's pieces, as a model's tokens: a word with the space after it, or three CJK characters.
PIECE = re.compile(rf"[{CJK}]{{1,3}}|[^\s{CJK}]{{1,24}}\s*|\s+")


class DemoModel(BaseChatModel):
    """A chat model by rules; it streams ``tokens_per_s`` pieces a second, without pause at 0."""

    tokens_per_s: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "demo"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Return this model with tools, which it calls by its rules, whatever ``tool_choice``."""
        names = [convert_to_openai_tool(each)["function"]["name"] for each in tools]
        return self.bind(bound=names, **kwargs)

    def _generate(self, messages: list[Message], *_: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=reply(messages, **kwargs))])

    async def _astream(self, messages: list[Message], *_: Any, **kwargs: Any) -> AsyncIterator[Any]:
        # In a thread: a long message takes milliseconds, and so do the names of the time zones.
        message = await asyncio.to_thread(reply, messages, **kwargs)
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


def reply(messages: Sequence[Message], bound: Collection[str] = (), **_: Any) -> AIMessage:
    """Return the model's next message: a text, or calls of the tools whose names are ``bound``.

    After the results of tools it is the sentences for them, else what the last question asks for.
    """
    humans = [i for i, message in enumerate(messages) if isinstance(message, HumanMessage)]
    last = humans[-1] if humans else 0
    said = [str(messages[i].text) for i in humans] or [""]
    # A question without letters, such as 1 + 1, is in the language of the one before it.
    lettered = [text for text in said if re.search(r"[^\W\d_]", text)] or [""]
    ja = bool(JAPANESE.search(lettered[-1]))
    results = [message for message in messages[last:] if isinstance(message, ToolMessage)]
    text = "\n\n".join(describe(message, ja) for message in results)
    calls: list[ToolCall] = []
    if not results:
        line, requests = read(said[-1], messages[:last])
        for name, args in requests[:MAX_CALLS]:
            if name in bound:
                calls.append({"name": name, "args": args, "id": f"call_{uuid.uuid4().hex}"})
        text = "" if calls else say(line or "cannot", ja)
    pieces_in = sum(len(PIECE.findall(message.text)) for message in messages)
    pieces_out = len(PIECE.findall(text)) + 2 * len(calls)  # a call streams in two fragments
    usage = {"input_tokens": pieces_in, "output_tokens": pieces_out}
    usage["total_tokens"] = pieces_in + pieces_out
    return AIMessage(text, tool_calls=calls, usage_metadata=usage)


# What a message asks for. Each pattern reads a text in a time that is linear in its length.

NUMBER = r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)"  # not the 8 of utf8, nor the 3 of 1.2.3
# Words for arithmetic, and the operators that replace them.
REWRITES = (
    (rf"{NUMBER} ?(?:%|percent) of ?(?=[\d(])", r"\1 / 100 * "),
    (rf"{NUMBER}の{NUMBER} ?%", r"\1 * \2 / 100"),
    (rf"\bdouble (that|it|{NUMBER})", r"\1 * 2"),
    (r"\b(?:plus|add) (?=[\d(])", "+ "),
    (r"\b(?:minus|subtract) (?=[\d(])", "- "),
    (r"\btimes (?=[\d(])", "* "),
    (r"\bdivided?(?: it| that)? by (?=[\d(])", "/ "),
    (rf"に{NUMBER}を足", r" + \1"),
    (rf"から{NUMBER}を引", r" - \1"),
    (rf"[をの]{NUMBER}倍", r" * \1"),
    (rf"を{NUMBER}で割", r" / \1"),
)
# Two signs that a message means the earlier result: it begins with an operator, or a pronoun stands
# before an operator.
EARLIER = re.compile(
    r"(?i)(?:\A(?:and |then |now )*(?!-\d)|\b(?:that|it|this)|それ|これ|答え) ?(?=[-+*/] ?[\d(])"
)
DATE = re.compile(r"(?<!\d)(?:\d{4}([-/])\d\d?\1\d\d?|0\d+-[\d-]+)")  # or a telephone number
# A run of numbers and operators, then the letter or colon after it, if there is one. With a letter
# or a colon beside it a run is no sum: UTF-8, 10:30-11:00.
PART = r"(?:[\d()+\-*/%]|\.(?=\d)|sqrt(?=\())"
RUN = re.compile(rf"(?<![A-Za-z_:.\d()+\-*/%])({PART}(?: ?{PART})*)([A-Za-z_:]?)")
SUM = re.compile(r"\d[) ]*[-+*/%][-+*/%() ]*(?:sqrt\()?[\d.]|sqrt\(")
WAIT = re.compile(
    r"(?i)\b(?:wait|sleep|pause)(?: for)? (-?\d+(?:\.\d+)?)( ?min)?"
    rf"|{NUMBER}(?:秒|(分))(?:間|だけ|ほど)?待"
)
TIME = re.compile(
    r"(?i)\b(?:what(?:'s|’s| is)?|current)(?: the)? (?:current )?(?:time|date|day)"
    r"(?: is it| in\b| now\b| today\b|\W*\Z)"
    r"|\btime (?:is it|in|now)\b|\bthe time\W*\Z|何時(?!間)|時刻|日時|何曜日"
)
PLACES_AFTER = re.compile(r"(?i)\b(?:it|time|date|day|now|today) in ([^.?!;\n]{1,100})")
PLACES_BEFORE = re.compile(r"([^\s、。]{1,40}?)[のは](?:今|いま|現在)?の?(?:時刻|何時|日時|何曜日)")
PLACE_BORDER = re.compile(r"(?i),|\band\b|\bor\b|と")
NO_PLACE = re.compile(r"(?i)\b(?:right now|now|today|please)\b|今日?|現在")
# A whole message and the key of the line that answers it.
SMALL_TALK = (
    (r"(?:many )?(?:thanks|thank you)(?: .{1,30})?|(?:どうも)?ありがとう.{0,10}", "thanks"),
    (r"(?:hi|hello|hey|good (?:morning|afternoon|evening))(?: there| all)?", "about"),
    (r"(?:please )?help(?: me)?|what can (?:you|i) (?:do|ask).{0,20}", "about"),
    (r"(?:who|what|how) are you.{0,20}|what is this(?: \w{1,20})?", "about"),
    (r"ヘルプ|こんにちは|こんばんは|これは何.{0,10}|.{0,6}(?:誰|何[がを]?でき).{0,10}", "about"),
    (r"(?:please |can you |could you )*(?:write|translate|draw|tell me an?)\b.*", "cannot"),
    (r".*(?:書いて|訳して|要約して|描いて)(?:ください|下さい)?", "cannot"),
)


def read(question: str, history: Sequence[Message]) -> tuple[str, list[Request]]:
    """Return the key of a line in LINES, or "" and the tool calls that the question asks for."""
    text = normalised(question).strip()
    for pattern, replacement in REWRITES:
        text = re.sub(f"(?i){pattern}", replacement, text)
    if EARLIER.search(text):
        result = earlier_result(history)
        if not result:
            return "no_result", []
        text = EARLIER.sub(f"{result} ", text)
    bare = text.strip(" \n.?!,、。")
    for pattern, line in SMALL_TALK:
        if re.fullmatch(f"(?is){pattern}", bare):
            return line, []
    last_tool = [message.name for message in history if isinstance(message, ToolMessage)][-1:]
    place = re.sub(r"(?i)\A(?:and |what about |how about |in |では|じゃあ)+", "", bare)
    place = place.removesuffix("は")
    if last_tool == ["current_time"] and place.lower() in zone_names():
        text = f"time in {place}"
    query = re.sub(r"(?i)\A(?:please )?search\b.{0,30}? for ", "", " ".join(question.split()))
    return "", find_requests(text) or [("search_docs", {"query": query[:MAX_QUERY_CHARS]})]


def find_requests(text: str) -> list[Request]:
    """Return the waits, sums and times that a text asks for."""
    requests: list[Request] = []
    for wait in WAIT.finditer(text):
        seconds = float(wait[1] or wait[3]) * (60 if wait[2] or wait[4] else 1)
        # A number of 400 digits is infinite as a float, which JSON cannot carry.
        requests.append(("wait", {"seconds": min(seconds, 1e9)}))
    text = DATE.sub(" ", WAIT.sub(" ", text))
    for run, after in RUN.findall(text):
        if SUM.search(run) and not after:
            requests.append(("calculate", {"expression": run}))
    if TIME.search(text):
        lists = ",".join(PLACES_AFTER.findall(text) + PLACES_BEFORE.findall(text))
        places = [name.strip() for name in PLACE_BORDER.split(NO_PLACE.sub("", lists))]
        for place in list(filter(None, places)) or ["UTC"]:
            zone = zone_names().get(place.lower(), place)
            requests.append(("current_time", {"timezone": zone}))
    return requests


def earlier_result(history: Sequence[Message]) -> str:
    """Return the last result of a calculation as part of an expression; empty if there is none."""
    for message in reversed(history):
        match result_of(message):
            case {"expression": _, "result": int() | float() as result}:
                return f"({result})" if result < 0 else f"{result}"
    return ""


def result_of(message: Message) -> dict[str, Any]:
    """Return the JSON object of a tool's message; empty for a failure and any other message."""
    if isinstance(message, ToolMessage) and message.status != "error":
        with suppress(ValueError):
            result = json.loads(message.text)
            return result if isinstance(result, dict) else {}
    return {}


# What the model says.


def describe(message: Message, ja: bool) -> str:
    """Return the sentences for one tool's result, or for its refusal."""
    match result_of(message):
        case {"expression": expression, "result": result}:
            return say("calculate", ja, expression, result)
        case {"timezone": zone, "time": time, "weekday": day}:
            name = zone.rsplit("/", 1)[-1].replace("_", " ")
            if ja:
                name = PLACES[zone].split()[0] if zone in PLACES else name
                day = "月火水木金土日"[datetime.fromisoformat(time).weekday()] + "曜日"
            return say("time", ja, name, time[11:16], day, time[:10], time[19:])
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
message by plain rules and call real tools. Try one of these:

- “How do I change the port?” searches the documents
- “What is 15% of 80?”, and then “double that”
- “What time is it in Tokyo and London?”

For a real model, set `OPENAI_API_KEY`, or `OPENAI_BASE_URL` for a server of your own, and start \
the server again."""
ABOUT_JAPANESE = """\
私はこのサーバーの**デモモデル**です。キーもネットワークも使わず、決まった規則でメッセージを読み、実際の\
ツールを呼びます。たとえば:

- 「ポートの設定方法は?」でドキュメントを検索します
- 「80の15%は?」、続けて「それを2倍して」で計算します
- 「東京とロンドンの時刻は?」

本物のモデルを使うには、`OPENAI_API_KEY` か、自分のサーバーなら `OPENAI_BASE_URL` を設定して、\
サーバーを起動し直してください。"""
LINES = {
    "about": (ABOUT_ENGLISH, ABOUT_JAPANESE),
    "thanks": ("You are welcome.", "どういたしまして。"),
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
    "time": ("It is **{1}** in {0} ({2} {3}, UTC{4}).", "{0}は **{1}** です({3} {2}、UTC{4})。"),
    "wait": ("I waited {:g} s.", "{:g} 秒待ちました。"),
    "refused": ("That did not work: {}", "うまくいきませんでした。{}"),
}
