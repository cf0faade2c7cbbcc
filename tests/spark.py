"""What tests of Spark need."""

from __future__ import annotations

import pytest

# PySpark 4.1 leaves a socket open where it hands over Arrow tables.
leaves_sockets = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
)
