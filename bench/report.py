"""Results as Markdown and plots: ``python -m bench.report RESULTS.jsonl DIRECTORY``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.results import read

Result = Mapping[str, Any]
_COLORS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def decode_table(found: Sequence[Result]) -> str:
    """One row per case."""
    header = ["documents", "bytes", "`decode_all`", "Headrace", "share", "target"]
    rows = [
        [
            f"`{each['case']}`",
            f"{each['bytes_per_document']:,.0f}",
            f"{each['driver_us']:,.2f} µs",
            f"{each['decoder_us']:,.2f} µs",
            f"1/{1 / each['share']:.1f}",
            f"1/{1 / each['target']:.3g}" if each["target"] else "",
        ]
        for each in found
    ]
    return table(header, rows)


def stream_table(found: Sequence[Result]) -> str:
    """One row per workload."""
    header = [
        "workload",
        "raw drain",
        "`watch()`",
        "usual way",
        "Headrace",
        "of drain",
        "CPU per event",
        "of `watch()`",
        "PSS peak",
        "bytes per event",
        "exact",
    ]
    rows = [
        [
            f"`{each['workload']}`",
            _rate(each["drain_per_s"]),
            _rate(each["watch_per_s"]),
            _rate(each["usual_per_s"]),
            _rate(each["engine_per_s"]),
            f"{each['of_drain']:.2f} ({each['reading_of_drain']:.2f})",
            f"{each['engine_cpu_us']:,.1f} µs",
            f"{each['cpu_of_watch']:.2f}",
            f"{each['pss_peak'] / 2**20:,.0f} MiB",
            f"{each['bytes_per_event']:,.0f}",
            "yes" if each["exact"] else "NO",
        ]
        for each in found
    ]
    note = "\n\nEvents per second. *Of drain*: with start and end of the processes, and in brackets without."
    return table(header, rows) + note


def split_table(found: Sequence[Result]) -> str:
    """One row per number of streams."""
    drain = found[0]["drain_per_s"] if found else 0.0
    header = [
        "streams on one collection",
        "raw drain through as many",
        "Headrace",
        "of one stream's raw drain",
        "mongod's CPU per event",
        "exact",
    ]
    rows = [
        [
            str(each["split"]),
            _rate(each["drains_per_s"]),
            _rate(each["engine_per_s"]),
            f"{each['engine_per_s'] / drain:.2f} ({each['reading_per_s'] / drain:.2f})",
            f"{each['engine_server_us']:.1f} µs",
            "yes" if each["exact"] else "NO",
        ]
        for each in found
    ]
    return table(header, rows)


def collections_table(found: Sequence[Result]) -> str:
    """One row per number of collections."""
    one = found[0]["engine_per_s"] if found else 0.0
    header = ["collections", "processes", "Headrace", "of one collection", "PSS peak", "exact"]
    rows = [
        [
            str(each["collections"]),
            str(each["processes"]),
            _rate(each["engine_per_s"]),
            f"{each['engine_per_s'] / one:.2f}",
            f"{each['pss_peak'] / 2**20:,.0f} MiB",
            "yes" if each["exact"] else "NO",
        ]
        for each in found
    ]
    return table(header, rows)


def tables_table(found: Sequence[Result]) -> str:
    """One row per format."""
    without = found[0]["engine_per_s"] if found else 0.0
    header = ["tables", "Headrace", "of without", "CPU per event", "PSS peak", "exact"]
    rows = [
        [
            each["tables"] or "none",
            _rate(each["engine_per_s"]),
            f"{each['engine_per_s'] / without:.2f}",
            f"{each['engine_cpu_us']:.1f} µs",
            f"{each['pss_peak'] / 2**20:,.0f} MiB",
            "yes" if each["exact"] else "NO",
        ]
        for each in found
    ]
    return table(header, rows)


def merge_table(found: Sequence[Result]) -> str:
    """One row per merge."""
    header = [
        "format",
        "changed",
        "rows merged",
        "seconds",
        "rows/s",
        "written per row",
        "of the mirror",
        "USS peak",
    ]
    rows = [
        [
            each["format"],
            each["case"],
            f"{each['changed']:,}",
            f"{each['seconds']:.1f}",
            _rate(each["rows_per_s"]),
            f"{each['written_per_change']:,.0f} B",
            f"{each['rewritten']:.0%}",
            f"{each['uss_peak'] / 2**20:,.0f} MiB",
        ]
        for each in found
    ]
    return table(header, rows)


def backfill_table(found: Sequence[Result]) -> str:
    """One row per workload."""
    header = [
        "workload",
        "raw scan by 1, by 2",
        "Headrace by 1, by 2",
        "of scan",
        "`pymongoarrow`",
        "`mongodump`",
        "`mongoexport`",
        "CPU per document",
        "PSS peak",
        "exact",
    ]
    rows = [
        [
            f"`{each['workload']}`",
            f"{_rate(each['scan1_per_s'])}, {_rate(each['scan2_per_s'])}",
            f"{_rate(each['engine1_per_s'])}, {_rate(each['engine2_per_s'])}",
            f"{each['of_scan']:.2f}",
            _rate(each["pymongoarrow_per_s"]),
            _rate(each["mongodump_per_s"]),
            _rate(each["mongoexport_per_s"]),
            f"{each['engine_cpu_us']:,.1f} µs",
            f"{each['pss_peak'] / 2**20:,.0f} MiB",
            "yes" if each["exact"] else "NO",
        ]
        for each in found
    ]
    return table(header, rows) + "\n\nDocuments per second, with start, planning and end of the processes."


def memory_table(found: Sequence[Result]) -> str:
    """One row per workload."""
    header = ["workload", "limit", "peak", "over time, from start to end"]
    rows = [
        [
            f"`{each['workload']}`",
            f"{each['limit'] / 2**20:,.0f} MiB",
            f"{each['peak'] / 2**20:,.0f} MiB",
            " ".join(f"{size / 2**20:.0f}" for size in each["curve"]),
        ]
        for each in found
    ]
    return table(header, rows)


def growth_table(found: Sequence[Result]) -> str:
    """One row per point."""
    header = ["what grows", "to", "events/s", "MB/s", "CPU per event", "PSS peak", "objects", "segments a minute"]
    rows = [
        [
            each["axis"],
            f"{each['value']:,}",
            _rate(each["events_per_s"]),
            f"{each['mb_per_s']:,.0f}",
            f"{each['cpu_us']:,.1f} µs",
            f"{each['pss_peak'] / 2**20:,.0f} MiB",
            f"{each['objects']:,}",
            f"{each['segments_per_minute']:,.0f}",
        ]
        for each in found
    ]
    return table(header, rows)


def peer_table(found: Sequence[Result]) -> str:
    """The engine and its peers on a stream and on a load, and the effect of a kill on each."""
    measured = [each for each in found if "events_per_s" in each]
    killed = [each for each in found if "written_at_kill" in each]
    texts = []
    for kind, unit in (("stream", "event"), ("load", "document")):
        mine = [each for each in measured if each["kind"] == kind]
        if not mine:
            continue
        header = [
            "a change stream" if kind == "stream" else "a whole collection",
            f"{unit}s/s",
            "Headrace is",
            "spread",
            f"CPU per {unit}",
            "PSS peak",
            f"bytes per {unit}",
            "objects",
            "arrived",
            "twice",
        ]
        rows = [
            [
                each["peer"],
                _rate(each["events_per_s"]),
                f"{mine[0]['events_per_s'] / each['events_per_s']:.1f} times as fast"
                if each is not mine[0]
                else "",
                f"{each['spread']:.2f}",
                f"{each['cpu_us_per_event']:,.1f} µs",
                f"{each['pss_peak'] / 2**20:,.0f} MiB",
                f"{each['bytes_per_event']:,.0f}" if each["keeps"] else "",
                f"{each['objects']:,}" if each["keeps"] else "",
                f"{each['arrived']:,} of {each['events']:,}" if each["keeps"] else "",
                f"{each['duplicates']:,}" if each["keeps"] else "",
            ]
            for each in mine
        ]
        texts.append(table(header, rows))
    header = ["killed in the middle", "reading", "killed at", "lost", "twice"]
    rows = [
        [
            each["peer"] + (f" ({each['settings']})" if each["settings"] else ""),
            "a stream" if each["kind"] == "stream" else "a collection",
            f"{each['written_at_kill']:,} of {each['events']:,}",
            f"{each['missing']:,}",
            f"{each['duplicates']:,}",
        ]
        for each in killed
    ]
    if rows:
        texts.append(table(header, rows))
    return "\n\n".join(texts)


def plain_table(found: Sequence[Result]) -> str:
    """All figures of a result, for benchmarks without a table of their own."""
    hidden = {"benchmark", "work_hash", "exact", "part", *_CONTEXT}
    names = [name for name in found[0] if name not in hidden]
    return table(names, [[_shown(each[name]) for name in names] for each in found])


_CONTEXT = ("at", "commit", "version", "cores", "memory", "machine", "python", "pyarrow", "pymongo", "numpy")
_SECTIONS: dict[str, tuple[str, Callable[[Sequence[Result]], str]]] = {
    "stream": ("A change stream, end to end", stream_table),
    "split": ("One hot collection", split_table),
    "collections": ("Many collections", collections_table),
    "backfill": ("A whole collection", backfill_table),
    "tables": ("With tables", tables_table),
    "merge": ("Merges into a mirror", merge_table),
    "day": ("A day of commits to a table", plain_table),
    "peer": ("Beside other tools", peer_table),
    "latency": ("From a write to its visible object", plain_table),
    "growth": ("Growth", growth_table),
    "startup": ("From launch to the first event", plain_table),
    "memory": ("Memory", memory_table),
    "decode": ("Decoding", decode_table),
    "encode": ("Encoding", plain_table),
    "slab": ("Shared memory", plain_table),
    "upload": ("Uploading", plain_table),
    "state": ("The state store", plain_table),
}


def write(path: Path, directory: Path) -> Path:
    """Write a report of all results in a file: ``report.md``, and plots next to it."""
    directory.mkdir(parents=True, exist_ok=True)
    found = read(path)
    first = found[0]
    text = [
        "# Headrace: benchmarks",
        f"Commit {first['commit']}, {first['at']}; {first['cores']} cores, {first['memory'] / 2**30:.0f} GiB, "
        f"{first['machine']}; Python {first['python']}, pyarrow {first['pyarrow']}, pymongo {first['pymongo']}, "
        f"numpy {first['numpy']}. All servers and clients run on this machine: take the ratios.",
    ]
    for name, (title, make) in _SECTIONS.items():
        mine = [each for each in found if each["benchmark"] == name]
        if mine:
            text += [f"## {title}", f"`python -m bench {name}`", make(mine)]
            text += [f"![{title}]({plot})" for plot in _plots(name, mine, directory)]
    report = directory / "report.md"
    report.write_text("\n\n".join(text) + "\n")
    return report


def _plots(name: str, found: Sequence[Result], directory: Path) -> list[str]:
    """Draw a section's bar charts; returns the names of the files."""
    match name:
        case "stream":
            labels = [each["workload"] for each in found]
            rates = {"raw drain": "drain", "watch()": "watch", "usual way": "usual", "Headrace": "engine"}
            throughput = {label: [each[f"{key}_per_s"] for each in found] for label, key in rates.items()}
            cpu = {label: [each[f"{key}_cpu_us"] for each in found] for label, key in rates.items()}
            sizes = {"PSS peak": "pss_peak", "memory.limit": "memory_limit"}
            pss = {label: [each[key] / 2**20 for each in found] for label, key in sizes.items()}
            return [
                _bars(directory / "throughput.png", labels, throughput, "events per second", log=True),
                _bars(directory / "cpu.png", labels, cpu, "CPU per event, microseconds", log=True),
                _bars(directory / "memory.png", labels, pss, "MiB"),
            ]
        case "decode":
            times = {"bson.decode_all": [each["driver_us"] for each in found]}
            times["Headrace"] = [each["decoder_us"] for each in found]
            labels = [each["case"] for each in found]
            return [_bars(directory / "decode.png", labels, times, "microseconds per document", log=True)]
        case "growth":
            return [_curves(directory / "growth.png", found)]
        case _:
            return []


def _bars(
    path: Path, labels: Sequence[str], series: Mapping[str, Sequence[float]], unit: str, *, log: bool = False
) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = [place + (number - (len(series) - 1) / 2) * width for place in range(len(labels))]
        axes.bar(places, values, width, label=name, color=_COLORS[number])
    axes.set_xticks(range(len(labels)), [label.replace(", ", "\n") for label in labels])
    axes.set_ylabel(unit)
    if log:
        axes.set_yscale("log")
    figure.legend(loc="outside upper center", ncols=len(series), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    return path.name


def _curves(path: Path, found: Sequence[Result]) -> str:
    """Events per second along each axis."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(each["axis"] for each in found))
    figure = Figure(figsize=(2.4 * len(names), 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        mine = [each for each in found if each["axis"] == name]
        axes.plot(
            [each["value"] for each in mine], [each["events_per_s"] for each in mine], "o-", color=_COLORS[0]
        )
        axes.set(xscale="log", yscale="log", xlabel=name)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel("events per second")
    figure.savefig(path, dpi=110)
    return path.name


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value else ""


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if type(value) is int else str(value)


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), Path(sys.argv[2])))
