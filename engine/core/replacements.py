"""Collections with documents that their events do not show, because another collection was renamed to their name.

A stream's record lists them, from the commit of that event until the collection has been reloaded. What is done
about it is ``source.on_replaced``: reload them, warn, or stop the stream.

State: none of its own, only the streams' ``replaced``. Owner: the coordinator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine.core import records
from engine.core.actions import Log, Write
from engine.core.decisions import Decision, Fail
from engine.core.messages import Replaced
from engine.core.records import StreamRecord
from engine.core.specs import MarkSpec, StreamSpec
from engine.core.stream import Settings, Stream
from engine.errors import FatalError


class Replacements:
    """The replaced collections of an engine's streams."""

    def __init__(self, settings: Settings, streams: Mapping[str, Stream]) -> None:
        self._settings = settings
        self._streams = streams

    def adopt(self, stream: Stream, record: StreamRecord) -> list[Decision]:
        """Take over the replaced collections of a record; those that have been loaded since are done."""
        loaded = self._settings.loaded
        done = [each for each, time in record.replaced.items() if each in loaded and time <= loaded[each]]
        stream.replaced = {each: time for each, time in record.replaced.items() if each not in done}
        return [_loaded(stream, done)] if done else []

    def judge(self, stream: Stream) -> list[Decision]:
        """Stop the stream if it has replaced collections and that is the policy."""
        must_stop = stream.replaced and self._settings.on_replaced == "fail"
        return [Fail(stream, _replaced(stream))] if must_stop else []

    def committed(self, stream: Stream, replaced: Iterable[Replaced]) -> list[Decision]:
        """Collections were replaced, as the commit that was just sent also records."""
        new = {each.namespace: each.time for each in replaced}
        if not new:
            return []
        stream.replaced |= new
        fields: dict[str, object] = {"stream": stream.name, "collections": sorted(new)}
        match self._settings.on_replaced:
            case "fail":
                return self.judge(stream)
            case "reload":
                return [Log("warning", "collections were replaced; their new content will be loaded", fields)]
            case "warn":
                fields["remedy"] = _replaced(stream).remedy
                return [Log("warning", "collections were replaced; their new content is not loaded", fields)]

    def loaded(self, mark: MarkSpec) -> list[Decision]:
        """A whole collection has been loaded as of the mark's time; earlier replacements are done."""
        decisions: list[Decision] = []
        for stream in self._streams.values():
            time = stream.replaced.get(mark.namespace)
            if stream.holds_lease and time is not None and time <= mark.time:
                del stream.replaced[mark.namespace]
                decisions.append(_loaded(stream, [mark.namespace]))
        return decisions

    def due(self, now: float) -> list[str]:
        """The collections to reload, for which this engine is to exit now.

        Splits are finished first, and so are streams that have an end: everything replaced is then loaded
            together.
        """
        if self._settings.on_replaced != "reload" or now < self._settings.reload_from:
            return []
        streams = self._streams.values()
        if any(each.is_of_backfill for each in streams):
            return []
        if self._settings.until_caught_up and any(each.is_open for each in streams):
            return []
        mine = (each for each in streams if each.holds_lease and each.error is None)
        return sorted({namespace for stream in mine for namespace in stream.replaced})


def _loaded(stream: Stream, namespaces: list[str]) -> Write:
    return Write(stream.name, stream.generation, records.loaded(namespaces), "loaded")


def _replaced(stream: Stream) -> FatalError:
    namespaces = sorted(stream.replaced)
    names = ",".join(each.partition(".")[2] for each in namespaces)
    cause = f"{', '.join(namespaces)} got new documents by a rename or $out, for which there are no events"
    database = stream.spec.database if isinstance(stream.spec, StreamSpec) else None
    is_named = all(each.partition(".")[0] == database for each in namespaces)
    which = f"--collections {names} " if is_named else ""  # the command knows those of source.database
    return FatalError(f"follow {stream.name}", cause, f"Load them: headrace backfill {which}--restart.")
