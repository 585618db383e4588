"""What the server tells of itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank import __version__
from rerank.reranking import Rerank
from rerank.serve.models import Served

if TYPE_CHECKING:
    from rerank.serve.service import Service


def tei_info(service: Service, name: str | None = None) -> dict[str, Any]:
    """TEI's `/info` about the model that answers by default, or the one of that name.

    Raises:
        ApiError: no such model.
    """
    settings, limits = service.settings, service.queue.limits
    served = service.catalogue.find(name)
    facts = served.facts
    return {
        "model_id": served.name if _is_path(served.spec.model) else served.spec.model,
        "model_sha": facts.get("revision"),
        "model_dtype": facts.get("dtype", "float32"),
        "served_model_name": served.name,
        "model_type": _model_type(served),
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_input_length": served.limit or limits.max_batch_tokens,
        "max_batch_tokens": limits.max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": settings.max_documents,
        "auto_truncate": settings.auto_truncate,
        "tokenization_workers": 1,
        "version": __version__,
        "sha": None,
        "docker_label": None,
        "scoring": served.scoring,
        "adapters": [each.name for each in service.catalogue if _has_adapter(each)],
        "pipeline": served.search is not None or not isinstance(served.stage, Rerank),
        "can_rerank": served.stage is not None,
        "can_search": served.search is not None,
        "can_embed": served.is_encoder,
        "can_explain": served.can_explain,
        "models": [_abilities(each) for each in service.catalogue],
    }


def _abilities(served: Served) -> dict[str, Any]:
    """What a model can be asked for, as the page wants to know of each."""
    return {
        "name": served.name,
        "scoring": served.scoring,
        "can_rerank": served.stage is not None,
        "can_search": served.search is not None,
        "can_embed": served.is_encoder,
        "can_explain": served.can_explain,
    }


def _model_type(served: Served) -> dict[str, Any]:
    if served.is_encoder and served.search is None:
        return {"embedding": {"pooling": served.facts.get("pooling", "mean")}}
    return {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}


def _is_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.endswith((".yaml", ".yml")) or Path(model).exists()


def _has_adapter(served: Served) -> bool:
    stage = served.stage
    return isinstance(stage, Rerank) and getattr(stage.engine, "adapter", None) is not None


def model_list(service: Service) -> dict[str, Any]:
    """OpenAI's list of models."""
    return {
        "object": "list",
        "data": [
            {"id": each.name, "object": "model", "created": each.created, "owned_by": "rerank"}
            for each in service.catalogue
        ],
    }
