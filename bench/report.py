"""Results as Markdown and plots: ``python -m bench.report RESULTS.jsonl [--out DIR]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def decode_table(results: Sequence[Result]) -> str:
    """One row per case."""
    header = ["documents", "bytes", "`decode_all`", "Headrace", "share", "target"]
    rows = [
        [
            f"`{each['case']}`",
            f"{each['bytes_per_document']:,.0f}",
            f"{each['driver_us']:,.2f} µs",
            f"{each['decoder_us']:,.2f} µs",
            f"1/{1 / each['share']:.1f}",
            f"1/{1 / each['target']:.0f}" if each["target"] else "",
        ]
        for each in results
        if each["benchmark"] == "decode"
    ]
    return table(header, rows)
