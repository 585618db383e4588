"""Pointwise yes/no scoring and query likelihood with a causal language model, against the usual padded loops.

    python scripts/bench/causal_lm.py [--data ../shared/data] [--model smollm2-135m] [--types float32 bfloat16]

Prompts are those of `yes-no` and `query-likelihood` for a query of trec-dl-2019 and its BM25 candidates (`dl-2019`),
or three fifths of them and two fifths abstracts of Cranfield (`mix`).  The peers read the same token ids, padded
on the left in batches of 8 in the order given, and take what they need from the logits of all positions: log-softmax
over the vocabulary at the last one for yes and no, a cross-entropy over the query's for its likelihood.  A third line
tells how much of what the shared prefix can save is saved: the engine against itself with nothing to share; a fourth
does so where the document is what queries share.  Types are compared on `--agreement` documents of one list: Kendall's
tau and the largest difference between bfloat16 and float32, and which of them `auto` takes for the prompt.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from alternate import megabytes_of, one_thread, print_megabytes, run_bench

one_thread()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from cross_encoder import candidates  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from rerank.engines.causal_lm import CausalLM, load_causal_lm  # noqa: E402
from rerank.engines.prompted import CausalLMEngine  # noqa: E402
from rerank.engines.scorer import FloatVector, agreement  # noqa: E402
from rerank.models import resolve_model  # noqa: E402
from rerank.prompts import PromptRequest, load_prompt  # noqa: E402
from rerank.runtime import Runtime  # noqa: E402

QUERIES = ("what is a boundary layer", "how long do fleas live", "who was the first king", "when does a wing stall")
"""That are asked of every document, where documents are shared."""


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
    """[n, labels] log-probabilities, as most code gets them."""
    found = []
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        logits = model(**padded_left([list(request.tokens) for request in batch], pad)).logits[:, -1, :]
        said = logits.float().log_softmax(-1)
        found += [row[[label[0] for label in request.continuations]] for row, request in zip(said, batch, strict=True)]
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


def library(folder: Path, dtype: str) -> Any:
    """The model as transformers loads it, in that type."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def reuse(name: str, model: CausalLM, verb: str, requests: list[PromptRequest], rounds: int) -> None:
    """Prints what sharing beginnings saves: the engine against itself where every request is asked alone.

    The goal is a share of what arithmetic on tokens allows; the vocabulary, which likelihoods need, is not in it.
    """
    ask = getattr(model, verb)
    counts: Counter[str] = Counter()
    found = np.array(ask(requests, lambda what, n: counts.update({what: n})))
    allowed = counts["tokens"] / (counts["tokens"] - counts["reused tokens"])
    # Nothing is shared by requests of which each has its own beginning.
    apart = [request._replace(tokens=(i, *request.tokens[1:]), prefix=0) for i, request in enumerate(requests, 100)]
    run_bench(
        name,
        lambda: ask(requests),
        lambda: ask(apart),
        peer_name="the same without anything to share",
        goal=f">= 0.85 of {allowed:.2f}",
        faster_is="peer/ours",
        rounds=rounds,
        **counts,
        sd_of_scores=round(float(np.std(found)), 3),
    )


