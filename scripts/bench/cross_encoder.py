"""Scoring pairs against `CrossEncoder.predict`, in calls of 100 (query, passage) pairs, type for type and across types.

    python scripts/bench/cross_encoder.py [--data ../shared/data] [--model minilm-l6] [--rounds 5]

The model has the encoder's weights and a seeded head of one label.  Texts are the queries and BM25 candidates of
trec-dl-2019 (`dl-2019`: in the first call mean 89 tokens, p95 148), or three fifths of them and two fifths abstracts of
Cranfield (`mix`: mean 144, p95 349); both sides cut at the model's length.  In float32 the logits must be equal to
1e-5.  The peaks are products of two square matrices of 2,048 in the type at hand, as torch computes them and, in
float32, as oneDNN does, which is the faster one where MKL keeps AVX-512 to Intel's processors.  Where openvino is
installed (`pip install openvino`) there is a line for it too: in bfloat16, in batches sorted by tokens, against
`predict` in float32.  Memory is that of a process of its own for each side.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alternate import cpu_seconds, megabytes_of, one_thread, print_megabytes, run_bench

one_thread()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from rerank.data.load import load  # noqa: E402
from rerank.engines.cross_encoder import CrossEncoder, load_cross_encoder  # noqa: E402
from rerank.engines.packing import padded_inputs  # noqa: E402
from rerank.engines.products import onednn_types  # noqa: E402
from rerank.engines.scorer import agreement  # noqa: E402
from rerank.engines.text_model import token_batches  # noqa: E402
from rerank.models import resolve_model  # noqa: E402
from rerank.runtime import Runtime  # noqa: E402

Pair = tuple[str, str]
Score = Callable[[list[Pair]], Any]


def candidates(data: Path, runtime: Runtime, kind: str, calls: int) -> list[list[Pair]]:
    """Calls of 100 pairs, each of one query."""
    rng = np.random.default_rng(6)
    judged = load(data / "trec-dl-2019", runtime=runtime, candidates="bm25")
    abstracts = load(data / "cranfield", runtime=runtime).corpus
    topics = judged.topics()
    if judged.corpus is None or abstracts is None:
        raise SystemExit(f"{data} lacks the documents of trec-dl-2019 or cranfield")
    found = []
    for qid in list(topics.qids)[:calls]:
        hits = [hit.text or "" for hit in topics[qid]][:100]
        if kind == "mix":
            few = rng.choice(len(abstracts.ids), 2 * len(hits) // 5, replace=False)
            hits = [hits[i] for i in rng.permutation(len(hits))[len(few) :]] + abstracts.texts(few)
        query = judged.queries[qid]
        found.append([(query, hits[i]) for i in rng.permutation(len(hits))])
    return found


def write_classifier(encoder: Path, folder: Path) -> None:
    """A classifier of one label with the encoder's weights and a seeded head."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)


def useful_flop(config: object, lengths: np.ndarray) -> float:
    """Multiplications and additions that texts of these lengths need, twice over, without padding."""
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers  # type: ignore[attr-defined]
    linear = 2 * (4 * width * width + 2 * width * inner)
    return float(layers * (linear * lengths.sum() + 4 * width * (lengths.astype(np.float64) ** 2).sum()))


