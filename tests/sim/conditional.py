"""An object store with conditional writes that loses answers, delays requests and lets others in between.

Writes whose answer is lost have taken place, will take place at any later time, or never do. While a request is on
its way, another engine may use the store.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping

from engine.errors import TransientError
from engine.objects.conditional import Listed, Stored

Write = tuple[str, bytes, str | None, bool]


class ChaoticObjects:
    """What several ``Connection`` objects share.

    Args:
        between: called while a request is on its way; may make requests of other engines.
    """

    def __init__(self, rng: random.Random, between: Callable[[], None]) -> None:
        self.rng = rng
        self.between = between
        self.calm = False
        self.objects: dict[str, Stored] = {}
        self.written_at: dict[str, float] = {}
        self.late: list[Write] = []
        self.now: Callable[[], float] = lambda: 0.0
        self._tags = 0

    def happens(self, probability: float) -> bool:
        return not self.calm and self.rng.random() < probability

    def apply(self, write: Write) -> str | None:
        """Perform a write, if its condition holds."""
        key, body, replacing, always = write
        found = self.objects.get(key)
        if not always and replacing != (found.etag if found else None):
            return None
        self._tags += 1
        self.objects[key] = Stored(body, f"{hash(body)}")
        self.written_at[key] = self.now()
        return self.objects[key].etag

    def turmoil(self) -> None:
        """Whatever may happen while a request is on its way."""
        if self.late and self.happens(0.3):
            self.apply(self.late.pop(self.rng.randrange(len(self.late))))
        if self.happens(0.3):
            self.between()


class Connection:
    """See ``engine.objects.conditional.ConditionalObjects``."""

    def __init__(self, store: ChaoticObjects) -> None:
        self._store = store

    def get(self, key: str) -> Stored | None:
        self._request()
        found = self._store.objects.get(key)
        self._store.turmoil()
        return found

    def get_all(self, keys: Collection[str]) -> Mapping[str, Stored]:
        found = {key: self.get(key) for key in keys}
        return {key: stored for key, stored in found.items() if stored is not None}

    def put(self, key: str, body: bytes, replacing: str | None) -> str | None:
        return self._write((key, body, replacing, False))

    def put_always(self, key: str, body: bytes) -> None:
        self._write((key, body, None, True))

    def listed(self, prefix: str) -> Mapping[str, Listed]:
        self._request()
        store = self._store
        ages = {key: store.now() - at for key, at in store.written_at.items()}
        return {key: Listed(each.etag, ages[key]) for key, each in store.objects.items() if key.startswith(prefix)}

    def delete(self, key: str) -> None:
        self._request()
        self._store.objects.pop(key, None)

    def close(self) -> None:
        pass

    def _request(self) -> None:
        self._store.turmoil()
        if self._store.happens(0.03):
            raise TransientError("ask the store", "no answer")

    def _write(self, write: Write) -> str | None:
        store = self._store
        self._request()
        if store.happens(0.04):  # the request arrives later, perhaps, and once more
            store.late += [write] * store.rng.choice((1, 1, 2))
            raise TransientError("write to the store", "no answer")
        if store.happens(0.03) and not write[3]:  # a conflict with a write that is in progress
            return None
        etag = store.apply(write)
        store.turmoil()
        if store.happens(0.06):  # the answer is lost, or is that to a second attempt
            if store.rng.random() < 0.5 and not write[3]:
                return store.apply(write)
            raise TransientError("write to the store", "the answer was lost")
        return etag
