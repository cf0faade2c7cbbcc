"""The state store in Redis (or Valkey): a single server or Sentinel, with TLS and ACL users.

A change under a lease is one Lua script, so that checking the epoch and writing are one atomic step. A stream's
keys share a hash tag. Leases expire by the server's clock.

Redis replicates asynchronously: an acknowledged write can be lost in a failover. ``state.replicas`` makes each
write wait until that many replicas have it (``WAIT``), which makes this less likely.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

import redis
from redis.client import Pipeline

from engine.config.renewal import renewed_state
from engine.config.tree import StateConfig
from engine.core.naming import is_split
from engine.errors import HeadraceError, LeaseLostError, TransientError, url_without_password
from engine.owner import this_owner
from engine.state.known import Known, log_restored, lost_record, own_fields
from engine.state.redis_connection import TIMEOUT_S, WAIT_TIMEOUT_MS, connect
from engine.state.replies import is_refused, translated
from engine.state.seam import Acquired, HeldElsewhere, Lease

_TEN_YEARS_MS = 10 * 365 * 86_400_000
_DONE, _BEHIND = 1, 2
_T = TypeVar("_T")

log = logging.getLogger("headrace")

# KEYS: lease, record. ARGV: owner, lease ttl in ms, owner to replace, record ttl in ms, minimum epoch.
# Replies: -1, epoch: below the minimum. 0, epoch, holder, ms left: held. 1, epoch, record: ours.
_ACQUIRE = """
local epoch = tonumber(redis.call('HGET', KEYS[2], '_epoch') or '0')
if epoch < tonumber(ARGV[5]) then
    return {-1, epoch}
end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and holder ~= ARGV[3] then
    return {0, epoch, holder, redis.call('PTTL', KEYS[1])}
