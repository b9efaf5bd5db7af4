"""Settings: environment variables and flags, each checked once, at the start.

Standard library alone.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit

VERSION = "0.2.0"


class SettingError(ValueError):
    """A setting has an invalid value; the text is one line for a person."""


class Kind(NamedTuple):
    """A kind of setting: what it wants, in words, and a function that reads its text.

    The function raises ValueError if the text is invalid.
    """

    wants: str
    read: Callable[[str], Any]
    secret: bool = False


def _matching(pattern: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return read


def _number(
    lowest: float = 0, highest: float = sys.float_info.max, whole: bool = False
) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = int(text) if whole else float(text)
        # NaN fails the comparison, so it is refused.
        if not text.isascii() or "_" in text or not lowest <= value <= highest:
            raise ValueError
        return int(value) if float(value).is_integer() else value

    return read


def _list_of(pattern: str) -> Callable[[str], frozenset[str]]:
    read = _matching(pattern)
    return lambda text: frozenset(read(part.strip().lower()) for part in text.split(","))


def _path(text: str) -> str:
    if not os.path.exists(text):
        raise ValueError
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    if not re.fullmatch("https?://[!-~]+", text) or not parts.hostname or parts.port == 0:
        raise ValueError
    return text


NAME = Kind("a name", str)
SECRET = Kind("visible ASCII characters", _matching("[!-~]+"), secret=True)
PORT = Kind("a whole number from 0 to 65535", _number(0, 65535, whole=True))
COUNT = Kind("a whole number above 0", _number(1, whole=True))
RATE = Kind("a number, 0 or more", _number())
SECONDS = Kind("a number of seconds, 0 or more", _number())
ENDLESS = Kind("a number of seconds, 0 or more, or inf", _number(highest=math.inf))
ABOVE_0 = Kind("a number of seconds above 0", _number(sys.float_info.min))
URL = Kind("an http or https URL", _url)
PATH = Kind("a folder or file that exists", _path)
# A password may stand in the URL of Redis or a database.
REDIS = Kind(
    "a redis, rediss or unix URL", _matching(r"(rediss?://[^\s/]|unix:///)\S*"), secret=True
)
DATABASE = Kind(
    "sqlite:///file or postgresql://…",
    _matching(r"sqlite:///\S+|postgres(ql)?://\S+"),
    secret=True,
)
ORIGINS = Kind(
    "origins such as https://example.com, separated by commas, or *",
    _list_of(r"\*|[a-z][a-z0-9+.-]*://[^/\s?#@]+"),
)
HOSTS = Kind(
    "host names without port, separated by commas, or *",
    _list_of(r"\*|\[[0-9a-f:.]+\]|[a-z0-9._-]+"),
)
HEADER = Kind("the name of a header", _matching("[A-Za-z0-9-]+"))
LEVEL = Kind("DEBUG, INFO, WARNING or ERROR", _matching("(?i)DEBUG|INFO|WARNING|ERROR"))


def setting(default: Any, kind: Kind, about: str) -> Any:
    """Return the dataclass field of a setting."""
    return field(default=default, metadata={"kind": kind, "about": about})


@dataclass
class Settings:
    """All settings: each is an environment variable in capitals, and a flag, which wins."""

    host: str = setting("127.0.0.1", NAME, "address to listen on")
    port: int = setting(8000, PORT, "port to listen on; 0: any free one")
    agent: str = setting("", NAME, "your own graph, module:attribute; empty: the built-in agent")
    openai_api_key: str = setting("", SECRET, "key of the model")
    openai_base_url: str = setting("", URL, "OpenAI-compatible server")
    openai_model: str = setting("gpt-5-mini", NAME, "model to ask for there")
    docs_dir: str = setting("", PATH, "what search_docs searches; empty: the README")
    demo_tokens_per_s: float = setting(50, RATE, "pace of the demo model; 0: no pause")
    cors_origins: frozenset[str] = setting(
        frozenset({"http://localhost:3000"}), ORIGINS, "other origins that may call"
    )
    api_token: str = setting("", SECRET, "bearer token for /api/")
    allowed_hosts: frozenset[str] = setting(
        frozenset(), HOSTS, "names of this server; empty: localhost alone, if HOST is loopback"
    )
    user_header: str = setting("", HEADER, "header with the user's name, which a proxy sets")
    heartbeat_s: float = setting(15, ABOVE_0, "seconds of silence before a heartbeat")
    run_timeout_s: float = setting(120, ABOVE_0, "seconds that a run may take")
    send_timeout_s: float = setting(
        30, ABOVE_0, "seconds until a reader that takes nothing is dropped"
    )
    disconnect_grace_s: float = setting(10, ENDLESS, "seconds that a run goes on without a reader")
    shutdown_grace_s: float = setting(5, SECONDS, "seconds that running runs get at shutdown")
    run_ttl_s: float = setting(120, SECONDS, "seconds that an ended run is kept")
    max_runs: int = setting(100, COUNT, "runs at once")
    max_run_bytes: int = setting(4194304, COUNT, "bytes of a run's events")
    max_body_bytes: int = setting(4194304, COUNT, "bytes of a request's body")
    max_threads: int = setting(1000, COUNT, "conversations in the server's memory")
    redis_url: str = setting("", REDIS, "Redis that keeps the runs, for several servers")
    database_url: str = setting("", DATABASE, "database that keeps the threads")
    log_level: str = setting("INFO", LEVEL, "how much is logged")

    @property
    def hosts(self) -> frozenset[str]:
        """The host names that a request may ask for; ``*`` for all."""
        local = frozenset({"localhost", "127.0.0.1", "[::1]"})
        try:
            loopback = ip_address(self.host).is_loopback
        except ValueError:
            loopback = self.host.lower() == "localhost"
        return self.allowed_hosts or (local if loopback else frozenset("*"))


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line each."""

    def error(self, message: str) -> Any:
        raise SettingError(message)


def read_settings(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Return the settings; an empty value counts as unset, and a flag wins over a variable.

    Raises SettingError with one line that names the setting, what it wants and what it got.
    """
    parser = Parser(
        description="Stream a LangGraph agent's runs as Server-Sent Events. Each flag is also an "
        "environment variable: --max-runs is MAX_RUNS.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=VERSION)
    for each in fields(Settings):
        default = each.default
        shown = ", ".join(default) if isinstance(default, frozenset) else default
        about = f"{each.metadata['about']} [{shown}]" if shown != "" else each.metadata["about"]
        parser.add_argument(_flag(each.name), metavar=each.name.upper(), help=about)
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        # Not its value, which may be a secret behind a misspelt flag.
        raise SettingError(f"{unknown[0].partition('=')[0]} is no setting; --help lists them")
    flags = vars(known)
    values = {}
    for each in fields(Settings):
        flag, variable = flags[each.name], each.name.upper()
        name = variable if flag is None else _flag(each.name)
        text = environ.get(variable, "") if flag is None else flag
        kind: Kind = each.metadata["kind"]
        if text:
            try:
                values[each.name] = kind.read(text)
            except ValueError:
                # A URL with an @ may have a password in it.
                got = "something else" if kind.secret or "@" in text else repr(text)
                raise SettingError(f"{name} wants {kind.wants}, got {got}") from None
    return Settings(**values)


def misspelt(environ: Iterable[str]) -> list[tuple[str, str]]:
    """Return variables that are nearly named as a setting, each with that setting's name."""
    names = [each.name.upper() for each in fields(Settings)]
    close = {name: get_close_matches(name, names, 1, cutoff=0.85) for name in environ}
    return [(name, found[0]) for name, found in close.items() if found and name not in names]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
