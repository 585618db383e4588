"""Clusters of many documents: the highest memory and the time of K-means over vectors that lie on disk.

    python scripts/bench/clustering.py [--documents 1000000] [--clusters 1000] [--iterations 100] [--threads 2]

The vectors are random and of length 1, in a file as `dense` keeps them.  The goal is less than 4 GB at 1,000,000
documents of 384 dimensions in 1,000 clusters; what of the file is mapped counts as well.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_vectors(path: Path, documents: int, width: int) -> np.ndarray:
    """Random vectors around 2,000 centres, mapped from a file."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(2000, width)).astype(np.float32)
    matrix = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(documents, width))
    for start in range(0, documents, 50_000):
        size = min(50_000, documents - start)
        part = centres[random.integers(0, len(centres), size)] + random.standard_normal((size, width), dtype=np.float32)
        matrix[start : start + size] = part / np.linalg.norm(part, axis=1, keepdims=True)
    matrix.flush()
    del matrix
    return np.load(path, mmap_mode="r")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import faiss

    from rerank.synthesize.clusters import Clustering, clustered

    faiss.omp_set_num_threads(options.threads)

    def names(places: Sequence[int]) -> list[str]:
        return [f"d{place:08d}" for place in places]

    with tempfile.TemporaryDirectory() as folder:
        matrix = write_vectors(Path(folder, "vectors.npy"), options.documents, options.width)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        started = time.perf_counter()
        clustering = Clustering(k=options.clusters, iterations=options.iterations)
        found = clustered(matrix, np.arange(len(matrix)), names, clustering, 0)
        seconds = time.perf_counter() - started
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024**2
    line = {
        "bench": "clustering",
        "gigabytes": round(peak, 2),
        "goal": "< 4 at 1,000,000 documents",
        "seconds": round(seconds, 1),
        "clusters": len(found),
        "mean_cosine": round(float(found.cosines.mean()), 4),
        **vars(options),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
