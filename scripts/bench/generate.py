"""Queries written for documents by a few-shot prompt: our engine against batches of `model.generate`, type for type.

    python scripts/bench/generate.py [--data ../shared/data/cranfield] [--model smollm2-135m] [--types float32 bfloat16]

The prompts are those of `duqgen-question`: three examples that all prompts begin with, then a document.  The peer
reads the same token ids, sorted by length, padded on the left in batches of `--batch`, and stops a row at a line break
as ours does; a row that has stopped waits for the others of its batch.  A second line compares with one call a
document; both tell documents a second, and which share of the texts is the same to the last character,
as the peer's and as our own with a quarter of the tokens in a batch.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alternate import one_thread, run_bench

one_thread()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from causal_lm import library, padded_left  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from rerank.data.load import load_corpus  # noqa: E402
from rerank.engines.causal_lm import load_causal_lm  # noqa: E402
from rerank.engines.language_model import Sampling  # noqa: E402
from rerank.models import resolve_model  # noqa: E402
from rerank.prompts import PromptRequest, load_prompt  # noqa: E402
from rerank.runtime import Runtime  # noqa: E402
from rerank.synthesize.cleaning import Cleaning, cleaned  # noqa: E402
from rerank.words import share  # noqa: E402

STOP = "\n"


@torch.inference_mode()
def usual(model: Any, tokenizer: Any, requests: list[PromptRequest], batch: int, max_tokens: int) -> list[str]:
    """What `model.generate` writes, in the order of the requests."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    order = np.argsort([-len(request.tokens) for request in requests], kind="stable").tolist()
    found = [""] * len(requests)
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        inputs = padded_left([list(requests[i].tokens) for i in some], pad)
        rows = model.generate(
            **inputs,
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=pad,
            stop_strings=[STOP],
            tokenizer=tokenizer,
        )
        written = tokenizer.batch_decode(rows[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(some, written, strict=True):
            found[i] = text
    return found


def first_line(text: str) -> str:
    """What counts as written: padding and what follows a stop are left out."""
    return text.strip().partition(STOP)[0].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).parents[3] / "shared" / "data"
    parser.add_argument("--data", default=str(shared / "cranfield"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--types", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--prompt", default="duqgen-question")
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--batch", type=int, default=16, help="rows of the peer's batches")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one-by-one", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sampling = Sampling(max_tokens=options.max_tokens, stop=(STOP,))
    with Runtime(threads=1, device="cpu", progress=False, cache=False) as runtime:
        corpus = load_corpus(options.data, runtime=runtime)
        codes = cleaned(corpus, Cleaning()).codes
        names = corpus.ids.take(codes).tolist()
        some = sorted(range(len(codes)), key=lambda place: share(0, "bench", names[place]))[: options.documents]
        texts = corpus.texts(codes[some])
        folder = resolve_model(options.model, home=runtime.home).path
        tokenizer = AutoTokenizer.from_pretrained(folder)
        requests = load_prompt(options.prompt).bind(tokenizer).requests([(text, ()) for text in texts], 2048)
        for dtype in options.types:
            model = load_causal_lm(runtime, options.model, dtype=dtype)
            peer = library(folder, dtype)
            counts: Counter[str] = Counter()
            ours = [
                first_line(each.text)
                for each in model.generate(requests, sampling, lambda what, n, counts=counts: counts.update({what: n}))
            ]

            whole = model.batch_tokens
            model.batch_tokens = whole // 4  # type: ignore[misc]  # the class has it for all
            again = [first_line(each.text) for each in model.generate(requests, sampling)]
            model.batch_tokens = whole  # type: ignore[misc]
            stable = float(np.mean([a == b for a, b in zip(ours, again, strict=True)]))

            def compare(name: str, goal: str, work: Callable[[], list[str]]) -> None:
                theirs = [first_line(text) for text in work()]
                same = float(np.mean([a == b for a, b in zip(ours, theirs, strict=True)]))
                run_bench(
                    name,
                    lambda: model.generate(requests, sampling),
                    work,
                    peer_name="transformers, model.generate",
                    goal=goal,
                    faster_is="peer/ours",
                    rounds=options.rounds,
                    documents=len(requests),
                    same_texts=round(same, 3),
                    same_texts_in_smaller_batches=round(stable, 3),
                    path=model.path,
                    **counts,
                )

            def batched(batch: int) -> Callable[[], list[str]]:
                return lambda: usual(peer, tokenizer, requests, batch, options.max_tokens)

            compare(f"generate {dtype}: batches of {options.batch} by length", ">= 1.2", batched(options.batch))
            if options.one_by_one:
                compare(f"generate {dtype}: one by one", "told beside", batched(1))


if __name__ == "__main__":
    main()
