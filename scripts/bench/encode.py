"""Encoding documents against `SentenceTransformer.encode` in the same type, on abstracts of two collections.

    python scripts/bench/encode.py [--data ../shared/data] [--model minilm-l6] [--dtypes float32 bfloat16]

Half are Cranfield's, half NFCorpus's, shuffled; both sides cut at the model's length.  In float32 the vectors must be
equal to 1e-5.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from alternate import one_thread, run_bench

one_thread()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from rerank.data.load import load  # noqa: E402
from rerank.engines.encoder import load_encoder  # noqa: E402
from rerank.runtime import Runtime  # noqa: E402


def texts(data: Path, runtime: Runtime, n: int) -> list[str]:
    """`n` documents, half from each collection."""
    rng = np.random.default_rng(5)
    found: list[str] = []
    for name in ("cranfield", "beir-nfcorpus"):
        corpus = load(data / name, runtime=runtime).corpus
        if corpus is None:
            raise SystemExit(f"{data / name} has no corpus")
        found += corpus.texts(rng.choice(len(corpus.ids), n // 2, replace=False))
    return [found[i] for i in rng.permutation(len(found))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--texts", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with Runtime(threads=1, device="cpu", progress=False) as runtime:
        some = texts(options.data, runtime, options.texts)
        for dtype in options.dtypes:
            encoder = load_encoder(runtime, options.model, dtype=dtype)
            # The library's own model in that type; ours keeps pooling in float32.
            library = load_encoder(runtime, options.model, dtype="float32").model
            library.to(getattr(torch, dtype))
            ours = encoder.encode_documents(some)
            theirs = library.encode_document(some, convert_to_tensor=True).float().numpy()
            run_bench(
                f"encode {options.model} {dtype}",
                lambda encoder=encoder: encoder.encode_documents(some),
                lambda library=library: library.encode_document(some),
                peer_name="SentenceTransformer.encode, batches of 32",
                goal=">= 1",
                faster_is="peer/ours",
                rounds=options.rounds,
                texts=len(some),
                tokens=int(np.minimum(encoder.tokenise(some, "document").lengths, encoder.limit("document")).sum()),
                largest_difference=float(np.abs(ours - theirs).max()),
            )


if __name__ == "__main__":
    main()