def one_score(verb: str, scores: FloatVector) -> FloatVector:
    """A score for each request: of labels, how far the first lies above the second."""
    # Ours are log-probabilities up to a constant of the request.
    return scores[:, 0] - scores[:, 1] if verb == "choices" else scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--types", nargs="+", default=["float32", "bfloat16"])
    verbs = ["choices", "likelihood", "reuse"]
    parser.add_argument("--verbs", nargs="*", choices=verbs, default=verbs)
    parser.add_argument("--texts", choices=["dl-2019", "mix"], default="mix")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument(
        "--agreement", type=int, default=100, help="documents of the list that types are compared on; 0: none"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--side", help="only loads and runs `ours` or `usual`, a verb and a type, for its memory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    usual = {"choices": usual_choices, "likelihood": usual_likelihood}
    prompts = {"choices": "yes-no", "likelihood": "query-likelihood"}
    goals = {"choices": ">= 2.5", "likelihood": ">= 1.8"}
    with Runtime(threads=1, device="cpu", progress=False) as runtime:
        [call] = candidates(options.data, runtime, options.texts, 1)
        folder = resolve_model(options.model, home=runtime.home).path
        tokenizer = AutoTokenizer.from_pretrained(folder)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

        def requests_of(verb: str, pairs: list[tuple[str, str]]) -> list[PromptRequest]:
            bound = load_prompt(prompts[verb]).bind(tokenizer)
            return bound.requests([(query, [document]) for query, document in pairs], 2048)

        if options.side:
            side, verb, dtype = options.side.split("/")
            requests = requests_of(verb, call[: options.documents])
            if side == "ours":
                ask = getattr(load_causal_lm(runtime, options.model, dtype=dtype), verb)
                print_megabytes(lambda: ask(requests))
            else:
                model = library(folder, dtype)
                print_megabytes(lambda: usual[verb](model, requests, pad))
            return
        for dtype in options.types:
            model: CausalLM = load_causal_lm(runtime, options.model, dtype=dtype)
            peer = library(folder, dtype)
            for verb in [verb for verb in options.verbs if verb in usual]:
                ours, theirs = getattr(model, verb), usual[verb]
                requests = requests_of(verb, call[: options.documents])
                counts: Counter[str] = Counter()
                found = np.array(ours(requests, lambda what, n, counts=counts: counts.update({what: n})))
                expected = theirs(peer, requests, pad)
                facts: dict[str, Any] = {"path": model.path}
                found, expected = one_score(verb, found), one_score(verb, expected)
                if options.memory:
                    facts["megabytes"] = {side: megabytes_of(f"{side}/{verb}/{dtype}") for side in ("ours", "usual")}
                run_bench(
                    f"causal-lm {verb} {options.texts} {dtype}",
                    lambda: ours(requests),
                    lambda: theirs(peer, requests, pad),
                    peer_name="transformers, padded batches of 8, log-softmax of all logits",
                    goal=goals[verb],
                    faster_is="peer/ours",
                    rounds=options.rounds,
                    **counts,
                    largest_difference=float(np.abs(found - expected).max()),
                    sd_of_scores=round(float(np.std(found)), 3),
                    **facts,
                )
            if "reuse" in options.verbs:
                shown = call[: options.documents]
                name = f"causal-lm {options.texts} {dtype}"
                reuse(f"{name}: prompts of one query", model, "choices", requests_of("choices", shown), options.rounds)
                crossed = [(query, document) for _, document in shown[:6] for query in QUERIES]
                reuse(
                    f"{name}: six documents, four queries", model, "likelihood", requests_of("likelihood", crossed),
                    options.rounds,
                )  # fmt: skip
        if options.agreement:
            for verb in usual:
                requests = requests_of(verb, call[: options.agreement])
                lists: dict[str, list[FloatVector]] = {"ours": [], "usual": []}
                for dtype in ("float32", "bfloat16"):
                    ours = getattr(load_causal_lm(runtime, options.model, dtype=dtype), verb)
                    lists["ours"].append(one_score(verb, np.array(ours(requests))))
                    lists["usual"].append(one_score(verb, usual[verb](library(folder, dtype), requests, pad)))
                (full, short), (_, usual_short) = lists["ours"], lists["usual"]
                engine = CausalLMEngine(options.model)
                trial = engine.trial(load_prompt(prompts[verb]))
                line = {
                    "bench": f"causal-lm {verb} {options.texts}: bfloat16 against float32",
                    "tau": round(agreement([full], [short]), 4),
                    "goal": ">= 0.95",
                    "largest_difference": float(np.abs(full - short).max()),
                    "distinct": len(np.unique(short)),
                    "usual_tau": round(agreement([lists["usual"][0]], [usual_short]), 4),
                    "usual_distinct": len(np.unique(usual_short)),
                    "sd_of_scores": round(float(np.std(full)), 3),
                    "documents": len(requests),
                    "auto": load_causal_lm(runtime, options.model, trial=trial).dtype,
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
