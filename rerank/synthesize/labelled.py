"""Labelled lists on disk: a data set with its lists, and what groups it gives.

    corpus.jsonl, queries.jsonl, meta.json   the queries, and the documents of their lists
    groups.yaml       what groups it gives; a recipe says `groups: path/to/this/folder`
    lists/candidates, lists/labels           runs: the lists as they were found, and with their labels as scores
    labels.jsonl      of each query's documents: where they were found, each teacher's rank and score, the label
    labels.yaml       the configuration; `rerank synthesize labels` makes the same of it
    card.json, README.md                     the data card

Nothing in it tells when or how fast it was made, so equal lists are equal to the byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rerank import __version__
from rerank.artifact import new_artifact, write_json, write_text
from rerank.data.runs import save_run
from rerank.ranking import Ranking
from rerank.run import Run
from rerank.synthesize.folder import documents, write_lines
from rerank.synthesize.labels import KIND, VERSION, corpus_of
from rerank.train.sources import GROUPS
from rerank.yamlfile import dump_yaml

if TYPE_CHECKING:
    from rerank.synthesize.labels import Labelled, LabelledLists, Labelling

CANDIDATES, LABELS = "lists/candidates", "lists/labels"
_DIGITS = 6


def write_labelling(out: Path, config: LabelledLists, made: Labelling, key: str, name: str) -> None:
    """Writes the lists to `out`, whole or not at all."""
    corpus = corpus_of(made.data)
    longest = max(map(len, made.lists.values()))
    used = np.array(sorted({c.code for some in made.lists.values() for c in some}), dtype=np.int64)
    groups: dict[str, Any] = {
        "data": ".",
        "split": config.split,
        "interval": {
            "run": CANDIDATES,
            "first": longest,
            "drawn": 0,
            "to_rank": longest,
            "groups": config.interval.groups,
        },
        "teacher": {"run": LABELS},
        "sizes": list(config.sizes),
        **({"weights": list(config.weights)} if config.weights else {}),
        "seed": config.seed,
    }
    with new_artifact(out, KIND, VERSION, key) as draft:
        folder = draft.path
        write_json(folder / "meta.json", {"name": name, "language": corpus.language})
        write_lines(folder / "corpus.jsonl", documents(corpus, used))
        write_lines(folder / "queries.jsonl", ({"_id": qid, "text": made.data.queries[qid]} for qid in made.lists))
        save_run(Run("candidates", _lists(made, lambda each: -float(each.found_at))), folder / CANDIDATES)
        save_run(Run("labels", _lists(made, lambda each: each.label)), folder / LABELS)
        write_lines(folder / "labels.jsonl", _records(made))
        write_text(folder / GROUPS, dump_yaml(groups))
        write_text(folder / "labels.yaml", config.to_yaml(name))
        card = card_of(config, made, name)
        write_json(folder / "card.json", card)
        write_text(folder / "README.md", _markdown(card))
        draft.config.update(data=config.data, queries=len(made.lists), documents=len(used))


def _lists(made: Labelling, score: Callable[[Labelled], float]) -> Ranking:
    """The lists by the documents' names, whose codes are those of no collection."""
    ids = corpus_of(made.data).ids
    lists = {}
    for qid, some in made.lists.items():
        names = ids.take(np.array([each.code for each in some], dtype=np.int64))
        lists[qid] = {str(docno): score(each) for docno, each in zip(names, some, strict=True)}
    return Ranking.of(lists, {qid: made.data.queries[qid] for qid in lists})


def _records(made: Labelling) -> Iterator[dict[str, Any]]:
    """A query's documents, the best label first."""
    ids = corpus_of(made.data).ids
    for qid, some in made.lists.items():
        ordered = sorted(some, key=lambda each: -each.label)
        names = ids.take(np.array([each.code for each in ordered], dtype=np.int64))
        yield {
            "qid": qid,
            "documents": [
                {
                    "docno": str(docno),
                    "found_at": each.found_at,
                    "pointwise_rank": each.pointwise,
                    "pointwise_score": None if each.score is None else round(float(each.score), _DIGITS),
                    "listwise_rank": each.listwise,
                    "fused": each.fused,
                    "label": round(each.label, _DIGITS),
                }
                for docno, each in zip(names, ordered, strict=True)
            ],
        }


