"""Every module can be the first to be imported: none needs another to have been loaded before it."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys

import engine

# Forks itself for each module, so that the libraries are loaded once.
SCRIPT = """
import importlib, os, sys, traceback
import fastavro, msgspec, numpy, psutil, pyarrow.csv, pyarrow.parquet, pymongo, redis, rich, s3fs
failed = []
for name in sys.argv[1:]:
    if not (child := os.fork()):
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
sys.exit(f"cannot be imported first: {failed}" if failed else 0)
"""


def test_every_module_can_be_imported_first() -> None:
    names = [each.name for each in pkgutil.walk_packages(engine.__path__, "engine.")]
    names = [name for name in names if name not in ("engine.__main__", "engine.template")]  # those are run
    assert len(names) > 50
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-4000:]
