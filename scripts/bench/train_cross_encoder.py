"""Training a LoRA cross-encoder against sentence-transformers' CrossEncoderTrainer, type for type, on the same pairs.

    python scripts/bench/train_cross_encoder.py [--data ../shared/data] [--model minilm-l6] [--rounds 3] [--steps 6]

The pairs are those of training groups of nfcorpus, whose abstracts are long, half of the documents that are not
relevant being short passages of trec-dl-2019; 8 documents a group, in the same order for both.  Both train the same
LoRA layers and a head of one label with binary cross-entropy, AdamW and the same rates; the model's own dropout is on.
What is counted are real tokens (padding is none) a CPU second, everything included that each does on the way: reading
texts, batches, the optimiser.  `--quality STEPS` trains both so long and gives nDCG@10 over held-out groups, and the
standard error of the mean difference.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alternate import one_thread, run_bench

one_thread()
warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from rerank.adapters.lora import LoRA  # noqa: E402
from rerank.adapters.targets import linear_layers  # noqa: E402
from rerank.data.load import load  # noqa: E402
from rerank.engines.pairs import CrossEncoderEngine  # noqa: E402
from rerank.models import resolve_model  # noqa: E402
from rerank.runtime import Runtime  # noqa: E402
from rerank.train.contrastive import Contrastive  # noqa: E402
from rerank.train.fitting import Job, fit  # noqa: E402
from rerank.train.groups import TrainingGroup, build_groups  # noqa: E402
from rerank.train.losses import BCELoss  # noqa: E402
from rerank.train.recipe import Optimiser  # noqa: E402
from rerank.train.sources import GroupSource, Negatives, Positives  # noqa: E402

GROUPS = 8
"""Groups a step; of 8 documents each."""
RATE = 5e-4
TARGETS = "attention"


def groups_of(data: Path, runtime: Runtime, max_queries: int) -> list[TrainingGroup]:
    """Groups of abstracts and groups of short passages, mixed."""
    abstracts = build_groups(
        GroupSource(
            data=str(data / "beir-nfcorpus"),
            positives=Positives(k=2, ranked=True),
            negatives=Negatives(pipeline="bm25"),
        ),
        runtime,
    )
    corpus = load(data / "trec-dl-2019", runtime=runtime).corpus
    if corpus is None:
        raise SystemExit(f"{data} lacks the documents of trec-dl-2019")
    rng = np.random.default_rng(4)
    found = []
    for group in abstracts[:max_queries]:
        # Half of the documents that are not relevant are passages from elsewhere.
        codes = iter(rng.choice(len(corpus.ids), size=len(group.labels), replace=False).tolist())
        swap = [label == 0 and rng.random() < 0.5 for label in group.labels]
        texts = [
            corpus.texts(np.array([next(codes)]))[0] if s else t for s, t in zip(swap, group.documents, strict=True)
        ]
        found.append(group._replace(documents=tuple(texts)))
    return found


class Listed(list[TrainingGroup]):
    """Groups that are in memory."""


def ours(
    groups: Sequence[TrainingGroup], model: str, dtype: str, steps: int, max_tokens: int, runtime: Runtime
) -> tuple[Callable[[], Any], Any]:
    """Training by this package, and the student that it trains."""
    recipe = Contrastive(
        engine=CrossEncoderEngine(model),
        adapter=LoRA(targets=TARGETS),
        loss=BCELoss(threshold=1),
        max_tokens=max_tokens,
        precision=dtype,  # type: ignore[arg-type]
        optimiser=Optimiser(learning_rate=RATE, groups=GROUPS, steps=steps),
        log_every=10**9,
        save_every=10**9,
    )
    student = recipe.student(runtime)

    def train() -> None:
        with tempfile.TemporaryDirectory() as folder:
            fit(Job(recipe, student, Listed(groups), Path(folder), "", None, lambda n: None))  # type: ignore[arg-type]

    return train, student


def library(
    groups: Sequence[TrainingGroup], model: Path, dtype: str, steps: int, max_tokens: int
) -> tuple[Callable[[], Any], Any]:
    """Training by sentence-transformers, and its model."""
    import peft
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    torch.manual_seed(0)
    found = CrossEncoder(str(model), num_labels=1, device="cpu", max_length=max_tokens)
    lora = LoRA(targets=TARGETS)
    inner = found[0].auto_model if hasattr(found[0], "auto_model") else found.model
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, modules_to_save=["classifier"],
        target_modules=linear_layers(inner, ["classifier"], TARGETS), task_type="SEQ_CLS",
    )  # fmt: skip
    found.add_adapter(config)
    rows = [
        {"query": group.query, "document": document, "label": float(label > 0)}
        for group in groups
        for document, label in zip(group.documents, group.labels, strict=True)
    ]
    data = Dataset.from_list(rows)

    def train() -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = CrossEncoderTrainingArguments(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=GROUPS * 8, learning_rate=RATE,
                weight_decay=0.01, warmup_steps=int(0.1 * steps), bf16=dtype == "bfloat16", use_cpu=True, seed=0,
                report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
                dataloader_pin_memory=False,
            )  # fmt: skip
            trainer = CrossEncoderTrainer(
                model=found, args=arguments, train_dataset=data, loss=BinaryCrossEntropyLoss(found)
            )
            trainer.train()

    return train, found


def ndcg(groups: Sequence[TrainingGroup], scores: Sequence[np.ndarray]) -> np.ndarray:
    """[groups] nDCG@10 of each group, with gains 2^label - 1."""
    values = []
    for group, some in zip(groups, scores, strict=True):
        gains = 2.0 ** np.array(group.labels) - 1
        discounts = 1 / np.log2(np.arange(2, len(gains) + 2))
        values.append(float((gains[np.argsort(-some)] * discounts).sum() / (np.sort(gains)[::-1] * discounts).sum()))
    return np.array(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--types", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quality", type=int, default=0, metavar="STEPS", help="train both so long, and compare them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with Runtime(threads=1, device="cpu", progress=False, cache=False) as runtime:
        folder = resolve_model(options.model, home=runtime.home).path
        every = groups_of(options.data, runtime, 1600)
        held_out, groups = every[:200], every[200:]
        for dtype in options.types:
            steps = options.quality or options.steps
            some = (groups * (1 + steps * GROUPS // len(groups)))[: steps * GROUPS]
            train, student = ours(some, options.model, dtype, steps, options.max_tokens, runtime)
            peer, found = library(some, folder, dtype, steps, options.max_tokens)
            pairs = [(group.query, text) for group in some for text in group.documents]
            sizes = student.scorer.tokenise(pairs, options.max_tokens).sizes
            facts = {
                "tokens": int(sizes.sum()),
                "mean_tokens": round(float(sizes.mean()), 1),
                "p95_tokens": float(np.percentile(sizes, 95)),
                "type": dtype,
            }
            if options.quality:
                train()
                peer()
                scores = []
                asked = [[(group.query, text) for text in group.documents] for group in held_out]
                with student.resting():
                    scores.append(ndcg(held_out, [student.scorer.pairs(p, None, options.max_tokens) for p in asked]))
                found.eval()
                scores.append(ndcg(held_out, [found.predict(p, show_progress_bar=False) for p in asked]))
                apart = scores[0] - scores[1]
                line = {
                    "bench": f"nDCG@10 of {len(held_out)} held-out groups after {steps} steps",
                    "ours": round(float(scores[0].mean()), 4),
                    "peer": round(float(scores[1].mean()), 4),
                    "difference": round(float(apart.mean()), 4),
                    "standard_error": round(float(apart.std(ddof=1) / len(apart) ** 0.5), 4),
                    "type": dtype,
                }
                print(json.dumps(line), flush=True)
            else:
                run_bench(
                    "train a LoRA cross-encoder", train, peer, peer_name="sentence-transformers CrossEncoderTrainer",
                    goal=">= 1.5", faster_is="peer/ours", rounds=options.rounds, **facts,
                )  # fmt: skip


if __name__ == "__main__":
    main()
