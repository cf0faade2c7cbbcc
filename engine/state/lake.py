"""The state store in the lake itself: JSON objects beside the data, for any number of engines and machines.

Below ``<sink.url>/_headrace/<state.prefix>/``:

| object | holds |
|---|---|
| ``streams/<stream>.json`` | the stream's record, its owner, the epoch and the revision |
| ``shared/<name>.json`` | a shared document and its version |
| ``engines/<owner>.json`` | what a living engine says of itself; written anew all the time |
| ``proof/<owner>.json`` | nothing; it is there while the store's conditions are being tried |

**Fence.** A record is only ever replaced by naming the entity tag (ETag) last seen, and created only where there
is none (``objects.conditional``). Whoever takes a stream over changes its record's tag; from then on every write
of the former owner fails, however long it was paused and however late its requests arrive. A tag never comes back,
because each write has a random number (the *nonce*) in it.

**Lost answers.** A write whose answer is lost, or is "the condition failed", is settled by reading the record: if
it has the write's nonce, the write took place. A repeated attempt has the same nonce.

**Leases.** Time is never compared between clocks. An engine keeps one object of its own, which it writes anew with
each renewal, whatever the number of its streams. Another engine considers it gone once it has seen that object
unchanged for the lease's duration on its own monotonic clock: from the end of the first read to the start of the
last one. A wrong conclusion costs the owner its stream, never an event: the fence decides.

What goes missing is noticed as in other stores (``known``): a record that was there is never created again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import NamedTuple, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from engine.core.formats import damaged
from engine.errors import ConfigError, LeaseLostError, NoStateError, StateLostError, TransientError
from engine.objects.conditional import ConditionalObjects, Listed, refuses_conditions
from engine.owner import this_owner
from engine.state.known import Known, log_restored, lost_record
from engine.state.seam import Acquired, HeldElsewhere, Lease

FORMAT = 1
# An attempt fails only if another write succeeds in between.
_MAX_ATTEMPTS = 5
# How old a read may be that says that an owner is gone: leases of several streams are asked for in one go.
_FRESH_S = 1.0
# Objects of engines that have not been written for this long are removed.
_FORGOTTEN_AFTER_S = 86_400.0
# What the store's clock may differ between two of its machines.
_SKEW_S = 2.0
_LONGEST_NAME = 180
_T = TypeVar("_T")


class _Record(Struct, frozen=True):
    """A stream's object.

    Attributes:
        nonce: identifies the write that made it.
        released: whether the owner has given it back.
        ttl_s: how long the owner's object may stay unchanged before the lease is over.
    """

    stream: str
    nonce: str
    owner: str
    epoch: int
    ttl_s: float
    revision: int = 0
    released: bool = False
    fields: dict[str, str] = {}
    format: int = FORMAT


class _Document(Struct, frozen=True):
    """A shared document's object."""

    name: str
    version: int
    text: str
    format: int = FORMAT


class _Beat(Struct, frozen=True):
    """An engine's object.

    Attributes:
        text: what it says of itself; empty if it shares no streams.
        ttl_s: how long the object may stay unchanged before the engine counts as gone.
    """

    owner: str
    nonce: str
    text: str = ""
    ttl_s: float = 0.0
    format: int = FORMAT


class _Head(Struct):
    format: int


class _Found(NamedTuple):
    record: _Record
    etag: str


class _Held(Struct):
    """A record under our lease.

    Attributes:
        record, etag: as last acknowledged.
        attempts: what else we may have written since, because the answer was lost; by nonce.
    """

    record: _Record
    etag: str
    attempts: dict[str, _Record] = {}

    def attempt(self, wanted: _Record) -> _Record:
        """The next record, with the nonce of an earlier attempt at the same."""
        for nonce, record in self.attempts.items():
            if replace(wanted, nonce=nonce) == record:
                return record
        record = replace(wanted, nonce=uuid.uuid4().hex)
        self.attempts[record.nonce] = record
        return record

    def settle(self, record: _Record, etag: str) -> None:
        """Note that this is the record now."""
        self.record, self.etag = record, etag
        self.attempts.clear()


