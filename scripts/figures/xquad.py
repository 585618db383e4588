"""The table of `rerank/retrieve/analysis.py`: BM25 within each language of XQuAD, by way of analysing the text.

    python scripts/figures/xquad.py FOLDER

FOLDER holds one BEIR folder a language, `xquad-de-de` and so on. BM25 is bm25s called directly (method lucene, k1 0.9,
b 0.4), the measure is nDCG@10 of ir_measures over all 1,190 questions. Columns:

    \\w+        words as Python's \\w sees them, cut at combining marks; no stop words, no stems
    words      this package's words (or pairs of characters); no stop words, no stems
    stop       words without stop words
    stem       words, stemmed
    auto       Analyser(language), the default
    auto 2+    the same without terms of one character
    seconds    one thread's time for analysing the paragraphs by the default
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections import defaultdict
from pathlib import Path

import bm25s
import ir_measures

from rerank.retrieve.analysis import Analyser

LANGUAGES = ("en", "de", "es", "ru", "tr", "ar", "zh", "hi")
NDCG = ir_measures.nDCG @ 10


def jsonl(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def judgments(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    with path.open(encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            qid, docno, grade = line.split()
            qrels[qid][docno] = int(grade)
    return dict(qrels)


def ndcg(folder: Path, analyser: Analyser, shortest: int = 1) -> float:
    corpus, queries = jsonl(folder / "corpus.jsonl.gz"), jsonl(folder / "queries.jsonl.gz")

    def terms(text: str) -> list[str]:
        return [term for term in analyser(text) if len(term) >= shortest]

    index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    index.index([terms(f"{d['title']} {d['text']}") for d in corpus], show_progress=False)
    run: dict[str, dict[str, float]] = {}
    for query in queries:
        known = [term for term in terms(query["text"]) if term in index.vocab_dict]
        scores = index.get_scores(known) if known else ()
        run[query["_id"]] = {d["_id"]: float(score) for d, score in zip(corpus, scores, strict=False) if score > 0}
    return float(ir_measures.calc_aggregate([NDCG], judgments(folder / "qrels" / "test.tsv"), run)[NDCG])


def seconds(folder: Path, analyser: Analyser) -> float:
    texts = [d["text"] for d in jsonl(folder / "corpus.jsonl.gz")]
    analyser(texts[0])
    start = time.thread_time()
    for text in texts:
        analyser(text)
    return time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder that holds xquad-de-de and so on")
    collections = parser.parse_args().folder
    print(f"{'':8}{chr(92) + 'w+':>8}{'words':>8}{'stop':>8}{'stem':>8}{'auto':>8}{'auto 2+':>9}{'seconds':>9}")
    for language in LANGUAGES:
        folder = collections / f"xquad-{language}-{language}"
        default = Analyser(language)
        figures = (
            ndcg(folder, Analyser(language, stem=False, stop_words=False, token_pattern=r"\w+")),
            ndcg(folder, Analyser(language, stem=False, stop_words=False)),
            ndcg(folder, Analyser(language, stem=False)),
            ndcg(folder, Analyser(language, stop_words=False)),
            ndcg(folder, default),
        )
        cells = "".join(f"{figure:8.4f}" for figure in figures)
        print(f"{language:8}{cells}{ndcg(folder, default, 2):9.4f}{seconds(folder, default):9.3f}")


if __name__ == "__main__":
    main()
