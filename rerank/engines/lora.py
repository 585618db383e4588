"""LoRA adapters: small changes to a model's weights, in folders as peft saves them, switched while the model stays."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank.artifact import MANIFEST, read_manifest
from rerank.errors import ModelError
from rerank.extras import need
from rerank.models.checksums import model_fingerprint
from rerank.models.hub import is_hub_id
from rerank.resources import adapter_folder

if TYPE_CHECKING:
    from rerank.models import ModelFolder
    from rerank.prompts.prompt import Prompt
    from rerank.runtime import Runtime

logger = logging.getLogger(__name__)

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""How the names of an adapter's weights begin, before those of the model."""
_TRAINED = (".lora_A", ".lora_B", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector")


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, read but not loaded."""

    path: Path
    fingerprint: str
    """SHA-256 of its weights and configuration."""
    base: str
    """The model that it was trained on, as its configuration calls it."""
    changed: Mapping[str, tuple[int, ...]]
    """The layers that it adds to, by their names in the model, with what is known of their shape: its own two sizes."""
    replaced: Mapping[str, tuple[int, ...]]
    """The weights that it brings whole, such as a classification head, with their shapes."""
    base_fingerprint: str | None = None
    """SHA-256 of the files of the model that it was trained on, where its manifest tells."""
    prompt_fingerprint: str | None = None
    """SHA-256 of the prompt that it was trained with, where its manifest tells of one."""
    prompt: str | None = None
    """What that prompt is called."""
    max_tokens: int | None = None
    """What its inputs were cut to, where its manifest tells."""
    engine: str | None = None
    """What it was trained as, where its manifest tells: `cross_encoder`, `bi_encoder`, `causal_lm`."""

    @property
    def name(self) -> str:
        """What it is called inside the model."""
        return self.fingerprint[:16]

    def check_base(self, folder: ModelFolder) -> None:
        """Returns when the adapter was trained on that model, or does not say on which.

        Raises:
            ModelError: it was trained on another.
        """
        if self.base_fingerprint is None or self.base_fingerprint == folder.fingerprint:
            return
        raise ModelError(
            f"adapter {str(self.path)!r} was trained on {self.base!r} with the fingerprint {self.base_fingerprint[:16]}"
            f", but {folder.name!r} has {folder.fingerprint[:16]}: other weights give other scores; give that "
            "model, or force it (force_adapter: true; rerank adapters merge --force)"
        )

    def check_prompt(self, name: str, fingerprint: str) -> None:
        """Returns when the adapter was trained with that prompt, or does not say with which.

        Raises:
            ModelError: it was trained with another.
        """
        if self.prompt_fingerprint is None or self.prompt_fingerprint == fingerprint:
            return
        raise ModelError(
            f"adapter {str(self.path)!r} was trained with the prompt {self.prompt!r} "
            f"({self.prompt_fingerprint[:16]}), and is asked by {name!r} ({fingerprint[:16]}): its answers would not "
            "be those that it learnt; take that prompt, or force it (force_adapter: true)"
        )

    @property
    def facts(self) -> dict[str, str]:
        """What a run says of it."""
        return {"path": str(self.path), "fingerprint": self.fingerprint, "base": self.base}


def read_adapter(folder: str, memory: Path) -> Adapter:
    """The adapter in `folder`.

    Args:
        folder: as peft's `save_pretrained` writes it, or the name of an adapter that comes with the package.
        memory: the file that remembers checksums.

    Raises:
        ModelError: no adapter, another kind than LoRA, or weights that cannot be read.
    """
    path = adapter_folder(folder)
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise ModelError(
                f"adapter {folder!r}: there is no {path / name}; give a folder that peft's save_pretrained wrote "
                "(with safetensors: pickled weights can run code, and are not read)"
            )
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        kind, base = config["peft_type"], config.get("base_model_name_or_path")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"adapter {folder!r}: {path / CONFIG} is not an adapter's configuration ({error})") from error
    if kind != "LORA":
        raise ModelError(
            f"adapter {folder!r} is of the kind {kind}; LoRA is what can be switched here: merge others into their "
            "model (peft's merge_and_unload) and give the folder of the merged one"
        )
    changed, replaced = _tensors(path / WEIGHTS, folder)
    told = _told(path)
    return Adapter(
        path.resolve(),
        model_fingerprint(path, memory),
        base or "",
        changed,
        replaced,
        told.get("base_fingerprint"),
        told.get("prompt_fingerprint"),
        told.get("prompt"),
        told.get("max_tokens"),
        told.get("engine"),
    )


def check_adapter(
    adapter: str | None,
    model: str,
    revision: str | None,
    runtime: Runtime,
    *,
    prompt: Prompt | None,
    force: bool,
    engine: str | None = None,
) -> Adapter | None:
    """The adapter in that folder, when it was trained on that model, with that prompt, as `engine`, or tells of none.

    Raises:
        ModelError: it was trained on, with, or as another; it would not load, or give wrong scores.
    """
    if adapter is None:
        return None
    found = read_adapter(adapter, runtime.home / "models" / "checksums.json")
    if engine is not None and found.engine not in (None, engine):
        raise ModelError(
            f"adapter {adapter!r} was trained as a {found.engine}, and is given to the engine {engine}; give it to "
            f"{found.engine}"
        )
    if force:
        return found
    if found.base_fingerprint is not None:
        from rerank.models import resolve_model

        found.check_base(resolve_model(model, revision, runtime.home))
    if prompt is not None:
        found.check_prompt(prompt.name, prompt.fingerprint)
    return found


def _told(path: Path) -> Mapping[str, Any]:
    """What the manifest of an adapter that was trained here says."""
    return read_manifest(path).config if (path / MANIFEST).is_file() else {}


def _tensors(path: Path, folder: str) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The layers that the weights add to, and those that they replace."""
    safetensors = need("safetensors", "dense", "reading an adapter")
    changed: dict[str, tuple[int, ...]] = {}
    replaced: dict[str, tuple[int, ...]] = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ModelError(f"adapter {folder!r}: {path} is not a whole safetensors file ({error})") from error
    for name, shape in shapes.items():
        name = name.removeprefix(_PREFIX)
        part = next((part for part in _TRAINED if part in name), None)
        if part is None:
            replaced[name] = shape
        elif len(shape) > 1:
            # A: [r, in], B: [out, r].
            layer = name.partition(part)[0]
            changed[layer] = (*changed.get(layer, ()), shape[1] if part.endswith("A") else shape[0])
    return changed, replaced


class Adapters:
    """The adapters that were loaded into a model; at most one is active.

    Args:
        model: of transformers; its layers are wrapped in place when the first adapter comes.
        name: what the model is called in messages.
    """

    def __init__(self, model: Any, name: str) -> None:
        self._model, self._name = model, name
        self._shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters(remove_duplicate=False)}
        self._wrapped: Any = None
        self._loaded: dict[str, Adapter] = {}
        self._active: str | None = None

    def has_room_for(self, adapter: Adapter) -> bool:
        """Whether peft can hold `adapter` beside those that are loaded: none adds to what another replaces.

        Layers are told apart by the first part of their names: the transformer, or a head.
        """
        parts = [(_parts(each.changed), _parts(each.replaced)) for each in self._loaded.values()]
        changed, replaced = _parts(adapter.changed), _parts(adapter.replaced)
        return not any(changed & others or replaced & other for other, others in parts)

    def load(self, adapter: Adapter) -> None:
        """Loads an adapter, unless it is loaded.

        Raises:
            ModelError: it belongs to a model of other layers or sizes.
        """
        if adapter.name in self._loaded:
            return
        peft = need("peft", "dense", f"the adapter {str(adapter.path)!r}")
        self._check(adapter)
        try:
            found = self._wrap(peft, adapter)
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise self._misfit(adapter, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
        self._loaded[adapter.name] = adapter
        self._wrapped.eval()
        # What was loaded last is active.
        self._active = ""
        wrong = [*(f"no weights for {key}" for key in found.missing_keys), *found.unexpected_keys]
        if wrong:
            raise self._misfit(adapter, f"{wrong[0]}{f' and {len(wrong) - 1:,} more' if len(wrong) > 1 else ''}")
        logger.info("model %s: adapter %s loaded", self._name, adapter.path)
        names = {adapter.base.lower(), self._name.lower()}
        if len(names) > 1 and all(is_hub_id(name) and not Path(name).is_dir() for name in names):
            logger.warning(
                "adapter %s was trained on %s and is used with %s: its layers fit, but scores are right only where the "
                "two have the same weights", adapter.path, adapter.base, self._name,
            )  # fmt: skip

    def _wrap(self, peft: Any, adapter: Adapter) -> Any:
        """Puts the adapter's layers round the model's and fills them; gives peft's report of what was found."""
        with warnings.catch_warnings():
            # peft asks transformers for what that has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            if self._wrapped is None:
                config = peft.PeftConfig.from_pretrained(adapter.path)
                config.inference_mode = True
                self._wrapped = peft.PeftModel(self._model, config, adapter.name, autocast_adapter_dtype=False)
            device = str(self._model.device)
            return self._wrapped.load_adapter(
                str(adapter.path), adapter.name, torch_device=device, autocast_adapter_dtype=False
            )

    def activate(self, adapter: Adapter | None) -> None:
        """Computes with `adapter`, or without any, from now on."""
        wanted = None if adapter is None else adapter.name
        if wanted == self._active or self._wrapped is None:
            return
        layers = self._wrapped.base_model
        if wanted is None:
            layers.disable_adapter_layers()
        else:
            layers.enable_adapter_layers()
            self._wrapped.set_adapter(wanted, inference_mode=True)
        self._active = wanted

    def _check(self, adapter: Adapter) -> None:
        """Compares an adapter's sizes with the model's, before anything is changed."""
        for layer, sizes in adapter.changed.items():
            shape = self._shapes.get(f"{layer}.weight")
            if shape is None:
                raise self._misfit(adapter, f"it changes the layer {layer!r}, which this model has not")
            if not set(sizes) <= set(shape):
                raise self._misfit(adapter, f"it changes {layer!r} of sizes {sizes}, here it has {shape}")
        for name, shape in adapter.replaced.items():
            if self._shapes.get(name) != shape:
                here = self._shapes.get(name, "no such weights")
                raise self._misfit(adapter, f"it brings {name!r} of shape {shape}, here are {here}")

    def _misfit(self, adapter: Adapter, reason: str) -> ModelError:
        return ModelError(
            f"adapter {str(adapter.path)!r} does not fit model {self._name!r}: {reason}; it was trained on "
            f"{adapter.base or 'a model that it does not name'}: give that one"
        )


def _parts(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}