class _Watched(Struct):
    """An owner's object, as seen by this engine, on its own monotonic clock.

    Attributes:
        etag: None if there is no object.
        since: when the first read that saw this tag had ended.
        until: when the last one was started.
    """

    etag: str | None
    since: float
    until: float


class LakeStore:
    """See ``engine.state.seam.StateStore``. Not for use by several threads at once.

    State: the records under our leases, what was seen of other owners, when our own object was last written.

    Args:
        clock: monotonic, in seconds.
        prove: whether to try the store's conditions before the first write.
    """

    def __init__(
        self,
        objects: ConditionalObjects,
        url: str,
        *,
        read_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
        prove: bool = True,
    ) -> None:
        self._objects = objects
        self._url = url
        self._read_only = read_only
        self._clock = clock
        self._proved = not prove
        self._known = Known()
        self._held: dict[Lease, _Held] = {}
        self._watched: dict[str, _Watched] = {}
        self._announced: dict[str, tuple[float, float, str]] = {}  # by owner: when, for how long, and what
        self._beats: dict[str, tuple[str, _Beat]] = {}  # by key, what was last announced, and its tag
        self._listed_at = -_FRESH_S
        self._listing: Mapping[str, Listed] = {}
        self._read_before: dict[str, _Found] = {}  # by key, what ``read_all`` has read

    def acquire(
        self, stream: str, owner: str, ttl_s: float, *, replacing: str = "", at_least: int = 0
    ) -> Acquired | HeldElsewhere:
        """Take the lease if it is free, expired, already ours, or held by ``replacing``."""
        operation = f"acquire the lease of {stream}"
        ttl_s = float(ttl_s)  # a subclass would not be written
        self._prove()
        self._beat(owner, ttl_s)
        for _ in range(_MAX_ATTEMPTS):
            found = self._read(stream)
            epoch, known = found.record.epoch if found else 0, max(at_least, self._known.epoch(stream))
            if epoch < known:
                raise lost_record(operation, stream, known, epoch)
            self._known.saw(stream, epoch)
            if found and not found.record.released and found.record.owner not in (owner, replacing):
                left_s = self._left_s(found.record)
                if left_s > 0:
                    return HeldElsewhere(found.record.owner, left_s)
            taken = _Record(
                stream,
                uuid.uuid4().hex,
                owner,
                epoch + 1,
                ttl_s,
                found.record.revision if found else 0,
                fields=found.record.fields if found else {},
            )
            etag = self._settled_put(taken, found.etag if found else None)
            if etag is not None:
                lease = Lease(stream, owner, epoch + 1)
                self._known.saw(stream, lease.epoch)
                self._held[lease] = _Held(taken, etag)
                return Acquired(lease, dict(taken.fields))
        raise _contended(operation)

    def renew(self, lease: Lease, ttl_s: float) -> None:
        """Keep the lease for ``ttl_s`` more seconds: one write for all leases, and one listing to see them."""
        operation = f"renew the lease of {lease.stream}"
        ttl_s = float(ttl_s)
        held = self._held.get(lease)
        if held is not None and held.record.ttl_s != ttl_s:
            self._change(operation, lease, lambda record: replace(record, ttl_s=ttl_s))
        self._beat(lease.owner, ttl_s)
        listed = self._streams().get(_key("streams", lease.stream))
        if held is not None and listed is not None and listed.etag == held.etag:
            return
        # Another owner, a lost record, or a listing that lags behind: the record itself tells.
        found = self._ours(operation, lease)
        if held is not None and found.record.revision < held.record.revision:
            self._change(operation, lease, lambda record: record)

    def release(self, lease: Lease) -> None:
        """Give the lease back; does nothing if it is no longer ours."""
        operation = f"release the lease of {lease.stream}"
        with suppress(LeaseLostError):
            self._change(operation, lease, lambda record: replace(record, released=True))
        self._drop(lease)

    def write(self, lease: Lease, put: Mapping[str, str], remove: Sequence[str] = ()) -> None:
        """Set and remove fields in one atomic, durable step."""

        def changed(record: _Record) -> _Record:
            fields = {name: value for name, value in {**record.fields, **put}.items() if name not in remove}
            return replace(record, fields=fields, revision=record.revision + 1)

        self._change(f"write the record of {lease.stream}", lease, changed)

    def read_all(self) -> dict[str, tuple[dict[str, str], str]]:
        """Every stream's fields and the current holder of its lease."""
        listed = self._objects.listed("streams/")
        if self._read_only and not listed and not self._objects.listed(""):
            remedy = "The first run creates it. Are sink.url and state.prefix those of the engine?"
            raise NoStateError("read the state", f"there is no state yet at {self._url}", remedy)
        engines = self._objects.listed("engines/")
        known = {key: found for key, found in self._read_before.items() if key in listed}
        stale = [key for key, each in listed.items() if key not in known or known[key].etag != each.etag]
        for key, stored in self._objects.get_all(stale).items():
            known[key] = _Found(self._decode(stored.body, _Record, key), stored.etag)
        self._read_before = known
        records = [known[key].record for key in sorted(known)]
        return {each.stream: (dict(each.fields), _holder(each, engines)) for each in records}

    def forget(self, streams: Collection[str]) -> None:
        """Remove the records and leases of these streams, if any."""
        for stream in streams:
            self._objects.delete(_key("streams", stream))
            for lease in [lease for lease in self._held if lease.stream == stream]:
                del self._held[lease]
        self._known.forgot(streams)

    def announce(self, owner: str, text: str, ttl_s: float) -> None:
        """Let other engines see ``text`` as what this one says of itself; "" takes it back."""
        self._prove()
        if not text:
            with suppress(ConfigError):  # without the right to delete, an object that says nothing is left
                self._objects.delete(_key("engines", owner))
                self._announced.pop(owner, None)
                return
        self._beat(owner, float(ttl_s), text)

    def announced(self) -> dict[str, str]:
        """What each living engine says of itself, by owner; one listing, and a read of each object that is new.

        The listing also shows that an engine is gone, which ``acquire`` then need not wait for.
        """
        started = self._clock()
        listed = self._objects.listed("engines/")
        ended = self._clock()
        known = {
            key: found for key, found in self._beats.items() if key in listed and listed[key].etag == found[0]
        }
        for key, stored in self._objects.get_all([key for key in listed if key not in known]).items():
            with suppress(StateLostError, ConfigError):  # damaged, or of a later version: its leases tell
                known[key] = stored.etag, self._decode(stored.body, _Beat, key)
        self._beats = known
        # One that is there no more is looked at again, should it matter.
        there = {owner for owner in self._watched if _key("engines", owner) in listed}
        self._watched = {name: each for name, each in self._watched.items() if each.etag is None or name in there}
        for key, each in listed.items():
            if key in known:
                self._saw(known[key][1].owner, each.etag, started, ended)
        living = (beat for key, (_, beat) in known.items() if beat.text and listed[key].age_s <= beat.ttl_s)
        return {beat.owner: beat.text for beat in living}

    def read_shared(self, name: str) -> tuple[int, str]:
        """A shared document's version and text."""
        version, text, _ = self._read_shared(name)
        return version, text

    def _read_shared(self, name: str) -> tuple[int, str, str | None]:
        key = _key("shared", name)
        stored = self._objects.get(key)
        if stored is None:
            return 0, "", None
        found = self._decode(stored.body, _Document, key)
        return found.version, found.text, stored.etag

    def write_shared(self, name: str, version: int, text: str) -> bool:
        """Store ``text`` as ``version`` if the current version is the one before; whether it is stored now."""
        self._prove()
        found, found_text, etag = self._read_shared(name)
        if found == version - 1:
            wanted = _Document(name, version, text)
            if self._objects.put(_key("shared", name), msgspec.json.encode(wanted), etag) is not None:
                return True
            found, found_text, _ = self._read_shared(name)
            if found == version - 1:
                raise _contended(f"write {name}")  # nobody was faster: it is worth another attempt
        return (found, found_text) == (version, text)  # by an attempt whose answer was lost

    def read_all_shared(self) -> dict[str, tuple[int, str]]:
        """Every shared document's version and text, by name."""
        stored = self._objects.get_all(sorted(self._objects.listed("shared/")))
        found = [self._decode(each.body, _Document, key) for key, each in stored.items()]
        return {each.name: (each.version, each.text) for each in sorted(found, key=lambda each: each.name)}

    def put_shared(self, name: str, version: int, text: str) -> None:
        """Store a shared document as this version, whatever was there; version 0 removes it."""
        key = _key("shared", name)
        if version:
            self._objects.put_always(key, msgspec.json.encode(_Document(name, version, text)))
        else:
            self._objects.delete(key)

    def check(self) -> list[str]:
        """Prove that the store honours the conditions of writes; leaves nothing behind."""
        self._proved = False
        self._prove()
        return []

    def close(self) -> None:
        """Drop the connections."""
        self._objects.close()

    # --- one record ------------------------------------------------------------------------------------------

    def _read(self, stream: str) -> _Found | None:
        key = _key("streams", stream)
        stored = self._objects.get(key)
        return None if stored is None else _Found(self._decode(stored.body, _Record, key), stored.etag)

    def _settled_put(self, record: _Record, replacing: str | None) -> str | None:
        """Put a record, and if the answer is no, look whether that was the answer to a second attempt."""
        etag = self._objects.put(_key("streams", record.stream), msgspec.json.encode(record), replacing)
        if etag is None:
            found = self._read(record.stream)
            return found.etag if found and found.record.nonce == record.nonce else None
        return etag

    def _ours(self, operation: str, lease: Lease) -> _Found:
        """The record, which must be under this lease.

        Raises:
            LeaseLostError, StateLostError: it is not.
        """
        found = self._read(lease.stream)
        if found is None or (found.record.epoch, found.record.owner) != (lease.epoch, lease.owner):
            self._drop(lease)
            epoch, owner = (found.record.epoch, found.record.owner) if found else (0, "")
            raise self._known.refusal(operation, lease, epoch, owner)
        return found

    def _change(self, operation: str, lease: Lease, changed: Callable[[_Record], _Record]) -> None:
        """Replace the record under a lease; when this returns, the change has taken place exactly once.

        Raises:
            LeaseLostError, StateLostError: the record is no longer ours.
        """
        self._prove()
        held = self._held.get(lease) or _Held(*self._ours(operation, lease))
        for _ in range(_MAX_ATTEMPTS):
            wanted = held.attempt(changed(held.record))
            key = _key("streams", lease.stream)
            etag = self._objects.put(key, msgspec.json.encode(wanted), held.etag)
            if etag is None:
                found = self._ours(operation, lease)
                etag = found.etag if found.record.nonce == wanted.nonce else None
                if etag is None:
                    _follow(held, found)
            if etag is not None:
                held.settle(wanted, etag)
                self._held[lease] = held
                return
        raise _contended(operation)

    def _drop(self, lease: Lease) -> None:
        self._held.pop(lease, None)

    def _streams(self) -> Mapping[str, Listed]:
        """The listing of the records; those of one round of renewals share it."""
        now = self._clock()
        if now - self._listed_at >= _FRESH_S:
            self._listing = self._objects.listed("streams/")
            self._listed_at = now
        return self._listing

    # --- who is alive ----------------------------------------------------------------------------------------

    def _beat(self, owner: str, ttl_s: float, text: str | None = None) -> None:
        """Write this owner's object anew, unless that was done just now and it says the same."""
        now = self._clock()
        last = self._announced.get(owner)
        if text is None:
            text = last[2] if last is not None else ""
        if last is not None and last[1:] == (ttl_s, text) and now - last[0] < ttl_s / 6:
            return
        beat = _Beat(owner, uuid.uuid4().hex, text, ttl_s)
        self._objects.put_always(_key("engines", owner), msgspec.json.encode(beat))
        self._announced[owner] = now, ttl_s, text
        if last is None:
            self._remove_left_behind()

    def _remove_left_behind(self) -> None:
        """Remove what engines that ended long ago have left; one that is still there writes its object again."""
        with suppress(ConfigError):  # without the right to delete it stays
            for kind in ("engines/", "proof/"):
                for key, found in self._objects.listed(kind).items():
                    if found.age_s > _FORGOTTEN_AFTER_S:
                        self._objects.delete(key)

    def _left_s(self, record: _Record) -> float:
        """How much longer to wait before the record's owner counts as gone, judged by a fresh read."""
        watched = self._watched.get(record.owner)
        if watched is None or self._clock() - watched.until > _FRESH_S:
            watched = self._look(record.owner)
        return max(0.0, watched.since + record.ttl_s - watched.until)

    def _look(self, owner: str) -> _Watched:
        started = self._clock()
        stored = self._objects.get(_key("engines", owner))
        return self._saw(owner, None if stored is None else stored.etag, started, self._clock())

    def _saw(self, owner: str, etag: str | None, started: float, ended: float) -> _Watched:
        """An owner's object had this tag in a read that took from ``started`` to ``ended``."""
        before = self._watched.get(owner)
        if before is not None and before.etag == etag:
            before.until = started
            return before
        self._watched[owner] = watched = _Watched(etag, ended, ended)
        return watched

    # --- the store -------------------------------------------------------------------------------------------

    def _prove(self) -> None:
        """Try the store's conditions once, before anything depends on them.

        Raises:
            ConfigError: it does not honour them.
        """
        if self._proved:
            return
        key = _key("proof", f"{this_owner()}.{uuid.uuid4().hex}")
        try:
            fault = refuses_conditions(self._objects, key, lambda number: b'{"proof": %d}' % number)
        finally:
            with suppress(ConfigError, TransientError):
                self._objects.delete(key)
        if fault is not None:
            remedy = "Set state.url to a Redis server or, for one machine, to sqlite:///path."
            cause = f"the object store cannot keep it: {fault}"
            raise ConfigError(f"keep the state at {self._url}", cause, remedy)
        self._proved = True

    def _decode(self, body: bytes, type_: type[_T], key: str) -> _T:
        """What an object holds."""
        try:
            format_ = msgspec.json.decode(body, type=_Head).format
            if format_ > FORMAT:
                cause = f"{key} was written by a later version (format {format_}; this one reads {FORMAT})"
                raise ConfigError("read the state", cause, "Upgrade this engine.")
            return msgspec.json.decode(body, type=type_)
        except msgspec.DecodeError as error:
            remedy = (
                f"Put back an intact version of {self._url}{key}; or stop every engine, remove that object, and "
                "make what it held again from the lake: headrace state rebuild."
            )
            raise damaged(f"the object {key}", str(error), remedy) from error


