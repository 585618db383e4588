"""Scoring pairs against `CrossEncoder.predict`, in calls of 100 (query, passage) pairs, type for type and across types.

    python scripts/bench/cross_encoder.py [--data ../shared/data] [--model minilm-l6] [--rounds 5]

The model has the encoder's weights and a seeded head of one label.  Texts are the queries and BM25 candidates of
trec-dl-2019 (`dl-2019`), or four fifths of them and one fifth longer abstracts of NFCorpus (`mix`); both sides cut at
the model's length.  In float32 the logits must be equal to 1e-5.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from alternate import cpu_seconds, one_thread, run_bench

one_thread()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from rerank.data.load import load  # noqa: E402
from rerank.engines.cross_encoder import CrossEncoder, load_cross_encoder  # noqa: E402
from rerank.models import resolve_model  # noqa: E402
from rerank.runtime import Runtime  # noqa: E402

Pair = tuple[str, str]


def candidates(data: Path, runtime: Runtime, kind: str, calls: int) -> list[list[Pair]]:
    """Calls of 100 pairs, each of one query."""
    rng = np.random.default_rng(19)
    judged = load(data / "trec-dl-2019", runtime=runtime, candidates="bm25")
    abstracts = load(data / "beir-nfcorpus", runtime=runtime).corpus
    topics = judged.topics()
    if judged.corpus is None or abstracts is None:
        raise SystemExit(f"{data} lacks the documents of trec-dl-2019 or beir-nfcorpus")
    found = []
    for qid in list(topics.qids)[:calls]:
        hits = [hit.text or "" for hit in topics[qid]][:100]
        if kind == "mix":
            few = rng.choice(len(abstracts.ids), len(hits) // 5, replace=False)
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


def useful_flops(config: object, lengths: np.ndarray) -> float:
    """Multiplications and additions that the pairs need, twice over, without padding."""
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers  # type: ignore[attr-defined]
    linear = 2 * (4 * width * width + 2 * width * inner)
    return float(layers * (linear * lengths.sum() + 4 * width * (lengths.astype(np.float64) ** 2).sum()))


def peak(dtype: str) -> float:
    """FLOP a second of a product of two square matrices of 2,048."""
    a, b = (torch.randn(2048, 2048).to(getattr(torch, dtype)) for _ in range(2))
    a @ b
    return 2 * 2048**3 / min(cpu_seconds(lambda: a @ b) for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--texts", nargs="+", choices=["dl-2019", "mix"], default=["mix", "dl-2019"])
    parser.add_argument("--types", nargs="+", default=["float32/float32", "bfloat16/bfloat16", "bfloat16/float32"])
    parser.add_argument("--calls", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    from sentence_transformers import CrossEncoder as Library

    with Runtime(threads=1, device="cpu", progress=False) as runtime, tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "cross-encoder"
        write_classifier(resolve_model(options.model, home=runtime.home).path, folder)
        for texts in options.texts:
            calls = candidates(options.data, runtime, texts, options.calls)
            for types in options.types:
                mine, theirs = types.split("/")
                ours: CrossEncoder = load_cross_encoder(runtime, str(folder), dtype=mine)
                library = Library(str(folder), device="cpu", model_kwargs={"dtype": getattr(torch, theirs)})
                plain = {"activation_fn": torch.nn.Identity(), "show_progress_bar": False}
                found = np.concatenate([ours.pairs(call) for call in calls])
                exact = load_cross_encoder(runtime, str(folder), dtype="float32")
                expected = np.concatenate([exact.pairs(call) for call in calls])
                peers = np.concatenate([library.predict(call, **plain) for call in calls])
                lengths = np.concatenate([ours.tokenise(call).sizes for call in calls])
                top = peak(mine)
                seconds = min(cpu_seconds(lambda: [ours.pairs(call) for call in calls]) for _ in range(2))
                run_bench(
                    f"cross-encoder {texts}: {mine} against {theirs}",
                    lambda: [ours.pairs(call) for call in calls],
                    lambda: [library.predict(call, **plain) for call in calls],
                    peer_name=f"CrossEncoder.predict {theirs}, batches of 32",
                    goal=">= 5" if mine != theirs else ">= 2",
                    faster_is="peer/ours",
                    rounds=options.rounds,
                    path=ours.path,
                    pairs=len(found),
                    tokens={
                        "mean": round(float(lengths.mean()), 1),
                        "median": float(np.median(lengths)),
                        "p95": float(np.percentile(lengths, 95)),
                    },
                    gflops_peak=round(top / 1e9, 1),
                    share_of_peak=round(useful_flops(ours.model.config, lengths) / seconds / top, 3),
                    difference_to_peer=float(np.abs(found - peers).max()),
                    difference_to_float32=float(np.abs(found - expected).max()),
                    sd_of_scores=round(float(expected.std()), 4),
                )


if __name__ == "__main__":
    main()
