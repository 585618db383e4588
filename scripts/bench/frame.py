"""New scores, order, cut at 100 over 500 queries x 1,000 documents: the frame against pandas.

python scripts/bench/frame.py
"""

from __future__ import annotations

from alternate import one_thread, run_bench

one_thread()

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from rerank.ids import MemoryIds  # noqa: E402
from rerank.ranking import Ranking, ScoreKind  # noqa: E402

QUERIES, DOCUMENTS, KEPT = 500, 1000, 100


def main() -> None:
    rng = np.random.default_rng(0)
    ids = MemoryIds([f"d{i}" for i in range(100_000)])
    docs = np.concatenate([rng.choice(len(ids), DOCUMENTS, replace=False) for _ in range(QUERIES)])
    start = Ranking.start({f"q{i}": "" for i in range(QUERIES)})
    offsets = np.arange(QUERIES + 1) * DOCUMENTS
    ranking = start.with_documents(offsets, docs, rng.random(len(docs)), ScoreKind.DOT, ids)
    frame = pd.DataFrame({"qid": np.repeat(np.arange(QUERIES), DOCUMENTS), "docno": ranking.docs})
    scores = rng.random(len(docs))

    def ours() -> Ranking:
        return ranking.rescored(scores, ScoreKind.LOGIT).cut(KEPT)

    def peer() -> pd.DataFrame:
        # Integer query ids and one sort of the whole frame: the fastest of the usual pandas ways.
        scored = frame.assign(score=scores)
        ordered = scored.sort_values(["qid", "score"], ascending=[True, False])
        return ordered.groupby("qid", sort=False).head(KEPT)

    kept = peer()
    assert ours().docs.tolist() == kept["docno"].tolist()
    run_bench(
        "frame: rescore, order, cut",
        ours,
        peer,
        peer_name=f"pandas {pd.__version__}",
        goal=">= 10",
        faster_is="peer/ours",
        queries=QUERIES,
        documents=DOCUMENTS,
    )


if __name__ == "__main__":
    main()
