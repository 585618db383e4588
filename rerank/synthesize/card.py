"""The data card of a synthetic data set: what is in it, how it came about, and what was dropped on the way."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rerank import __version__
from rerank.synthesize.duplicates import words_of
from rerank.words import n_words, one_line, share

if TYPE_CHECKING:
    from rerank.synthesize.duqgen import DUQGen, Pair, Synthesis

_SAMPLES = 12
_SHOWN_CHARACTERS = 160


def card_of(config: DUQGen, made: Synthesis, name: str, splits: Mapping[str, int]) -> dict[str, Any]:
    """The card as plain JSON."""
    clean, clusters = made.picked.clean, made.picked.clusters
    sizes = clusters.sizes if clusters is not None else []
    used = {pair.cluster for pair in made.pairs}
    return {
        "name": name,
        "data": config.data,
        "corpus": made.corpus.fingerprint,
        "language": made.corpus.language,
        "queries": len(made.pairs),
        "splits": dict(splits),
        "documents": {
            "in the collection": len(made.corpus.ids),
            "clean": len(clean.codes),
            "dropped": dict(clean.dropped),
            "chosen": len(made.picked.places),
            "with queries": len({pair.docno for pair in made.pairs}),
        },
        "clusters": {
            "number": len(sizes),
            "largest": max(sizes, default=0),
            "smallest": min(sizes, default=0),
            "with queries": len(used - {None}),
            "elbow": {str(k): round(value, 4) for k, value in clusters.curve.items()} if clusters is not None else {},
        },
        **dict(made.facts),
        "queries_by_prompt": dict(sorted(Counter(pair.draft.prompt for pair in made.pairs).items())),
        "dropped": dict(sorted(Counter(drop.reason for drop in made.drops).items())),
        "counted": dict(sorted(made.counts.items())),
        "words": _spread([n_words(pair.query) for pair in made.pairs]),
        "overlap": _overlaps(made),
        "round_trip_ranks": _ranks([pair.rank for pair in made.pairs if pair.rank is not None]),
        "negatives": dict(sorted(Counter(str(len(pair.negatives)) for pair in made.pairs).items())),
        "negatives_in_run": _fits_a_run(made.pairs, made.corpus.ids),
        "seed": config.seed,
        "rerank": __version__,
    }


def _overlaps(made: Synthesis) -> dict[str, float]:
    """Of the queries' different words, which share stands in their documents."""
    texts = made.corpus.texts(np.array([pair.code for pair in made.pairs], dtype=np.int64))
    found = []
    for pair, text in zip(made.pairs, texts, strict=True):
        words = words_of(pair.query)
        found.append(len(words & words_of(text)) / max(1, len(words)))
    return _spread(found)


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and quartiles.

    >>> _spread([1, 2, 3])
    {'mean': 2.0, 'quarter': 1.5, 'median': 2.0, 'three quarters': 2.5}
    """
    quarter, median, upper = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    found = {"mean": statistics.fmean(values), "quarter": quarter, "median": median, "three quarters": upper}
    return {what: round(value, 3) for what, value in found.items()}


def _ranks(ranks: Sequence[int]) -> dict[str, int]:
    """How many documents were found at rank 1, 2 to 3, 4 to 10 and later.

    >>> _ranks([1, 1, 5])
    {'1': 2, '2 to 3': 0, '4 to 10': 1, '11 and later': 0}
    """
    bands = {"1": (1, 1), "2 to 3": (2, 3), "4 to 10": (4, 10), "11 and later": (11, 1 << 40)}
    return {what: sum(low <= rank <= high for rank in ranks) for what, (low, high) in bands.items()} if ranks else {}


def _fits_a_run(pairs: Sequence[Pair], ids: Any) -> bool:
    """Whether there are negatives, and none has an id with white space, which a run file cannot carry."""
    codes = sorted({each.code for pair in pairs for each in pair.negatives})
    names = ids.take(np.array(codes, dtype=np.int64)) if codes else []
    return bool(codes) and not any(any(map(str.isspace, str(name))) for name in names)


def markdown(card: Mapping[str, Any], made: Synthesis) -> str:
    """The card for people."""
    documents, clusters = card["documents"], card["clusters"]
    lines = [
        f"# {card['name']}",
        "",
        f"{card['queries']:,} queries that {_writer(card)} wrote for documents of `{card['data'] or 'a collection'}`.",
        "Nobody judged them: that a query's document answers it is an assumption, and so is that its negatives do not.",
        "",
        "| | |",
        "|---|---|",
    ]
    facts = [
        ("queries", ", ".join(f"{n:,} {split}" for split, n in card["splits"].items())),
        ("by prompt", ", ".join(f"{n:,} {prompt}" for prompt, n in card["queries_by_prompt"].items())),
        ("documents", _documents(documents)),
        ("clusters", f"{clusters['number']:,}, {clusters['with queries']:,} of them with queries"),
        ("words of a query", _spread_text(card["words"])),
        ("of them in the document", _spread_text(card["overlap"])),
        ("document found at rank", ", ".join(f"{n:,} at {rank}" for rank, n in card["round_trip_ranks"].items())),
        ("negatives", ", ".join(f"{n:,} queries with {size}" for size, n in card["negatives"].items())),
        ("seed", str(card["seed"])),
    ]
    lines += [f"| {title} | {text or 'not known'} |" for title, text in facts]
    for title, counted in (("Dropped", card["dropped"]), ("Documents left out", documents["dropped"])):
        lines += ["", f"## {title}", ""]
        lines += [f"- {n:,} {reason}" for reason, n in sorted(counted.items(), key=lambda item: -item[1])] or ["None."]
    if card["counted"]:
        lines += ["", "## Counted", "", *(f"- {n:,} {what}" for what, n in card["counted"].items())]
    lines += ["", "## Samples", "", *samples(made.pairs, made.corpus)]
    if card["negatives_in_run"]:
        size = max(map(int, card["negatives"]))
        lines += [
            "",
            "## To train on it",
            "",
            "    groups:",
            "      - data: path/to/this/folder",
            "        candidates: negatives",
            f"        negatives: {{to_rank: {size}}}",
            f"        sizes: [{size + 1}]",
        ]
    elif set(card["negatives"]) - {"0"}:
        lines += ["", "Ids with white space cannot stand in a run file: the negatives are in provenance.jsonl only."]
    return "\n".join(lines) + "\n"


def samples(pairs: Sequence[Pair], corpus: Any) -> list[str]:
    """A few pairs as list items: the query, and how its document begins."""
    some = sorted(pairs, key=lambda pair: share(0, "card", pair.qid))[:_SAMPLES]
    texts = corpus.texts(np.array([pair.code for pair in some], dtype=np.int64))
    return [
        f"- **{_literal(pair.query)}** ({pair.docno}: {_literal(one_line(text)[:_SHOWN_CHARACTERS])})"
        for pair, text in zip(some, texts, strict=True)
    ]


def _literal(text: str) -> str:
    """A text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|" else c if c.isprintable() else " " for c in text)


def _writer(card: Mapping[str, Any]) -> str:
    return f"`{card['model']}`" if card.get("model") else f"the generator `{card['generator']}`"


def _documents(found: Mapping[str, Any]) -> str:
    return (
        f"{found['in the collection']:,}, {found['clean']:,} of them clean, {found['chosen']:,} chosen, "
        f"{found['with queries']:,} with queries"
    )


def _spread_text(spread: Mapping[str, float]) -> str:
    return f"mean {spread['mean']:.2f}, half between {spread['quarter']:.2f} and {spread['three quarters']:.2f}"
