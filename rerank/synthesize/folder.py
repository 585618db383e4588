"""A synthetic data set on disk: BEIR's layout, which `rerank.data.load` reads, and where every pair comes from.

    corpus.jsonl, queries.jsonl, qrels/train.tsv, qrels/dev.tsv, meta.json    the data set
    runs/negatives.trec   the hard negatives: in a recipe `candidates: negatives`
    provenance.jsonl      of each query: document, cluster, prompt, model, seed, sample, what the filters said
    drops.jsonl           what did not become a query, and why
    examples.jsonl        the examples that prompts were given
    synthesis.yaml        the configuration; `rerank synthesize duqgen` makes the same of it
    card.json, README.md, map.svg   the data card

Nothing in it tells when or how fast it was made, so equal data is equal to the byte.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rerank.artifact import new_artifact, write_json, write_text
from rerank.data.trec import EXCLUDED, write_run
from rerank.ranking import Ranking, TextSource
from rerank.run import Run
from rerank.synthesize.card import card_of, markdown
from rerank.synthesize.duqgen import KIND, VERSION, Titled
from rerank.synthesize.map import cluster_map

if TYPE_CHECKING:
    from rerank.synthesize.duqgen import DUQGen, Pair, Synthesis

NEGATIVES = "negatives"
"""The name of the lists of negatives."""
_AT_ONCE = 1024
Codes = npt.NDArray[np.int64]


def write_synthesis(out: Path, config: DUQGen, made: Synthesis, key: str, name: str) -> None:
    """Writes the data set to `out`, whole or not at all.

    Raises:
        ArtifactError: `out` holds something else, or cannot be written.
    """
    by_split: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in made.pairs:
        by_split[config.split_of(pair.docno)].append(pair)
    with new_artifact(out, KIND, VERSION, key) as draft:
        folder = draft.path
        (folder / "qrels").mkdir()
        card = card_of(config, made, name, {split: len(pairs) for split, pairs in sorted(by_split.items())})
        write_json(folder / "meta.json", {"name": name, "language": made.corpus.language})
        write_lines(folder / "corpus.jsonl", chain(documents(made.corpus, _used(config, made)), _copies(made)))
        write_lines(folder / "queries.jsonl", ({"_id": pair.qid, "text": pair.query} for pair in made.pairs))
        alike = _alike(made)
        for split, pairs in by_split.items():
            lines = "".join(
                f"{pair.qid}\t{docno}\t{grade}\n" for pair in pairs for docno, grade in _judged(pair, alike[pair.docno])
            )
            write_text(folder / "qrels" / f"{split}.tsv", f"query-id\tcorpus-id\tscore\n{lines}")
        if card["negatives_in_run"]:
            (folder / "runs").mkdir()
            write_run(Run(NEGATIVES, _negatives(made)), folder / "runs" / f"{NEGATIVES}.trec")
        write_lines(folder / "provenance.jsonl", _provenance(made))
        write_lines(folder / "drops.jsonl", _drops(made))
        write_lines(folder / "examples.jsonl", _examples(made))
        write_text(folder / "synthesis.yaml", config.to_yaml(name))
        write_json(folder / "card.json", card)
        write_text(folder / "README.md", markdown(card, made))
        drawing = cluster_map(made.picked, config.seed)
        if drawing:
            write_text(folder / "map.svg", drawing)
        draft.config.update(corpus=made.corpus.fingerprint, data=config.data, queries=len(made.pairs))


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes plain records, one a line."""
    with path.open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _used(config: DUQGen, made: Synthesis) -> Codes:
    """The documents that are written: all, or those that pairs and negatives need."""
    if config.corpus == "all":
        return np.arange(len(made.corpus.ids))
    used = {pair.code for pair in made.pairs} | {each.code for pair in made.pairs for each in pair.negatives}
    return np.array(sorted(used), dtype=np.int64)


