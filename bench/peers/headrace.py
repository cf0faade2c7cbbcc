"""The engine itself, on the same terms as its peers."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.request import urlopen

from bench.local.servers import free_ports
from bench.measure import python
from bench.peers import Landed, Peer, Task, Tell, landed_in_bucket
from bench.stream import Case, config_toml

# Per segment when it is going to be killed, as the other tools have them: several commits before the end.
_ROWS_TO_KILL = 5000


class Headrace(Peer):
    """``python -m engine --until-caught-up``, and ``python -m engine backfill``.

    Args:
        memory: ``memory.limit``; for a load at least 1 GiB, which its two readers need.
    """

    name = "Headrace"

    def __init__(self, memory: str = "512MiB") -> None:
        self._memory = memory
        self._listen = ""

    def built(self) -> bool:
        """Always."""
        return True

    def build(self, tell: Tell) -> bool:
        """Nothing to do."""
        return True

    def command(self, task: Task) -> list[str]:
        """From a configuration in the directory of the task."""
        path = task.directory / "engine.toml"
        load = task.kind == "load"
        case = Case(memory="1GiB" if load else self._memory)
        start = "" if load else task.start
        toml = config_toml(task.stack, task.uri, task.database, case, task.prefix, start)
        if not task.events:
            toml = toml.replace("[batch]\n", f"[batch]\nrows = {_ROWS_TO_KILL}\n")
            self._listen = f"127.0.0.1:{free_ports(1)[0]}"
            toml = toml.replace('listen = ""', f'listen = "{self._listen}"')
        path.write_text(f"{toml}[backfill]\nreaders = 2\n" if load else toml)
        return python("-m", "engine", *(("backfill",) if load else ()), "--config", str(path)) + (
            [] if load else ["--until-caught-up"]
        )

    def written(self, task: Task, log: Path) -> int:
        """By its own count of what is committed; in a load, what has landed."""
        if task.kind == "load":
            return self.landed(task).rows
        try:
            with urlopen(f"http://{self._listen}/status", timeout=2) as answer:
                return sum(each["events_committed"] for each in json.load(answer)["streams"])
        except OSError:
            return 0

    def landed(self, task: Task) -> Landed:
        """By the keys of the documents."""
        return landed_in_bucket(task, "_cdc_key")
