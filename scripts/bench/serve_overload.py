"""`rerank serve` under twice the load that it can bear: what is refused, how memory grows, whether scores stay.

    python scripts/bench/serve_overload.py [--data ../shared/data] [--threads 2] [--dtype bfloat16] [--seconds 600]
                                           [--times 2] [--sample 10]

The server of `serve.py` is loaded by 32 clients first, for what it can bear, then by requests that come at random,
`--times` as many a second.  Memory of front and worker is read every `--sample` seconds.

Prints one JSON line: requests answered and refused by status, latency of those answered, megabytes in the first and the
last fifth of the time, and how far the scores of one request moved from before to after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import threading
from pathlib import Path

from serve import Running, furthest, questions_of, running, scores_of

from rerank.serve.load import Target, closed_loop, open_loop

CLIENTS = 32


class Memory:
    """Megabytes of a server, read until the block ends."""

    def __init__(self, server: Running, every: float) -> None:
        self.found: list[float] = []
        self._server, self._every = server, every
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        while not self._ends.wait(self._every):
            self.found.append(self._server.megabytes())
            print(json.dumps({"megabytes": self.found[-1]}), file=sys.stderr, flush=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def fifth(self, *, last: bool) -> float:
        """The median of the first or the last fifth."""
        n = max(1, len(self.found) // 5)
        return round(statistics.median(self.found[-n:] if last else self.found[:n]), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--texts", choices=["dl-2019", "mix"], default="dl-2019")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--times", type=float, default=2.0, help="of what it can bear")
    parser.add_argument("--sample", type=float, default=10.0, help="seconds from one reading of memory to the next")
    options = parser.parse_args()

    from cross_encoder import write_classifier

    from rerank.models import resolve_model

    questions = questions_of(options.data, options.texts)
    with tempfile.TemporaryDirectory() as name:
        folder = str(Path(name) / "cross-encoder")
        write_classifier(resolve_model(options.model).path, Path(folder))
        command = [sys.executable, "-m", "rerank", "serve", folder, "--dtype", options.dtype]
        command += ["--threads", str(options.threads), "--port", "0"]
        with running("ours", command, options.threads) as server:
            target = Target(server.url, questions)
            before = scores_of(server.url, questions[0])
            bears = asyncio.run(closed_loop(target, CLIENTS, max(5.0, options.seconds / 40), 3.0))
            with Memory(server, options.sample) as memory:
                level = asyncio.run(open_loop(target, options.times * bears.throughput, options.seconds))
            after = scores_of(server.url, questions[0])
    print(
        json.dumps(
            {
                "bench": "serve-overload",
                "bears_per_second": round(bears.throughput, 2),
                "sent_per_second": round(options.times * bears.throughput, 2),
                **level.to_dict(),
                "goal_errors": "429 alone",
                "megabytes_first": memory.fifth(last=False),
                "megabytes_last": memory.fifth(last=True),
                "scores_moved": furthest(before, after),
                "threads": options.threads,
                "dtype": options.dtype,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
