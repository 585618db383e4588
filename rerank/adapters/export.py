"""Adapters as others read them: merged into their model, or as peft's own folders; and what one says of itself."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rerank.adapters.artifact import adapter_facts
from rerank.adapters.quantised import quantised_loading
from rerank.artifact import cache_home, new_artifact, write_json
from rerank.engines.bi_encoder import read_bi_encoder, save_bi_encoder
from rerank.engines.lora import CONFIG, WEIGHTS, Adapter, read_adapter
from rerank.engines.text_model import quiet_loading
from rerank.errors import ArtifactError, ModelError
from rerank.extras import need
from rerank.models import resolve_model
from rerank.runtime import Runtime

_CLASSES = {"SEQ_CLS": "AutoModelForSequenceClassification", "FEATURE_EXTRACTION": "AutoModel"}
"""The class of transformers that reads the base, by peft's word for what it does; others are language models."""
_HEAD_NAMES = ("classifier", "score")


def describe(folder: Path) -> str:
    """What the adapter in `folder` is, a fact a line.

    Raises:
        ModelError: the folder holds no adapter.
    """
    adapter = read_adapter(str(folder), cache_home() / "models" / "checksums.json")
    folder = adapter.path
    return "\n".join(f"{title:<18}{value}" for title, value in _described(adapter, folder))


def _described(adapter: Adapter, folder: Path) -> Iterator[tuple[str, str]]:
    facts = adapter_facts(folder)
    yield "folder", str(folder)
    yield "fingerprint", adapter.fingerprint
    yield "size", f"{(folder / WEIGHTS).stat().st_size:,} bytes"
    yield "layers changed", f"{len(adapter.changed):,}"
    yield "brought whole", ", ".join(sorted(adapter.replaced)) or "nothing"
    if facts is None:
        yield "base", f"{adapter.base or 'not named'} (trained elsewhere: there is no manifest)"
        return
    yield "engine", facts.engine
    yield "base", f"{facts.base}, fingerprint {facts.base_fingerprint}"
    if facts.quantised is not None:
        yield "base rounded to", facts.quantised
    yield "method", json.dumps(facts.method)
    if facts.prompt is not None:
        yield "prompt", f"{facts.prompt}, fingerprint {facts.prompt_fingerprint}"
    yield "max_tokens", "as the model reads" if facts.max_tokens is None else f"{facts.max_tokens:,}"
    yield "step", f"{facts.step:,}"


def merge_adapter(folder: Path, out: Path, runtime: Runtime, *, base: str | None = None, force: bool = False) -> None:
    """Writes the model that the adapter in `folder` makes of its base, in float32, as a plain folder.

    A base that was rounded while the adapter was trained (`quantise` in its recipe) is rounded so before.  A
    cross-encoder's folder says that its scores are logits, so that sentence-transformers puts no sigmoid over them; a
    bi-encoder's has the base's pooling and prompts, so that all that reads the base reads it.

    Args:
        folder: the adapter's.
        out: a new folder.
        runtime: its home has the base.
        base: the base model, where it is not found under the name that the adapter has for it.
        force: merge also where the base is another than the adapter was trained on.

    Raises:
        ModelError: no adapter, no base, or the two do not fit.
    """
    torch = need("torch", "train", "merging an adapter")
    transformers = need("transformers", "train", "merging an adapter")
    peft = need("peft", "train", "merging an adapter")
    adapter = read_adapter(str(folder), runtime.home / "models" / "checksums.json")
    folder = adapter.path
    name = base or adapter.base
    if not name:
        raise ModelError(f"adapter {str(folder)!r} does not name its base model; give it (--base)")
    facts = adapter_facts(folder)
    revision = facts.revision if facts is not None and base is None else None
    model_folder = resolve_model(name, revision, runtime.home)
    if not force:
        adapter.check_base(model_folder)
    rounded = facts.quantised if facts is not None else None
    head = next((shape for key, shape in adapter.replaced.items() if _is_output(key)), None)
    task = "SEQ_CLS" if head is not None else _task(folder)
    is_classifier = task == "SEQ_CLS"
    kind = _CLASSES.get(task or "", "AutoModelForCausalLM")
    path = read_bi_encoder(model_folder).transformer if task == "FEATURE_EXTRACTION" else model_folder.path
    options: dict[str, Any] = {"local_files_only": True, "dtype": torch.float32}
    if head is not None:
        options |= {"num_labels": head[0], "ignore_mismatched_sizes": True}
    with quiet_loading(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # peft asks transformers for what that has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            if rounded is not None:
                options |= _rounding(rounded, getattr(transformers, kind), transformers.AutoConfig, path)
            model = getattr(transformers, kind).from_pretrained(str(path), **options)
            if rounded is not None:
                model = model.dequantize(torch.float32)
            merged = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"adapter {str(folder)!r} cannot be merged into {name!r}: {reason}") from error
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    if is_classifier:
        merged.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0.0"}
        if merged.config.pad_token_id is None:
            merged.config.pad_token_id = tokenizer.pad_token_id
    made_of = {"base": name, "base_fingerprint": model_folder.fingerprint, "adapter": adapter.fingerprint}

    def save(place: Path) -> None:
        merged.save_pretrained(place)
        tokenizer.save_pretrained(place)

    with new_artifact(out, "model", 1, adapter.fingerprint, made_of) as draft, quiet_loading():
        if task == "FEATURE_EXTRACTION":
            save_bi_encoder(model_folder, draft.path, save)
        else:
            save(draft.path)


def _rounding(kind: Any, auto_class: Any, auto_config: Any, path: Path) -> dict[str, Any]:
    """How a base is loaded rounded."""
    import torch

    with torch.device("meta"):
        outline = auto_class.from_config(auto_config.from_pretrained(str(path), local_files_only=True))
    return quantised_loading(kind, outline, "cpu", "float32")


def _is_output(name: str) -> bool:
    parts = name.split(".")
    return parts[0] in _HEAD_NAMES and parts[-1] == "weight" and parts[-2] in (*_HEAD_NAMES, "out_proj")


def _task(folder: Path) -> str | None:
    task: str | None = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("task_type")
    return task


def export_adapter(folder: Path, out: Path) -> None:
    """Copies the adapter in `folder` to the new folder `out`, as peft reads it.

    Raises:
        ModelError: the folder holds no adapter.
        ArtifactError: `out` has files in it.
    """
    folder = read_adapter(str(folder), cache_home() / "models" / "checksums.json").path
    if out.is_dir() and any(out.iterdir()):
        raise ArtifactError(f"{out}: has files in it; give a new folder (--out)")
    out.mkdir(parents=True, exist_ok=True)
    facts = adapter_facts(folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    shutil.copyfile(folder / WEIGHTS, out / WEIGHTS)
    if facts is not None:
        (out / "recipe.yaml").write_text(facts.recipe, encoding="utf-8")
    write_json(out / CONFIG, config)