def card_of(config: LabelledLists, made: Labelling, name: str) -> dict[str, Any]:
    """The card as plain JSON."""
    lists = list(made.lists.values())
    of = {
        "pointwise and listwise": [(c.pointwise, c.listwise) for some in lists for c in some],
        "pointwise and found": [(c.pointwise, c.found_at) for some in lists for c in some],
        "listwise and found": [(c.listwise, c.found_at) for some in lists for c in some],
    }
    sizes = [len(some) for some in lists]
    bounds = np.cumsum([0, *sizes])
    agreement = {
        what: round(float(np.mean([kendall(pairs[a:b]) for a, b in pairwise(bounds.tolist())])), 4)
        for what, pairs in of.items()
    }
    return {
        "name": name,
        "data": config.data,
        "split": config.split,
        "queries": len(lists),
        "documents": len({c.code for some in lists for c in some}),
        "labels": sum(sizes),
        "list_sizes": {str(size): n for size, n in sorted(Counter(sizes).items())},
        "beta": config.beta,
        "top": config.top,
        "agreement": agreement,
        "same_first": round(float(np.mean([any(c.pointwise == c.listwise == 1 for c in some) for some in lists])), 4),
        "counted": dict(sorted(made.counts.items())),
        "provenance": dict(made.provenance),
        "group_sizes": list(config.sizes),
        "groups_a_query": config.interval.groups,
        "seed": config.seed,
        "rerank": __version__,
    }


def kendall(pairs: Sequence[tuple[int, int]]) -> float:
    """How far two orders without ties agree, from -1 (reversed) to 1 (equal): Kendall's tau.

    >>> kendall([(1, 1), (2, 2), (3, 3)]), round(kendall([(1, 2), (2, 1), (3, 3)]), 4)
    (1.0, 0.3333)
    """
    ranks = np.array(pairs)
    signs = np.sign(ranks[:, None, :] - ranks[None, :, :]).prod(axis=2)
    return float(signs.sum() / (len(pairs) * (len(pairs) - 1)))


def _markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    agreement = ", ".join(f"{what} {value:.2f}" for what, value in card["agreement"].items())
    facts = [
        ("queries", f"{card['queries']:,} of `{card['data']}` ({card['split']})"),
        ("labels", f"{card['labels']:,} of {card['documents']:,} documents"),
        ("documents a list", ", ".join(f"{n:,} lists of {size}" for size, n in card["list_sizes"].items())),
        ("Kendall's tau", agreement),
        ("same first document", f"{card['same_first']:.0%} of the queries, by both teachers"),
        ("weight of the pointwise teacher", str(card["beta"])),
        ("groups", f"{card['groups_a_query']} a query at most, of {card['group_sizes']} documents"),
        ("seed", str(card["seed"])),
    ]
    facts += [
        (f"{what} by", f"`{_literal(told.get('pipeline', 'a run'))}`") for what, told in card["provenance"].items()
    ]
    lines = [
        f"# {card['name']}",
        "",
        f"Candidate lists with labels from two teachers, which nobody checked: {_meaning(card['top'])}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {title} | {text} |" for title, text in facts),
    ]
    if card["counted"]:
        lines += ["", "## Counted", "", *(f"- {n:,} {what}" for what, n in card["counted"].items())]
    lines += ["", "## To train on it", "", "    groups: path/to/this/folder"]
    return "\n".join(lines) + "\n"


def _meaning(top: float | None) -> str:
    """What a label is."""
    fused = "minus the weighted mean of the logarithms of a document's two ranks"
    return f"a label is {fused}." if top is None else f"a label is {fused}, stretched from 0 to {top:g} in each list."


def _literal(text: str) -> str:
    """A pipeline's expression as a table's cell can hold it."""
    return text.replace("`", "'").replace("|", "\\|").replace("\n", " ")