end
redis.call('HSET', KEYS[2], '_epoch', epoch + 1, '_owner', ARGV[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {1, epoch + 1, redis.call('HGETALL', KEYS[2])}
"""
# The start of every fenced script. ARGV: owner, epoch, record ttl in ms, the revision that we know or "", ...
# Replies: 0, epoch, owner: not ours. 1: done. 2: nothing written, the record lacks writes of ours.
_FENCE = """
local epoch, owner, revision = unpack(redis.call('HMGET', KEYS[2], '_epoch', '_owner', '_revision'))
if epoch ~= ARGV[2] or owner ~= ARGV[1] then
    return {0, tonumber(epoch or '0'), owner or ''}
end
revision = tonumber(revision or '0')
local known = tonumber(ARGV[4]) or revision
"""
# ARGV: ..., lease ttl in ms.
_RENEW = (
    _FENCE
    + """
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {revision < known and 2 or 1}
"""
)
_RELEASE = (
    _FENCE
    + """
redis.call('DEL', KEYS[1])
return {1}
"""
)
# ARGV: ..., 1 for the whole record, number of pairs, name, value, ..., name, ...
# A write whose answer was lost is repeated, and its first attempt may reach the server long after later writes: it
# then counts as done. Every write writes, even what is already there, so that WAIT has something to wait for.
_WRITE = (
    _FENCE
    + """
if revision < known and ARGV[5] == '0' then
    return {2}
end
if revision > known + 1 then
    return {1}
end
if ARGV[5] == '1' then
    for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
        if name:sub(1, 1) ~= '_' then
            redis.call('HDEL', KEYS[2], name)
        end
    end
end
local last = 6 + 2 * tonumber(ARGV[6])
redis.call('HSET', KEYS[2], '_revision', known + 1)
for i = 7, last, 2 do
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
end
for i = last + 1, #ARGV do
    redis.call('HDEL', KEYS[2], ARGV[i])
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {1}
"""
)
# KEYS: document. ARGV: version, text. If the same is already there, an attempt whose answer was lost wrote it.
_WRITE_SHARED = """
local version = tonumber(redis.call('HGET', KEYS[1], 'version') or '0')
local written = version == tonumber(ARGV[1]) and redis.call('HGET', KEYS[1], 'text') == ARGV[2]
if version ~= tonumber(ARGV[1]) - 1 and not written then
    return 0
end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'text', ARGV[2])
return 1
"""


class RedisStore:
    """See ``engine.state.seam.StateStore``. Not for use by several threads at once."""

    def __init__(self, config: StateConfig, *, read_only: bool = False) -> None:
        self._config = config
        self._read_only = read_only
        self._prefix = config.prefix
        self._index = f"{config.prefix}:streams"
        self._ttl_ms = int(config.ttl * 1000)
        self._client: redis.Redis | None = None
        self._known = Known()
        self._worked: set[bool] = set()  # whether a read, and whether a write

    def acquire(
        self, stream: str, owner: str, ttl_s: float, *, replacing: str = "", at_least: int = 0
    ) -> Acquired | HeldElsewhere:
        """Take the lease if it is free, expired, already ours, or held by ``replacing``."""

        operation, known = f"acquire the lease of {stream}", max(at_least, self._known.epoch(stream))
        arguments = (owner, int(ttl_s * 1000), replacing, self._record_ttl_ms(stream), known)

        def ask(batch: Pipeline) -> None:
            batch.sadd(self._index, stream)
            batch.eval(_ACQUIRE, 2, *self._keys(stream), *arguments)

        is_new, (code, epoch, *rest) = self._change(operation, ask)
        if code < 0:
            raise lost_record(operation, stream, known, epoch)
        if is_new and epoch > 1:
            self._rebuild_index()
        if code == 0:
            self._known.saw(stream, epoch)
            return HeldElsewhere(rest[0], max(rest[1], 0) / 1000)
        lease, (flat,) = Lease(stream, owner, epoch), rest
        return Acquired(lease, self._known.acquired(lease, dict(zip(flat[::2], flat[1::2], strict=True))))

    def renew(self, lease: Lease, ttl_s: float) -> None:
        """Keep the lease for ``ttl_s`` more seconds."""
        operation = f"renew the lease of {lease.stream}"
        if self._change(operation, lambda batch: batch.sadd(self._index, lease.stream)) == [1]:
            self._rebuild_index()
        if self._fenced(operation, _RENEW, lease, int(ttl_s * 1000)) == _BEHIND:
            self._restore(operation, lease, {}, ())

    def release(self, lease: Lease) -> None:
        """Give the lease back; does nothing if it is no longer ours."""
        with suppress(LeaseLostError):
            self._fenced(f"release the lease of {lease.stream}", _RELEASE, lease)
        self._known.dropped(lease)

    def write(self, lease: Lease, put: Mapping[str, str], remove: Sequence[str] = ()) -> None:
        """Set and remove fields in one atomic step."""
        operation = f"write the record of {lease.stream}"
        if self._write(operation, lease, put, remove) == _BEHIND:
            self._restore(operation, lease, put, remove)

    def _restore(self, operation: str, lease: Lease, put: Mapping[str, str], remove: Sequence[str]) -> None:
        """Write the whole record after the server has lost part of it; no other owner has written it since."""
        log_restored(lease.stream)
        self._write(operation, lease, self._known.fields_with(lease, put, remove), remove, whole=True)

    def _write(
        self, operation: str, lease: Lease, put: Mapping[str, str], remove: Sequence[str], *, whole: bool = False
    ) -> int:
        pairs = [part for item in put.items() for part in item]
        code = self._fenced(operation, _WRITE, lease, int(whole), len(put), *pairs, *remove)
        if code == _DONE:
            self._known.wrote(lease, put, remove)
        return code

    def read_all(self) -> dict[str, tuple[dict[str, str], str]]:
        """Every stream's fields and the current holder of its lease."""

        def act(client: redis.Redis) -> Any:
            names = sorted(cast("set[str]", client.smembers(self._index)) or self._rebuild_index())
            with client.pipeline(transaction=False) as batch:
                for stream in names:
                    lease, record = self._keys(stream)
                    batch.hgetall(record).get(lease)
                replies = batch.execute()
            pairs = zip(names, replies[::2], replies[1::2], strict=True)
            return {stream: (own_fields(fields), holder or "") for stream, fields, holder in pairs if fields}

        return self._run("read the state", act)  # type: ignore[no-any-return]

    def forget(self, streams: Collection[str]) -> None:
        """Remove the records and leases of these streams, if any."""

        def ask(batch: Pipeline) -> None:
            # One command each: a cluster refuses a command with keys in several slots.
            for stream in streams:
                batch.delete(*self._keys(stream))
            batch.srem(self._index, *streams)

        if streams:
            self._change(f"forget {len(streams)} streams", ask)
            self._known.forgot(streams)

    def announce(self, owner: str, text: str, ttl_s: float) -> None:
        """Let other engines see ``text`` as what this one says of itself; "" takes it back."""

        def ask(batch: Pipeline) -> None:
            if text:
                batch.set(self._engine(owner), text, px=int(ttl_s * 1000))
                batch.sadd(self._engines, owner)
            else:
                batch.delete(self._engine(owner))
                batch.srem(self._engines, owner)

        self._change("announce this engine", ask)

    def announced(self) -> dict[str, str]:
        """What each living engine says of itself, by owner."""

        def act(client: redis.Redis) -> dict[str, str]:
            owners = sorted(cast("set[str]", client.smembers(self._engines)))
            with client.pipeline(transaction=False) as batch:
                for owner in owners:
                    batch.get(self._engine(owner))
                return {owner: text or "" for owner, text in zip(owners, batch.execute(), strict=True)}

        found: dict[str, str] = self._run("see the other engines", act)
        if not self._read_only and (gone := [owner for owner, text in found.items() if not text]):
            self._run(
                "forget engines that are gone", lambda client: client.srem(self._engines, *gone), writes=True
            )
        return {owner: text for owner, text in found.items() if text}

    def read_shared(self, name: str) -> tuple[int, str]:
        """A shared document's version and text."""
        version, text = self._run(f"read {name}", lambda c: c.hmget(self._shared(name), ["version", "text"]))
        return int(version or 0), text or ""

    def write_shared(self, name: str, version: int, text: str) -> bool:
        """Store ``text`` as ``version`` if the current version is the one before; whether it is stored now."""

        def ask(batch: Pipeline) -> None:
            batch.eval(_WRITE_SHARED, 1, self._shared(name), version, text)

        (written,) = self._change(f"write {name}", ask)
        return bool(written)

    def read_all_shared(self) -> dict[str, tuple[int, str]]:
        """Every shared document's version and text, by name; found by scanning all keys."""

        def act(client: redis.Redis) -> Any:
            names = self._scanned(client, "shared")
            with client.pipeline(transaction=False) as batch:
                for name in names:
                    batch.hmget(self._shared(name), ["version", "text"])
                replies = batch.execute()
            pairs = zip(names, replies, strict=True)
            return {name: (int(version), text or "") for name, (version, text) in pairs if version}

        return self._run("read the shared documents", act)  # type: ignore[no-any-return]

    def put_shared(self, name: str, version: int, text: str) -> None:
        """Store a shared document as this version, whatever was there; version 0 removes it."""

        def ask(batch: Pipeline) -> None:
            if version:
                batch.hset(self._shared(name), mapping={"version": str(version), "text": text})
            else:
                batch.delete(self._shared(name))

        self._change(f"write {name}", ask)

    def check(self) -> list[str]:
        """Do what a run does, with a temporary record; returns warnings about the server's settings."""
        stream = f"check~{uuid.uuid4().hex}"
        try:
            found = self.acquire(stream, this_owner(), TIMEOUT_S)
            assert isinstance(found, Acquired), "the name is unique"
            self.write(found.lease, {"checked": "1"})
            self.renew(found.lease, TIMEOUT_S)
            self.read_all()
            self.read_shared(stream)
            self.release(found.lease)
        except HeadraceError:
            with suppress(HeadraceError):  # the first error is the one to raise
                self.forget([stream])
            raise
        self.forget([stream])
        return self._warnings()

    def _warnings(self) -> list[str]:
        """Settings of the server that can lose acknowledged writes, as far as we are allowed to read them."""

        def act(client: redis.Redis) -> Any:
            try:
                return client.info()
            except redis.ResponseError as error:
                return str(error)

        info = self._run("read the state store's settings", act)
        if isinstance(info, str):
            return [f"its settings cannot be read ({info}): check appendonly and maxmemory-policy yourself"]
        found = []
        if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
            found.append(f"its maxmemory-policy is {policy}, which may evict records: set it to noeviction")
        if not info.get("aof_enabled", 1):
            found.append("its appendonly is no: a crash loses writes that it has acknowledged. Set appendonly yes")
        return found

    def close(self) -> None:
        """Close the connections, including those to the Sentinels, which the client does not close itself."""
        if self._client is not None:
            manager = getattr(self._client.connection_pool, "sentinel_manager", None)
            for each in (self._client, *(manager.sentinels if manager else ())):
                each.close()
            self._client = None

    def _record_ttl_ms(self, stream: str) -> int:
        """A finished split must stay known for as long as its backfill lasts, which removes it at the end."""
        return _TEN_YEARS_MS if is_split(stream) else self._ttl_ms

    def _keys(self, stream: str) -> tuple[str, str]:
        base = f"{self._prefix}:{{{stream}}}"
        return f"{base}:lease", f"{base}:record"

    def _shared(self, name: str) -> str:
        return f"{self._prefix}:{{{name}}}:shared"

    @property
    def _engines(self) -> str:
        """The key of the set of engines; its hash tag is no stream's, and is shared with what they say."""
        return f"{self._prefix}:{{~fleet}}:engines"

    def _engine(self, owner: str) -> str:
        return f"{self._engines}:{owner}"

    def _fenced(self, operation: str, script: str, lease: Lease, *arguments: str | int) -> int:
        """Run a script under the lease; returns ``_DONE`` or ``_BEHIND``.

        Raises:
            LeaseLostError, StateLostError: the record is no longer ours.
        """
        known = self._known.revision(lease)
        fence = (lease.owner, lease.epoch, self._record_ttl_ms(lease.stream), "" if known is None else known)
        ((code, *found),) = self._change(
            operation, lambda batch: batch.eval(script, 2, *self._keys(lease.stream), *fence, *arguments)
        )
        if not code:
            self._known.dropped(lease)
            raise self._known.refusal(operation, lease, *found)
        return int(code)

    def _rebuild_index(self) -> list[str]:
        """The streams that have a record, found by scanning all keys; unless read-only, the list is rebuilt.

        The list is a key that is seldom read, so eviction takes it before the records. Without it, what earlier
        streams have covered would be unknown.
        """

        operation = "rebuild the list of streams"
        streams: list[str] = self._run(operation, lambda client: self._scanned(client, "record"))
        if streams and not self._read_only:
            self._change(operation, lambda batch: batch.sadd(self._index, *streams))
            log.warning("the state store had lost its list of streams; it has been rebuilt")
        return streams

    def _scanned(self, client: redis.Redis, kind: str) -> list[str]:
        """The names of all keys of this kind, which may come more than once from the server."""
        beginning, end = f"{self._prefix}:{{", f"}}:{kind}"
        found = client.scan_iter(f"{_escaped(beginning)}*{end}", count=1000)
        return sorted({key.removeprefix(beginning).removesuffix(end) for key in found})

    def _change(self, operation: str, ask: Callable[[Pipeline], object]) -> list[Any]:
        """The replies to the commands that ``ask`` queues, once enough replicas have executed them.

        All of them use one connection: ``WAIT`` covers only what was written through its own.
        """

        def act(client: redis.Redis) -> list[Any]:
            with client.pipeline(transaction=False) as batch:
                ask(batch)
                if self._config.replicas:
                    batch.wait(self._config.replicas, WAIT_TIMEOUT_MS)
                return batch.execute(raise_on_error=False)  # raising would put the script into the error's text

        replies: list[Any] = self._run(operation, act, writes=True)
        if self._config.replicas and (acknowledged := replies.pop()) < self._config.replicas:
            cause = f"{acknowledged} of {self._config.replicas} replicas have it"
            raise TransientError(operation, cause, "Are the replicas up? state.replicas is the number required.")
        return replies

    def _run(self, operation: str, act: Callable[[redis.Redis], _T], *, writes: bool = False) -> Any:
        """Call ``act`` with the connection, and translate the library's errors."""
        try:
            if self._client is None:
                self._client = connect(self._config)
            result = act(self._client)
            if isinstance(result, list) and (failed := [e for e in result if isinstance(e, redis.RedisError)]):
                raise failed[0]
        except (redis.RedisError, OSError) as error:
            self.close()
            where = url_without_password(self._config.url)
            known, self._config = self._config, renewed_state(self._config) if is_refused(error) else self._config
            worked = writes in self._worked or self._config != known
            raise translated(operation, where, error, worked=worked) from error
        self._worked.add(writes)
        return result


def _escaped(text: str) -> str:
    """``text`` escaped for a glob pattern of Redis."""
    return re.sub(r"([\\*?\[\]^])", r"\\\1", text)
