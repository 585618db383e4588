"""Times two ways of doing the same work: CPU seconds, one thread, the two alternating in one process.

Set `OMP_NUM_THREADS=1` (and the like) before Python starts; `run_bench` refuses otherwise.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

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
    flop: float = 0.0,
    peaks: Mapping[str, Callable[[], float]] | None = None,
    **facts: object,
) -> None:
    """Runs both once to warm up, then alternately `rounds` times, and prints one JSON line with the medians.

    `faster_is`: `ours/peer` gives the ratio of costs, `peer/ours` how many times faster ours is.  `peaks` are ways to
    find out how many FLOP a second could be done, tried in every round; of each it is told which share `flop`, the work
    that ours has to do, reached.
    """
    ours()
    peer()
    pairs: list[tuple[float, float]] = []
    rates: dict[str, list[float]] = {way: [] for way in peaks or {}}
    for _ in range(rounds):
        pairs.append((cpu_seconds(ours), cpu_seconds(peer)))
        for way, rate in (peaks or {}).items():
            rates[way].append(rate())
    if rates:
        facts["gflops_peak"] = {way: round(statistics.median(found) / 1e9, 1) for way, found in rates.items()}
        facts["share_of_peak"] = {
            way: round(statistics.median(flop / a / rate for (a, _), rate in zip(pairs, found, strict=True)), 3)
            for way, found in rates.items()
        }
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
    print(json.dumps(line), flush=True)


def megabytes_of(side: str) -> dict[str, float]:
    """The memory that `side` of this bench takes in a process of its own: this program again, with `--side`."""
    command = [sys.executable, *sys.argv, "--side", side]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def print_megabytes(work: Callable[[], object]) -> None:
    """Prints the highest memory of this process up to now, and while `work` runs; on Linux only."""
    up_to_now = _highest_megabytes()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    work()
    print(json.dumps({"while_loading": up_to_now, "while_working": _highest_megabytes()}))


def _highest_megabytes() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024)