def _follow(held: _Held, found: _Found) -> None:
    """The record is still under our lease, but not what we thought it was: continue from what it is."""
    if found.record.nonce in held.attempts or found.record.revision >= held.record.revision:
        if found.record.nonce != held.record.nonce:
            held.attempts.pop(found.record.nonce, None)
        held.record, held.etag = found
    else:
        log_restored(found.record.stream)  # only we have written since: write it as it was, with the change
        held.etag = found.etag


def _holder(record: _Record, engines: Mapping[str, Listed]) -> str:
    """Who holds the lease, as far as a single look can tell: by the age of its object on the store's clock."""
    engine = engines.get(_key("engines", record.owner))
    is_over = engine is None or engine.age_s > record.ttl_s + _SKEW_S
    return "" if record.released or is_over else record.owner


def _key(kind: str, name: str) -> str:
    """The key of an object; a long name is shortened, and told apart by its hash."""
    quoted = quote(name, safe="")
    if len(quoted) > _LONGEST_NAME:
        quoted = f"{quoted[:_LONGEST_NAME]}~{sha256(name.encode()).hexdigest()[:32]}"
    return f"{kind}/{quoted}.json"


def _contended(operation: str) -> TransientError:
    return TransientError(operation, "another write was in progress each time", "It is tried again.")