def documents(corpus: TextSource, codes: Codes) -> Iterator[dict[str, Any]]:
    """Documents as lines of corpus.jsonl have them, in the order of their ids."""
    codes = codes[np.argsort(corpus.ids.sort_keys(codes), kind="stable")]
    for start in range(0, len(codes), _AT_ONCE):
        some = codes[start : start + _AT_ONCE]
        for docno, (title, text) in zip(corpus.ids.take(some), _parts(corpus, some), strict=True):
            yield {"_id": str(docno), **({"title": title} if title else {}), "text": text}


def _parts(corpus: TextSource, codes: Codes) -> Iterable[tuple[str, str]]:
    if isinstance(corpus, Titled):
        return zip(corpus.titles(codes), corpus.bodies(codes), strict=True)
    return (("", text) for text in corpus.texts(codes))


def _copies(made: Synthesis) -> Iterator[dict[str, Any]]:
    """The copies of documents out of which a query was taken."""
    pairs = [pair for pair in made.pairs if pair.learnt is not None]
    codes = np.array([pair.code for pair in pairs], dtype=np.int64)
    for pair, (title, _) in zip(pairs, _parts(made.corpus, codes), strict=True):
        yield {"_id": pair.positive, **({"title": title} if title else {}), "text": pair.learnt}


def _alike(made: Synthesis) -> Mapping[str, set[str]]:
    """Of each document its own id and those of its copies."""
    alike: defaultdict[str, set[str]] = defaultdict(set)
    for pair in made.pairs:
        alike[pair.docno] |= {pair.docno, pair.positive}
    return alike


def _judged(pair: Pair, alike: set[str]) -> Iterator[tuple[str, int]]:
    """A pair's lines in the judgments; the document's other forms say the same, and must be no candidates."""
    yield pair.positive, 1
    for docno in sorted(alike - {pair.positive}):
        yield docno, EXCLUDED


def _negatives(made: Synthesis) -> Ranking:
    """The negatives as lists, best rank first."""
    lists = {
        pair.qid: {
            str(docno): -float(each.rank)
            for docno, each in zip(_names(made, [each.code for each in pair.negatives]), pair.negatives, strict=True)
        }
        for pair in made.pairs
        if pair.negatives
    }
    return Ranking.of(lists, {pair.qid: pair.query for pair in made.pairs if pair.negatives})


def _names(made: Synthesis, codes: list[int]) -> list[str]:
    return [str(docno) for docno in made.corpus.ids.take(np.array(codes, dtype=np.int64))]


def _provenance(made: Synthesis) -> Iterator[dict[str, Any]]:
    prompts = made.facts.get("prompts", {})
    for pair in made.pairs:
        names = _names(made, [each.code for each in pair.negatives])
        yield {
            "qid": pair.qid,
            "docno": pair.docno,
            "learnt": pair.positive,
            "cluster": pair.cluster,
            "cosine": pair.cosine,
            "generator": made.facts["generator"],
            "model": made.facts.get("model"),
            "prompt": pair.draft.prompt,
            "prompt_fingerprint": prompts.get(pair.draft.prompt),
            "seed": pair.draft.seed,
            "sample": pair.draft.sample,
            "written": pair.draft.text,
            "round_trip_rank": pair.rank,
            "negatives": [[docno, each.rank] for docno, each in zip(names, pair.negatives, strict=True)],
        }


def _drops(made: Synthesis) -> Iterator[dict[str, Any]]:
    for drop in sorted(made.drops, key=lambda drop: (drop.docno, drop.draft.prompt, drop.draft.sample)):
        yield {
            "docno": drop.docno,
            "prompt": drop.draft.prompt,
            "seed": drop.draft.seed,
            "sample": drop.draft.sample,
            "written": drop.draft.text,
            "query": drop.text,
            "reason": drop.reason,
            "repeats": drop.repeats,
        }


def _examples(made: Synthesis) -> Iterator[dict[str, Any]]:
    for prompt, examples in sorted(made.setting.examples.items()):
        for example in examples:
            yield {"prompt": prompt, **example._asdict()}
