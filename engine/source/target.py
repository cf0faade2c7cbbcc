"""A restore into a collection of a MongoDB server.

Its record (``core.restoring``) is a document of the collection ``headrace.restores`` in the same database, until
it is finished. Every write is acknowledged by a majority, so that no failover takes back what it says is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import WriteConcern
from pymongo.errors import BulkWriteError, InvalidName, PyMongoError

from engine.core.restoring import Job, to_continue
from engine.errors import (
    ConfigError,
    FatalError,
    HeadraceError,
    Redactor,
    TransientError,
    error_of_kind,
    url_password,
)
from engine.source.failures import translated
from engine.source.session import Client, connect

RECORDS = "headrace.restores"
_DUPLICATE = 11000
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
_T = TypeVar("_T")


class MongoTarget:
    """The collection. State: whether documents of this restore may be there already. Owner: the command.

    Args:
        uri: of the server to write to.
        retry: calls a function again while the server is away.

    Raises (by every method):
        HeadraceError: of the server.
    """

    def __init__(
        self, uri: str, database: str, collection: str, retry: Callable[[Callable[[], Any]], Any]
    ) -> None:
        self.where = f"{database}.{collection}"
        self._redact = Redactor([url_password(uri)])
        with self._translated("read --to"):
            self._client: Client = connect(uri)
        self._retry = retry
        self._name = collection
        try:
            self._database = self._client.get_database(database, write_concern=WriteConcern("majority"))
            self._documents = self._database.get_collection(collection, codec_options=_RAW)
        except InvalidName as error:
            self._client.close()
            remedy = "Give it a name that MongoDB allows, for example shop.orders."
            raise ConfigError("restore into a collection", f"{self.where}: {error}", remedy) from error
        self._records = self._database[RECORDS]
        self._may_be_there = False

    def begin(self, job: Job, *, given: bool, drop: bool) -> Job:
        """Start a restore, or continue the one that is there.

        Raises:
            ConfigError: there is another one, or the collection is not empty.
        """
        found: Job = self._call(lambda: self._begin(job, given=given, drop=drop))
        return found

    def _begin(self, job: Job, *, given: bool, drop: bool) -> Job:
        if drop:
            self._documents.drop()
            self._records.delete_one({"_id": self._name})
        record = self._records.find_one({"_id": self._name})
        if record is not None:
            self._may_be_there = True
            return to_continue(msgspec.convert(record["job"], Job), job, self.where, given=given)
        if self._documents.find_one({}, {"_id": 1}) is not None:
            remedy = "Restore under another name with --as, or drop what is there first with --drop."
            raise ConfigError(f"restore into {self.where}", "the collection is not empty", remedy)
        self._put(job)
        return job

    def write(self, documents: Sequence[bytes]) -> None:
        """Insert documents.

        Raises:
            FatalError: the server refuses one.
        """
        found = [RawBSONDocument(each, _RAW) for each in documents]

        def insert() -> None:
            try:
                self._documents.insert_many(found, ordered=False)
            except BulkWriteError as error:
                self._check(error)
            except PyMongoError:
                self._may_be_there = True  # the answer may have been lost
                raise

        self._call(insert)

    def _check(self, error: BulkWriteError) -> None:
        """Let documents pass that an earlier attempt has inserted."""
        operation, details = f"restore into {self.where}", error.details or {}
        for each in details.get("writeErrors", ()):
            is_there = each.get("code") == _DUPLICATE and set(each.get("keyPattern", ())) == {"_id"}
            if not (is_there and self._may_be_there):
                remedy = (
                    "Is something else writing to the collection, or has it a unique index or a validator that "
                    "the documents do not meet? Restore into a new collection, and create indexes afterwards."
                )
                raise FatalError(operation, str(each.get("errmsg", each.get("code"))), remedy)
        for each in details.get("writeConcernErrors", ()):
            raise TransientError(operation, str(each.get("errmsg")))

    def save(self, job: Job) -> None:
        """What was written so far is done; ``job`` says so."""
        self._call(lambda: self._put(job))

    def _put(self, job: Job) -> None:
        self._records.replace_one({"_id": self._name}, {"job": msgspec.to_builtins(job)}, upsert=True)

    def finish(self) -> None:
        """Everything is written: remove the record."""

        def remove() -> None:
            self._records.delete_one({"_id": self._name})
            if self._records.find_one() is None:
                self._records.drop()

        self._call(remove)

    def close(self) -> None:
        """Drop the connection."""
        self._client.close()

    def _call(self, function: Callable[[], _T]) -> _T:
        def call() -> _T:
            with self._translated(f"restore into {self.where}"):
                return function()

        result: _T = self._retry(call)
        return result

    @contextmanager
    def _translated(self, operation: str) -> Iterator[None]:
        """As for the source, but of the server that ``--to`` names."""
        try:
            with translated(operation):
                yield
        except HeadraceError as error:
            remedy = error.remedy.replace("source.uri", "--to")
            raise error_of_kind(error.kind, operation, self._redact(error.cause), remedy) from None
