"""Times two ways of doing the same work: CPU seconds, one thread, the two alternating in one process.

Set `OMP_NUM_THREADS=1` (and the like) before Python starts; `run_bench` refuses otherwise.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def one_thread() -> None:
    """Sets every library's thread count to one; call it before importing any of them."""
    for name in THREADS:
        os.environ[name] = "1"


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process while `work` runs."""
    start = time.process_time()
    work()
    return time.process_time() - start


def run_bench(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    peer_name: str,
    goal: str,
    faster_is: str = "ours/peer",
    rounds: int = 5,
    **facts: object,
) -> None:
    """Runs both once to warm up, then alternately `rounds` times, and prints one JSON line with the medians.

    `faster_is`: `ours/peer` gives the ratio of costs, `peer/ours` how many times faster ours is.
    """
    ours()
    peer()
    pairs = [(cpu_seconds(ours), cpu_seconds(peer)) for _ in range(rounds)]
    ratios = [a / b if faster_is == "ours/peer" else b / a for a, b in pairs]
    line = {
        "bench": name,
        "ratio": round(statistics.median(ratios), 3),
        "ratio_is": faster_is,
        "goal": goal,
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "ours_cpu_s": round(statistics.median(a for a, _ in pairs), 5),
        "peer_cpu_s": round(statistics.median(b for _, b in pairs), 5),
        "peer": peer_name,
        "rounds": rounds,
        **facts,
    }
    print(json.dumps(line))