def peaks(dtype: str) -> dict[str, Callable[[], float]]:
    """Ways to measure FLOP a second of a product of two square matrices of 2,048."""
    a, b = (torch.randn(2048, 2048).to(getattr(torch, dtype)) for _ in range(2))

    def rate(product: Callable[[], object]) -> float:
        return 2 * 2048**3 / min(cpu_seconds(product) for _ in range(3))

    found = {"torch.mm": lambda: rate(lambda: a @ b)}
    if torch.float32 in onednn_types() and dtype == "float32":
        found["oneDNN"] = lambda: rate(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return found


def library(folder: Path, dtype: str) -> Score:
    """`CrossEncoder.predict` in that type, without an activation."""
    from sentence_transformers import CrossEncoder as Library

    model = Library(str(folder), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    plain = {"activation_fn": torch.nn.Identity(), "show_progress_bar": False}
    return lambda pairs: model.predict(pairs, **plain)


def openvino_bfloat16(folder: Path, tokeniser: CrossEncoder) -> Score:
    """openvino told to compute in bfloat16, fed padded batches of 4,096 tokens sorted by tokens."""
    import openvino
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        converted = openvino.convert_model(model, example_input=example)
    compiled = openvino.Core().compile_model(
        converted, "CPU", {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    )

    def score(pairs: list[Pair]) -> np.ndarray:
        tokens = tokeniser.tokenise(pairs)
        found = np.empty(len(pairs), dtype=np.float32)
        for batch in token_batches(tokens.sizes, 4096):
            inputs = padded_inputs(*tokens.take(batch.tolist()), 0, "cpu")
            found[batch] = compiled({name: tensor.numpy() for name, tensor in inputs.items()})[0][:, 0]
        return found

    return score


def tokens_of(lengths: np.ndarray) -> dict[str, float]:
    return {
        "mean": round(float(lengths.mean()), 1),
        "median": float(np.median(lengths)),
        "p95": round(float(np.percentile(lengths, 95)), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--texts", nargs="+", choices=["dl-2019", "mix"], default=["mix"])
    parser.add_argument("--types", nargs="+", default=["float32/float32", "bfloat16/bfloat16", "bfloat16/float32"])
    parser.add_argument("--calls", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--openvino", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--side", help="only loads and runs one side, `ours` or `predict` and a type, for its memory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with Runtime(threads=1, device="cpu", progress=False) as runtime, tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "cross-encoder"
        write_classifier(resolve_model(options.model, home=runtime.home).path, folder)
        if options.side:
            side, dtype = options.side.split("/")
            calls = candidates(options.data, runtime, options.texts[0], options.calls)
            one: Score = (
                load_cross_encoder(runtime, str(folder), dtype=dtype).pairs
                if side == "ours"
                else library(folder, dtype)
            )
            print_megabytes(lambda: [one(call) for call in calls])
            return
        for texts in options.texts:
            calls = candidates(options.data, runtime, texts, options.calls)
            exact = load_cross_encoder(runtime, str(folder), dtype="float32")
            expected = [exact.pairs(call) for call in calls]
            lengths = np.concatenate([exact.tokenise(call).sizes for call in calls])
            common = {
                "faster_is": "peer/ours",
                "rounds": options.rounds,
                "pairs": len(lengths),
                "tokens": tokens_of(lengths),
                "flop": useful_flop(exact.model.config, lengths),
                "sd_of_scores": round(float(np.concatenate(expected).std()), 4),
            }

            def bench(what: str, ours: Score, peer: Score, dtype: str, **facts: Any) -> None:
                found = [ours(call) for call in calls]
                peers = [peer(call) for call in calls]
                run_bench(
                    f"cross-encoder {texts}: {what}",
                    lambda: [ours(call) for call in calls],
                    lambda: [peer(call) for call in calls],
                    peaks=peaks(dtype),
                    difference_to_peer=float(np.abs(np.concatenate(found) - np.concatenate(peers)).max()),
                    difference_to_float32=float(np.abs(np.concatenate(found) - np.concatenate(expected)).max()),
                    tau_to_float32=round(agreement(expected, found), 4),
                    **common,
                    **facts,
                )

            for types in options.types:
                mine, theirs = types.split("/")
                model = load_cross_encoder(runtime, str(folder), dtype=mine)
                facts: dict[str, Any] = {"path": model.path}
                if options.memory and mine == theirs:
                    facts["megabytes"] = {side: megabytes_of(f"{side}/{mine}") for side in ("ours", "predict")}
                bench(
                    f"{mine} against {theirs}", model.pairs, library(folder, theirs), mine,
                    peer_name=f"CrossEncoder.predict {theirs}, batches of 32",
                    goal=">= 5" if mine != theirs else ">= 2", **facts,
                )  # fmt: skip
            if options.openvino and importlib.util.find_spec("openvino") is not None:
                bench(
                    "openvino bfloat16 against float32", openvino_bfloat16(folder, exact), library(folder, "float32"),
                    "bfloat16", peer_name="CrossEncoder.predict float32, batches of 32", goal="none: another peer",
                )  # fmt: skip


if __name__ == "__main__":
    main()
