"""Pointwise yes/no scoring and query likelihood with a causal language model, against the usual padded loops.

    python scripts/bench/causal_lm.py [--data ../shared/data] [--model smollm2-135m] [--types float32 bfloat16]

Prompts are those of `yes-no` and `query-likelihood` for a query of trec-dl-2019 and its BM25 candidates (`dl-2019`),
or four fifths of them and one fifth longer abstracts of NFCorpus (`mix`).  The peers read the same token ids, padded
on the left in batches of 8 in the order given, and take what they need from the logits of all positions: the last
position's for yes and no, a cross-entropy over the query's for its likelihood.  A third line tells how much of what the
shared prefix can save is saved: the engine against itself with nothing to share.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from alternate import one_thread, run_bench

one_thread()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from cross_encoder import candidates  # noqa: E402

from rerank.engines.causal_lm import CausalLM, load_causal_lm  # noqa: E402
from rerank.prompts import PromptRequest, load_prompt  # noqa: E402
from rerank.runtime import Runtime  # noqa: E402


def padded_left(rows: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


@torch.inference_mode()
def usual_choices(model: Any, requests: list[PromptRequest], pad: int, size: int = 8) -> np.ndarray:
    """[n, labels] as most code does it."""
    found = []
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        logits = model(**padded_left([list(request.tokens) for request in batch], pad)).logits[:, -1, :].float()
        found += [
            row[[label[0] for label in request.continuations]] for row, request in zip(logits, batch, strict=True)
        ]
    return torch.stack(found).numpy()


@torch.inference_mode()
def usual_likelihood(model: Any, requests: list[PromptRequest], pad: int, size: int = 8) -> np.ndarray:
    """[n] as most code does it."""
    found = []
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        inputs = padded_left([[*request.tokens, *request.continuations[0]] for request in batch], pad)
        labels = torch.full_like(inputs["input_ids"], -100)
        for i, request in enumerate(batch):
            n = len(request.continuations[0])
            labels[i, -n:] = inputs["input_ids"][i, -n:]
        logits = model(**inputs).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        found.append(-losses.sum(1) / (labels[:, 1:] != -100).sum(1))
    return torch.cat(found).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--types", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument(
        "--verbs", nargs="+", choices=["choices", "likelihood", "reuse"], default=["choices", "likelihood", "reuse"]
    )
    parser.add_argument("--texts", choices=["dl-2019", "mix"], default="mix")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with Runtime(threads=1, device="cpu", progress=False) as runtime:
        [call] = candidates(options.data, runtime, options.texts, 1)
        asked = [(query, [document]) for query, document in call[: options.documents]]
        for dtype in options.types:
            model: CausalLM = load_causal_lm(runtime, options.model, dtype=dtype)
            pad = model._pad()
            ask = {
                verb: load_prompt(name).bind(model.tokenizer).requests(asked, model.limit)
                for verb, name in (("choices", "yes-no"), ("likelihood", "query-likelihood"))
            }
            usual = {"choices": usual_choices, "likelihood": usual_likelihood}
            goals = {"choices": ">= 2.5", "likelihood": ">= 1.8"}
            for verb in set(options.verbs) & set(usual):
                ours, peers = getattr(model, verb), usual[verb]
                requests = ask[verb]
                counts: dict[str, int] = {}
                found = np.array(ours(requests, lambda what, n: counts.update({what: n})))
                expected = peers(model.model, requests, pad)
                run_bench(
                    f"causal-lm {verb} {options.texts} {dtype}",
                    lambda: ours(requests),
                    lambda: peers(model.model, requests, pad),
                    peer_name="transformers, padded batches of 8, logits of all positions",
                    goal=goals[verb],
                    faster_is="peer/ours",
                    rounds=options.rounds,
                    requests=len(requests),
                    **counts,
                    largest_difference=float(np.abs(found - expected).max()),
                    sd_of_scores=round(float(np.std(found)), 3),
                    path=model.path,
                )
            if "reuse" in options.verbs:
                requests = ask["choices"]
                alone = [request._replace(prefix=0) for request in requests]
                counts = {}
                model.choices(requests, lambda what, n: counts.update({what: n}))
                allowed = counts["tokens"] / (counts["tokens"] - counts["reused tokens"])
                run_bench(
                    f"causal-lm prefix reuse {options.texts} {dtype}",
                    lambda: model.choices(requests),
                    lambda: model.choices(alone),
                    peer_name="the same without a shared prefix",
                    goal=f">= 0.85 of {allowed:.2f}",
                    faster_is="peer/ours",
                    rounds=options.rounds,
                    **counts,
                )


if __name__ == "__main__":
    main()
