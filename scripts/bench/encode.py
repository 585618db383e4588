"""Encoding documents against `SentenceTransformer.encode` in the same type, in one call.

    python scripts/bench/encode.py [--data ../shared/data] [--model minilm-l6] [--dtypes float32 bfloat16]

Three fifths are passages from the BM25 lists of trec-dl-2019, two fifths abstracts of Cranfield, shuffled (mean 140
tokens, p95 331); both sides cut at `--max-tokens`.  In float32 the vectors must be equal to 1e-5.  The peaks are those
of `cross_encoder.py`; `padding` tells how many tokens the peer computes for each that there is: as its padding goes by
the longest of 32 texts that are neighbours in characters, it falls with the number of texts in the call.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from alternate import megabytes_of, one_thread, print_megabytes, run_bench

one_thread()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from cross_encoder import peaks, tokens_of, useful_flop  # noqa: E402

from rerank.data.load import load  # noqa: E402
from rerank.engines.encoder import load_encoder  # noqa: E402
from rerank.models import resolve_model  # noqa: E402
from rerank.runtime import Runtime  # noqa: E402


def some_texts(data: Path, runtime: Runtime, n: int) -> list[str]:
    """`n` documents, three fifths passages and two fifths abstracts."""
    rng = np.random.default_rng(5)
    found: list[str] = []
    for name, share in (("trec-dl-2019", 3 * n // 5), ("cranfield", n - 3 * n // 5)):
        corpus = load(data / name, runtime=runtime).corpus
        if corpus is None:
            raise SystemExit(f"{data / name} has no corpus")
        found += corpus.texts(rng.choice(len(corpus.ids), share, replace=False))
    return [found[i] for i in rng.permutation(len(found))]


def library(model: str, runtime: Runtime, dtype: str, max_tokens: int) -> Any:
    """The library's own model in that type."""
    from sentence_transformers import SentenceTransformer

    found = SentenceTransformer(
        str(resolve_model(model, home=runtime.home).path),
        device="cpu",
        model_kwargs={"dtype": getattr(torch, dtype)},
    )
    found.max_seq_length = max_tokens
    return found


def padding(texts: list[str], lengths: np.ndarray, batch: int = 32) -> float:
    """Tokens that the peer computes for each that there is."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    batches = [lengths[order[start : start + batch]] for start in range(0, len(order), batch)]
    return float(sum(len(some) * some.max() for some in batches) / lengths.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--side", help="only loads and runs one side, `ours` or `library` and a type, for its memory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with Runtime(threads=1, device="cpu", progress=False) as runtime:
        some = some_texts(options.data, runtime, options.texts)

        def ours(dtype: str) -> Any:
            encoder = load_encoder(runtime, options.model, dtype=dtype)
            encoder.model.max_seq_length = options.max_tokens
            return encoder

        if options.side:
            side, dtype = options.side.split("/")
            if side == "ours":
                encoder = ours(dtype)
                print_megabytes(lambda: encoder.encode_documents(some))
            else:
                peer = library(options.model, runtime, dtype, options.max_tokens)
                print_megabytes(lambda: peer.encode_document(some))
            return
        for dtype in options.dtypes:
            encoder, peer = ours(dtype), library(options.model, runtime, dtype, options.max_tokens)
            lengths = np.minimum(encoder.tokenise(some, "document").lengths, encoder.limit("document"))
            found = encoder.encode_documents(some)
            expected = peer.encode_document(some, convert_to_tensor=True).float().numpy()
            facts: dict[str, Any] = {"path": encoder.path}
            if options.memory:
                facts["megabytes"] = {side: megabytes_of(f"{side}/{dtype}") for side in ("ours", "library")}
            run_bench(
                f"encode {options.model} {dtype}",
                lambda encoder=encoder: encoder.encode_documents(some),
                lambda peer=peer: peer.encode_document(some),
                peer_name="SentenceTransformer.encode, batches of 32",
                goal=">= 2",
                faster_is="peer/ours",
                rounds=options.rounds,
                flop=useful_flop(peer[0].model.config, lengths),
                peaks=peaks(dtype),
                texts=len(some),
                tokens=tokens_of(lengths),
                padding=round(padding(some, lengths), 3),
                largest_difference=float(np.abs(found - expected).max()),
                **facts,
            )


if __name__ == "__main__":
    main()
