"""What `runs.redis` asks of Redis: every command with its keys, and the scripts, in Lua.

Each command uses keys of one hash tag, as Redis Cluster wants it, and does no harm twice.
"""

from __future__ import annotations

import hashlib
from typing import Any

Command = tuple[Any, ...]

LEASE_MS = 3000

APPEND = """
local length, first, count = redis.call('XLEN', KEYS[1]), tonumber(ARGV[2]), #ARGV - 4
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[1] then return 0 end
if length < first or length > first + count then return 0 end
if length > first and ARGV[1] == '' then return 0 end
local now = redis.call('TIME')
local id = string.format('-%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
for n = length + 1, first + count do
  local asked = n == 1 and {'asked', ARGV[4]} or {}
  redis.call('XADD', KEYS[1], n .. id, 'frame', ARGV[4 + n - first], unpack(asked))
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""

RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local wishes = redis.call('HGETALL', KEYS[2])
redis.call('DEL', KEYS[2])
return wishes
"""

WISH = """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return redis.call('PEXPIRE', KEYS[1], ARGV[3])
"""

CLAIM = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[2] then return holder end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return ARGV[1]
"""

RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1])"

SINCE = """
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('SET', KEYS[1], string.format('%.0f', now), 'NX')
return now - redis.call('GET', KEYS[1])
"""

SCRIPTS = APPEND, RENEW, WISH, CLAIM, RELEASE, SINCE
SHA = {text: hashlib.sha1(text.encode()).hexdigest() for text in SCRIPTS}


def append(
    run_id: str, owner: str, after: int, expires_ms: int, frames: list[bytes], asked: str = ""
) -> Command:
    """Append the frames that follow event ``after``; 1 if the log has them.

    ``owner`` is who has to own the run; "" if nobody may. An owner may send frames that the log
    has already, since it alone writes. ``asked`` is stored with the first event.
    """
    keys = log_of(run_id), owner_of(run_id)
    return _script(APPEND, *keys, arguments=(owner, after, expires_ms, asked, *frames))


def look(run_id: str, after: int) -> tuple[Command, Command]:
    """Whether the run has an owner; the entries that follow event ``after``.

    In this order: a log without an owner has everything that its owner wrote.
    """
    return ("EXISTS", owner_of(run_id)), ("XRANGE", log_of(run_id), after + 1, "+")


def look_at_end(run_id: str) -> tuple[Command, Command]:
    """Whether the run has an owner; the last entry of its log."""
    return ("EXISTS", owner_of(run_id)), ("XREVRANGE", log_of(run_id), "+", "-", "COUNT", 1)


def own(run_id: str, owner: str) -> Command:
    return "SET", owner_of(run_id), owner, "PX", LEASE_MS


def disown(run_id: str, owner: str) -> Command:
    return _script(RELEASE, owner_of(run_id), arguments=(owner,))


def renew(run_id: str, owner: str) -> Command:
    """Renew the lease and take the wishes, names and values; nil if the lease has run out."""
    keys = owner_of(run_id), f"chat:{{{run_id}}}:wish"
    return _script(RENEW, *keys, arguments=(owner, LEASE_MS))


def wish(run_id: str, name: str, value: str) -> Command:
    return _script(WISH, f"chat:{{{run_id}}}:wish", arguments=(name, value, LEASE_MS))


def claim(name: str, run_id: str, void: str, expires_ms: int) -> Command:
    """The run that holds the name: this one, if no run did, or only ``void``."""
    return _script(CLAIM, key_of(name), arguments=(run_id, void, expires_ms))


def holder(name: str) -> Command:
    return "GET", key_of(name)


def release(name: str, run_id: str) -> Command:
    return _script(RELEASE, key_of(name), arguments=(run_id,))


def age() -> Command:
    """For how many ms this Redis has remembered."""
    return _script(SINCE, "chat:since", arguments=())


def start() -> Command:
    """Count a Redis without memory as an old one: a server that starts has no runs from before."""
    return "SET", "chat:since", 0, "NX"


def check() -> Command:
    """A write, which a full Redis refuses."""
    return "SET", "chat:check", "", "PX", 1


def log_of(run_id: str) -> str:
    return f"chat:{{{run_id}}}:log"


def owner_of(run_id: str) -> str:
    return f"chat:{{{run_id}}}:owner"


def key_of(name: str) -> str:
    return f"chat:name:{{{name}}}"


def _script(text: str, *keys: str, arguments: tuple[Any, ...]) -> Command:
    return ("EVALSHA", SHA[text], len(keys), *keys, *arguments)
