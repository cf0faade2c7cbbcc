"""The command ``state rebuild``: what the footers of the lake say of the state is put into the state store.

Only what is missing there, or older than the lake, is written. What the lake cannot say is printed, with a remedy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime

from engine.config import Config
from engine.config.streams import streams_of
from engine.core.backfill import (
    Plan,
    Selection,
    decode_index,
    decode_plan,
    encode_index,
    encode_plan,
    plan_document,
)
from engine.core.formats import encode_document
from engine.core.generations import FLEET_DOCUMENT, decode_generations
from engine.core.ledger import Ledger
from engine.core.naming import is_split, plan_of_split
from engine.core.position import split_time, token_data
from engine.core.records import read_record, schema_document
from engine.core.schemas import decode_schema
from engine.core.specs import StreamSpec
from engine.errors import StateLostError
from engine.lake.standing import Backfill, LakeStanding, Standing, look
from engine.state.dump import Documents, Records, put_records, refuse_if_held
from engine.state.opening import location, open_retrying

_OPERATION = "rebuild the state"
_INDEX = "backfills"
_AFTERWARDS = """\
The next run completes what is incomplete. If the oplog no longer reaches back to a position, that run stops and
says so; source.on_history_lost then decides: "snapshot" loads the collections again."""


def rebuild_state(config: Config, *, yes: bool) -> int:
    """Print what the lake says that the state store lacks, and with ``yes`` write it.

    Raises:
        ConfigError: the lake does not say it, or an engine holds one of the streams.
    """
    lake = look(config.sink)
    with closing(open_retrying(config.state, config.sink, config.retry)) as store:
        records = {name: fields for name, (fields, _) in store.read_all().items()}
        found = _Rebuild(config, lake, records, store.read_all_shared())
        for line in found.told:
            sys.stdout.write(f"{line}\n")
        if not (found.records or found.documents or found.forgotten):
            sys.stdout.write("the state store lacks nothing that the lake can tell\n")
            return 0
        refuse_if_held(store, _OPERATION, config.lease.ttl, [*found.records, *found.forgotten])
        if not yes:
            sys.stdout.write("Nothing has been written. Stop every engine, on every machine, then add --yes.\n")
            return 0
        for name, document in found.documents.items():
            store.put_shared(name, *document)
        put_records(store, _OPERATION, found.records, config.lease.ttl)
        store.forget(found.forgotten)
    where = f"{location(config.state, config.sink)}, prefix {config.state.prefix!r}"
    sys.stdout.write(f"Rebuilt {len(found.records)} streams in {where}. {_AFTERWARDS}\n")
    return 0


class _Rebuild:
    """What is to be written.

    State: records of streams, versions and texts of documents, streams to forget, and lines that tell of all this
    and of what is not known.
    """

    def __init__(self, config: Config, lake: LakeStanding, records: Records, documents: Documents) -> None:
        self._config = config
        self._lake = lake
        self._stored = records
        self._stored_documents = documents
        self.records: dict[str, dict[str, str]] = {}
        self.documents: dict[str, tuple[int, str]] = {}
        self.forgotten: list[str] = []
        self.told: list[str] = []
        self._look_at_streams()
        self._look_at_schemas()
        self._look_at_backfills()
        self._look_at_generations()

    # --- streams -----------------------------------------------------------------------------------------

    def _look_at_streams(self) -> None:
        specs = {spec.stream: spec for spec in streams_of(self._config.source)}
        for name in sorted(specs.keys() | self._lake.streams.keys()):
            spec, standing, fields = specs.get(name), self._lake.streams.get(name), self._stored.get(name, {})
            if standing is not None and spec is not None:
                why = _lacks(fields, standing)
                if why is not None:
                    self._rebuild(spec, standing, why)
            elif standing is not None and not fields:
                self.told.append(
                    f"{name}: in the lake up to segment {standing.newest}, and not in this configuration. If it "
                    "was still followed, rebuild with the configuration that it ran under."
                )
            elif standing is None and not fields:
                self.told.append(
                    f'{name}: nothing in the lake; it starts by source.start = "{self._config.source.start}". '
                    "To capture what has happened since the state was lost, set that to a time before; it has no "
                    "effect on streams that have a position."
                )

    def _rebuild(self, spec: StreamSpec, standing: Standing, why: str) -> None:
        stands = standing.rebuilt
        fields = stands.fields(spec, self._config.sink.identity, standing.schemas)
        self.records[standing.stream] = fields | {"updated": f"{time.time():.3f}"}
        at = f"{_time(stands.position.time)} ({token_data(stands.position.token) or 'no token'})"
        self.told.append(f"{standing.stream}: {why}")
        self.told.append(f"  committed up to segment {stands.seq}, at {at}")
        for intent in stands.intents:
            objects = f"{len(intent.objects)} objects" if intent.objects else "nothing"
            self.told.append(f"  segment {intent.seq} will be completed by the next run; in the lake: {objects}")
        if stands.skipped:
            numbers = ", ".join(map(str, stands.skipped))
            self.told.append(f"  the first segments after a rewind are missing ({numbers}): rewind it again")
        for each in stands.replaced:
            self.told.append(f"  {each.namespace} was replaced; source.on_replaced says what is done about it")

    # --- generations -------------------------------------------------------------------------------------

    def _look_at_generations(self) -> None:
        """The lake cannot tell them, and need not: the next engine introduces its own."""
        try:
            decode_generations(self._stored_documents.get(FLEET_DOCUMENT, (0, ""))[1])
        except StateLostError:
            self.documents[FLEET_DOCUMENT] = 0, ""
            self.told.append("the list of configurations in force is damaged: it starts anew")

    # --- schemas -----------------------------------------------------------------------------------------

    def _look_at_schemas(self) -> None:
        for name, schema in sorted(self._lake.schemas.items()):
            if (version := self._version(name)) < schema.version or self._is_damaged(name):
                self.documents[name] = max(version, schema.version), encode_document(schema)
                self.told.append(f"{name}: version {schema.version}, {len(schema.fields)} fields")

    def _is_damaged(self, name: str) -> bool:
        try:
            decode_schema(self._stored_documents[name][1])
        except StateLostError:
            return True
        return False

    def _version(self, name: str) -> int:
        return self._stored_documents.get(name, (0, ""))[0]

    # --- backfills ---------------------------------------------------------------------------------------

    def _look_at_backfills(self) -> None:
        plans = {plan.namespace: plan for plan in self._stored_plans()}
        for backfill in self._lake.backfills.values():
            if f"{backfill.database}.{backfill.collection}" not in plans:
                self._look_at_backfill(backfill)
        plans |= self._plans
        known = {plan.id for plan in plans.values()}
        self.forgotten = [name for name in self._stored if is_split(name) and plan_of_split(name) not in known]
        if self.forgotten:
            self.told.append(f"{len(self.forgotten)} splits belong to no backfill any more, and are forgotten")
        self._list_backfills(sorted(plans))

    def _stored_plans(self) -> Iterator[Plan]:
        """The plans that the state store has, without those that are damaged."""
        for name, (_, text) in self._stored_documents.items():
            if name.startswith(plan_document("")) and text:
                try:
                    yield decode_plan(text)
                except StateLostError as error:
                    self.told.append(f"{name}: it is removed: {error.cause}")
                    self.documents[name] = 0, ""

    def _list_backfills(self, namespaces: list[str]) -> None:
        """The list of backfills must name those that have a plan, and no other: that would pass for lost."""
        version, text = self._stored_documents.get(_INDEX, (0, ""))
        try:
            listed, is_damaged = decode_index(text) if text else [], False
        except StateLostError as error:
            self.told.append(f"the list of backfills is made again: {error.cause}")
            listed, is_damaged = [], True
        landed = {f"{each.database}.{each.collection}" for each in self._lake.backfills.values()}
        for namespace in sorted(set(listed) - {*namespaces, *landed}):
            self.told.append(
                f"{namespace}: the plan of its backfill is lost, and nothing of it is in the lake. To load it: "
                "headrace backfill."
            )
        if is_damaged or sorted(listed) != namespaces:
            self.documents[_INDEX] = version + 1, encode_index(namespaces)

    @property
    def _plans(self) -> dict[str, Plan]:
        """The plans that are to be written."""
        written = (text for name, (_, text) in self.documents.items() if name.startswith(plan_document("")))
        return {plan.namespace: plan for plan in map(decode_plan, filter(None, written))}

    def _look_at_backfill(self, backfill: Backfill) -> None:
        namespace = f"{backfill.database}.{backfill.collection}"
        if backfill.loaded is None:
            self.told.append(
                f"{namespace}: {backfill.splits} splits of the backfill {backfill.plan} are in the lake. Whether "
                "it was finished is not known, and nothing loads it again by itself. To load it again, with a "
                "mark at the end that voids the older rows: headrace backfill --restart."
            )
            return
        before = self._plans.get(namespace)
        if before is not None and (before.since or 0) > backfill.loaded:
            return
        plan = self._finished(backfill, backfill.loaded)
        self.documents[plan_document(namespace)] = self._version(plan_document(namespace)) + 1, encode_plan(plan)
        self.told.append(f"{namespace}: its backfill {backfill.plan} was finished; its mark is in the lake")

    def _finished(self, backfill: Backfill, loaded: int) -> Plan:
        """A finished plan of the whole collection, as far as it is known."""
        schema = self._lake.schemas.get(schema_document(backfill.database, backfill.collection))
        seconds = split_time(loaded)[0]
        return Plan(
            backfill.plan,
            backfill.database,
            backfill.collection,
            Selection(),
            None,
            None,
            (),
            0,
            0,
            made=seconds,
            finished=seconds,
            schema=schema.version if schema else None,
            since=loaded,
            begun=loaded,
        )


def _lacks(fields: Mapping[str, str], standing: Standing) -> str | None:
    """Why the record must be rebuilt; None if it accounts for what is in the lake.

    Raises:
        ConfigError: it was written by a later version.
    """
    if not fields:
        return "there is no record of it"
    try:
        record = read_record(fields)
    except StateLostError as error:
        return f"its record is replaced: {error.cause}"
    known = Ledger(record.position, record.seq, record.intents).last_known
    if known >= standing.newest and record.position is not None:
        return None
    return f"its record is replaced: it knows of no segment after {known}, and the lake has {standing.newest}"


def _time(time_: int) -> str:
    seconds, increment = split_time(time_)
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat().replace('+00:00', 'Z')} #{increment}"
