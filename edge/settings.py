"""Settings: environment variables and flags, each checked once, at the start.

Standard library alone.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property, partial
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from events import SettingError

VERSION = "0.2.0"


class Kind(NamedTuple):
    """A kind of setting: what it wants, in words; the pattern of its text; a further check."""

    wants: str
    pattern: str
    fits: Callable[[str], object] = bool
    secret: bool = False


NUMBER = r"[0-9]{0,9}(\.[0-9]{1,9})?"
ORIGIN = r"(\*|[a-z][a-z0-9+.-]*://[^\s/?#@,]+)"
HOST_NAME = r"(\*|\[[0-9a-f:.]+\]|[a-z0-9._-]+)"

NAME = Kind("a name", "(?s).+")
ADDRESS = Kind("an address or a host name", "[!-~]+")
SECRET = Kind("visible ASCII characters", "[!-~]+", secret=True)
PORT = Kind("a whole number from 0 to 65535", "[0-9]{1,5}", lambda text: int(text) < 65536)
COUNT = Kind("a whole number above 0", "0*[1-9][0-9]{0,17}")
RATE = Kind("a number, 0 or more", NUMBER)
SECONDS = Kind("a number of seconds, 0 or more", NUMBER)
ENDLESS = Kind("a number of seconds, 0 or more, or inf", f"{NUMBER}|inf")
ABOVE_0 = Kind("a number of seconds above 0", f"(?=.*[1-9]){NUMBER}")
# An impossible port raises ValueError.
URL = Kind("an http or https URL", r"https?://[\w[][!-~]*", lambda text: urlsplit(text).port != 0)
PATH = Kind("a folder or file that exists", "(?s).+", os.path.exists)
ORIGINS = Kind(
    "origins such as https://example.com, separated by commas, or *",
    rf"(?i){ORIGIN}(\s*,\s*{ORIGIN})*",
)
HOSTS = Kind(
    "host names without port, separated by commas, or *", rf"(?i){HOST_NAME}(\s*,\s*{HOST_NAME})*"
)
HEADER = Kind("the name of a header", "[A-Za-z0-9-]+")
LEVEL = Kind("DEBUG, INFO, WARNING or ERROR", "(?i)debug|info|warning|error")
# The URL of Redis or a database may have a password in it.
REDIS = Kind("a redis, rediss or unix URL", r"(rediss?://[^\s/]|unix:///)\S*", secret=True)
DATABASE = Kind(
    "sqlite:///file or postgresql://…", r"(sqlite:///|postgres(ql)?://)\S+", secret=True
)


def setting(default: Any, kind: Kind, about: str) -> Any:
    """Return the dataclass field of a setting."""
    return field(default=default, metadata={"kind": kind, "about": about})


@dataclass
class Settings:
    """All settings: each is an environment variable in capitals, and a flag, which wins."""

    host: str = setting("127.0.0.1", ADDRESS, "address to listen on")
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
    send_timeout_s: float = setting(30, ABOVE_0, "seconds until a stalled reader is dropped")
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

    @cached_property
    def hosts(self) -> frozenset[str]:
        """The host names that a request may ask for; ``*`` for all."""
        local = frozenset({"localhost", "127.0.0.1", "[::1]"})
        try:
            loopback = ip_address(self.host).is_loopback
        except ValueError:
            loopback = self.host.lower() == "localhost"
        return self.allowed_hosts or (local if loopback else frozenset("*"))


def read_settings(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Return the settings; an empty value counts as unset, and a flag wins over a variable.

    Raises SettingError with one line that names the setting, what it wants and what it got.
    """
    parser = argparse.ArgumentParser(
        description="Stream a LangGraph agent's runs as Server-Sent Events. Each flag is also an "
        "environment variable: --max-runs is MAX_RUNS.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--version", action="version", version=VERSION)
    for each in fields(Settings):
        default: Any = each.default
        shown = ", ".join(default) if isinstance(default, frozenset) else default
        parser.add_argument(
            _flag(each),
            metavar=each.name.upper(),
            help=each.metadata["about"] + (f" [{shown}]" if shown != "" else ""),
            # argparse reads a default that is text as it reads a flag's text.
            default=environ.get(each.name.upper()) or default,
            type=partial(_read, each),
        )
    try:
        known, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise SettingError(str(error)) from None
    if unknown:
        # Not its value, which may be a secret behind a misspelt flag.
        raise SettingError(f"{unknown[0].partition('=')[0]} is no setting; --help lists them")
    return Settings(**vars(known))


def _flag(setting: Field[Any]) -> str:
    return "--" + setting.name.replace("_", "-")


def _read(setting: Field[Any], text: str) -> Any:
    """Return the value that a text stands for. Raises SettingError."""
    kind: Kind = setting.metadata["kind"]
    if text == "":
        return setting.default
    with suppress(ValueError):
        if re.fullmatch(kind.pattern, text) and kind.fits(text):
            match setting.default:
                case frozenset():
                    return frozenset(each.strip() for each in text.lower().split(","))
                case int() | float():
                    return int(text) if text.isdecimal() else float(text)
            return text
    # A URL with an @ may have a password in it.
    got = "something else" if kind.secret or "@" in text else repr(text)
    what = f"{setting.name.upper()} wants {kind.wants}, got {got}"
    raise SettingError(f"{what} (as a flag: {_flag(setting)})")


def misspelt(environ: Iterable[str]) -> list[tuple[str, str]]:
    """Return variables that are nearly named as a setting, each with that setting's name."""
    names = [each.name.upper() for each in fields(Settings)]
    close = {name: get_close_matches(name, names, 1, cutoff=0.85) for name in environ}
    return [(name, found[0]) for name, found in close.items() if found and name not in names]
