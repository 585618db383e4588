"""BM25 search through the stage against bm25s called directly (numba), over 100,000 generated documents.

    python scripts/bench/bm25_search.py

The corpus follows `Zipf-Mandelbrot` term frequencies; text is whitespace tokens, so both sides analyse alike.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from alternate import one_thread, run_bench

one_thread()

import bm25s  # noqa: E402
import numpy as np  # noqa: E402

from rerank.data.corpus import MemoryCorpus  # noqa: E402
from rerank.ranking import Ranking  # noqa: E402
from rerank.retrieve.analysis import Analyser  # noqa: E402
from rerank.retrieve.bm25 import BM25  # noqa: E402
from rerank.runtime import Runtime  # noqa: E402

DOCUMENTS, TYPES, QUERIES = 100_000, 500_000, 200


def texts(rng: np.random.Generator) -> list[str]:
    """Documents of lognormal length (median 32 terms)."""
    weights = (np.arange(TYPES) + 50.0) ** -1.05
    # A passage's commonest term without stop words stands in some 6 % of documents.
    terms = rng.choice(TYPES, size=DOCUMENTS * 40, p=weights / weights.sum())
    lengths = np.maximum(4, rng.lognormal(np.log(32), 0.45, DOCUMENTS).astype(int))
    out, at = [], 0
    for length in lengths.tolist():
        out.append(" ".join(f"t{term}" for term in terms[at : at + length]))
        at += length
    return out


def main() -> None:
    rng = np.random.default_rng(7)
    documents = texts(rng)
    corpus = MemoryCorpus({f"d{i}": text for i, text in enumerate(documents)})
    analyser = Analyser(stem=False, stop_words=False, token_pattern=r"\S+")
    peer_index = bm25s.BM25(k1=0.9, b=0.4, backend="numba")
    peer_index.index([text.split() for text in documents], show_progress=False)
    with Runtime(Path(tempfile.mkdtemp()), threads=1, progress=False) as runtime:
        for n_terms in (3, 8, 30, 150):
            queries = [
                " ".join(rng.choice(" ".join(documents[i : i + 5]).split(), n_terms))
                for i in rng.integers(0, DOCUMENTS - 5, QUERIES)
            ]
            topics = Ranking.start({f"q{i}": query for i, query in enumerate(queries)}, corpus)
            for k in (10, 1000):
                stage = BM25(k=k, analyser=analyser)

                def ours(stage: BM25 = stage, topics: Ranking = topics) -> Ranking:
                    return runtime.rank(stage, topics)

                def peer(queries: list[str] = queries, k: int = k) -> object:
                    return peer_index.retrieve([q.split() for q in queries], k=k, n_threads=1, show_progress=False)

                found, wanted = ours(), peer()
                assert all(
                    hits.docnos[0] == f"d{wanted.documents[i, 0]}" or hits[0].score == wanted.scores[i, 0]
                    for i, hits in enumerate(found)
                    if len(hits)
                )
                assert (found.scores > 0).all()
                run_bench(
                    f"bm25 search, {n_terms} terms, k={k}",
                    ours,
                    peer,
                    peer_name=f"bm25s {bm25s.__version__} numba",
                    goal="<= 1.3",
                    documents=DOCUMENTS,
                    queries=QUERIES,
                )


if __name__ == "__main__":
    main()
