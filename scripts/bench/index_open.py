"""Opening a BM25 index of 100,000 documents against bm25s's own memory-mapped load.

python scripts/bench/index_open.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from alternate import one_thread, run_bench

one_thread()

import bm25s  # noqa: E402
import numpy as np  # noqa: E402
from bm25_search import DOCUMENTS, texts  # noqa: E402

from rerank.artifact import open_artifact  # noqa: E402
from rerank.data.corpus import MemoryCorpus  # noqa: E402
from rerank.retrieve.analysis import Analyser  # noqa: E402
from rerank.retrieve.bm25 import BM25, KIND, VERSION, BM25Index  # noqa: E402
from rerank.runtime import Runtime  # noqa: E402


def main() -> None:
    documents = texts(np.random.default_rng(7))
    folder = Path(tempfile.mkdtemp())
    peer_index = bm25s.BM25(k1=0.9, b=0.4)
    peer_index.index([text.split() for text in documents], show_progress=False)
    peer_index.save(folder / "peer", show_progress=False)
    stage = BM25(analyser=Analyser(stem=False, stop_words=False, token_pattern=r"\S+"))
    with Runtime(folder, threads=1, progress=False) as runtime:
        stage.build(MemoryCorpus({f"d{i}": text for i, text in enumerate(documents)}), folder / "ours", runtime)
    run_bench(
        "opening an index",
        lambda: BM25Index(folder / "ours", open_artifact(folder / "ours", KIND, VERSION)),
        lambda: bm25s.BM25.load(folder / "peer", mmap=True),
        peer_name=f"bm25s {bm25s.__version__} load(mmap=True)",
        goal="<= 1.3",
        documents=DOCUMENTS,
    )


if __name__ == "__main__":
    main()
