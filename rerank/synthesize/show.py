"""What a synthetic data set holds, for people: numbers, samples, where its map is."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from rerank.artifact import MANIFEST, open_artifact, read_manifest
from rerank.data.lines import read_json_lines
from rerank.synthesize.duqgen import KIND, VERSION

_DROPS_SHOWN = 5


def is_synthetic(folder: Path) -> bool:
    """Whether a folder is a data set that a synthesis wrote.

    Raises:
        CorruptArtifactError: a manifest that is none.
    """
    return (folder / MANIFEST).is_file() and read_manifest(folder).kind == KIND


def shown(folder: Path, samples: int = 5) -> str:
    """The lines of `rerank data show` about a synthetic data set: how it came about, samples, lengths, drops.

    Args:
        folder: the data set.
        samples: how many queries, and dropped texts, are shown.

    Raises:
        ArtifactError: it is not one, or not whole.
    """
    open_artifact(folder, KIND, VERSION)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    documents, clusters, words, overlap = card["documents"], card["clusters"], card["words"], card["overlap"]
    grouped = f"{clusters['number']:,}, {clusters['with queries']:,} of them with queries; see map.svg"
    facts = [
        ("written by", " ".join(str(card[what]) for what in ("generator", "model") if card.get(what))),
        ("documents", f"{documents['with queries']:,} of {documents['chosen']:,} chosen, {documents['clean']:,} clean"),
        ("clusters", grouped if clusters["number"] else "none"),
        (
            "length",
            f"mean {words['mean']:.1f} words, half between {words['quarter']:.0f} and {words['three quarters']:.0f}",
        ),
        ("overlap", f"{overlap['mean']:.0%} of a query's words stand in its document"),
        ("found again", ", ".join(f"{n:,} at {rank}" for rank, n in card["round_trip_ranks"].items()) or "not tried"),
        ("dropped", _counted(card["dropped"])),
        ("left out", _counted(documents["dropped"])),
    ]
    lines = [f"{title:<13}{text}" for title, text in facts]
    texts = {record["_id"]: record["text"] for _, record in read_json_lines(folder / "queries.jsonl")}
    for _, record in islice(read_json_lines(folder / "provenance.jsonl"), samples):
        rank = record["round_trip_rank"]
        found = "" if rank is None else f", found at {rank}"
        lines.append(f"query        {_line(texts[record['qid']])} ({record['docno']}, {record['prompt']}{found})")
    for _, record in islice(read_json_lines(folder / "drops.jsonl"), min(samples, _DROPS_SHOWN)):
        lines.append(f"drop         {_line(record['written'])} ({record['docno']}: {record['reason']})")
    return "\n".join(lines)


def _counted(numbers: dict[str, Any]) -> str:
    most = sorted(numbers.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{n:,} {reason}" for reason, n in most) or "none"


def _line(text: str) -> str:
    """The beginning of a text on one line, without what a terminal might obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:200]).split())[:120]
