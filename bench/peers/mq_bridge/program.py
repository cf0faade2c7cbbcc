"""mq-bridge as a program: ``program.py ROUTE.json CHECKPOINT LAST``.

It runs the route until the checkpoint names the document ``LAST``, which is that of the last event: mq-bridge
writes the checkpoint after the object. With ``-`` for it, until SIGTERM; with ``start``, until there is a
checkpoint.
"""

import json
import signal
import sys
import threading
from pathlib import Path

from mq_bridge import Route

LOOK_S = 0.02


def main() -> None:
    """Run the route."""
    route, checkpoint, last = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    with Route.from_config(json.loads(route.read_text())):
        while not stopped.wait(LOOK_S):
            if last == "-" or not checkpoint.exists():
                continue
            if last == "start" or last in checkpoint.read_text().lower():
                return


if __name__ == "__main__":
    main()
