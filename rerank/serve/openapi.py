"""The OpenAPI document of the routes, and a page to read it by."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from rerank import __version__

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_SHOWN_TEXT: Schema = {"type": "string", "minLength": 1, "pattern": r"\S"}
_TEXTS: Schema = {"type": "array", "items": _TEXT, "minItems": 1}
_ONE_OR_MORE: Schema = {"anyOf": [_TEXT, _TEXTS]}
_COUNT: Schema = {"type": ["integer", "null"], "minimum": 0}
_FLAG: Schema = {"type": ["boolean", "null"]}
_NUMBER: Schema = {"type": "number"}
_MODEL: Schema = {"type": ["string", "null"], "description": "One of GET /v1/models; any, where one is served."}


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    return {**schema, "required": list(required)} if required else schema


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


_QUERY: Schema = {"anyOf": [_SHOWN_TEXT, _object(("text",), text=_SHOWN_TEXT)]}
_PART = _object(("type", "text"), type={"const": "text"}, text=_TEXT)
_DOCUMENT: Schema = {
    "anyOf": [_TEXT, _object(("text",), text=_TEXT), _object(("content",), content={**_list(_PART), "minItems": 1})]
}
_DOCUMENTS: Schema = {"anyOf": [_TEXT, {**_list(_DOCUMENT), "minItems": 1}]}
_PAIRING: dict[str, Schema] = {
    "truncate_prompt_tokens": {"type": ["integer", "null"], "minimum": -1},
    "truncation_side": {"enum": ["left", "right", None]},
    "truncation": _FLAG,
    "raw_scores": _FLAG,
}
_USAGE = _object(("prompt_tokens", "total_tokens"), prompt_tokens=_COUNT, total_tokens=_COUNT)
_TIMING = _object(queue_seconds=_NUMBER, tokenize_seconds=_NUMBER, inference_seconds=_NUMBER)
_REASONING = _object(("documents", "text"), documents=_list(_COUNT), text=_TEXT)
_RESULT = _object(("index", "relevance_score"), index=_COUNT, relevance_score=_NUMBER, document=_object())

SCHEMAS: dict[str, Schema] = {
    "Rerank": _object(
        ("query", "documents"),
        query=_QUERY,
        documents=_DOCUMENTS,
        model=_MODEL,
        top_n=_COUNT,
        top_k=_COUNT,
        return_documents={"anyOf": [_FLAG, {"enum": ["true", "false"]}]},
        rank_fields={"anyOf": [_list(_TEXT), {"type": "null"}]},
        max_tokens_per_doc=_COUNT,
        max_chunks_per_doc=_COUNT,
        instruction={"type": ["string", "null"]},
        explain={**_FLAG, "description": "Whether what the model writes is wanted too, in meta.reasoning."},
        **_PAIRING,
    ),
    "TeiRerank": _object(
        ("query", "texts"),
        query=_SHOWN_TEXT,
        texts=_TEXTS,
        truncate=_FLAG,
        truncation_direction={"enum": ["Left", "left", "Right", "right", None]},
        raw_scores=_FLAG,
        return_text=_FLAG,
        top_n=_COUNT,
        model=_MODEL,
    ),
    "Reranked": _object(
        ("id", "results", "usage", "meta"),
        id=_TEXT,
        object={"const": "rerank"},
        model=_TEXT,
        results=_list(_RESULT),
        data=_list(_RESULT),
        usage=_USAGE,
        meta=_object(
            timing=_TIMING, counts=_object(), warnings=_list(_TEXT), reasoning=_list(_REASONING), tokens=_object()
        ),
    ),
    "TeiReranked": _list(_object(("index", "score"), index=_COUNT, score=_NUMBER, text=_TEXT)),
    "Score": {
        "anyOf": [
            _object(pair, **{pair[0]: _ONE_OR_MORE, pair[1]: _ONE_OR_MORE}, model=_MODEL, **_PAIRING)
            for pair in (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
        ]
    },
    "Scored": _object(
        ("id", "data", "usage"),
        id=_TEXT,
        object={"const": "list"},
        created=_COUNT,
        model=_TEXT,
        data=_list(_object(("index", "score"), index=_COUNT, object={"const": "score"}, score=_NUMBER)),
        usage=_USAGE,
    ),
    "Predict": _object(
        ("inputs",),
        inputs={"anyOf": [_TEXT, _list(_TEXT), _list(_list(_TEXT))]},
        raw_scores=_FLAG,
        truncate=_FLAG,
    ),
    "Predicted": _list({}),
    "Embed": _object(("inputs",), inputs=_ONE_OR_MORE, truncate=_FLAG, dimensions=_COUNT, normalize=_FLAG),
    "Embedded": _list(_list(_NUMBER)),
    "Embeddings": _object(
        ("input",),
        input=_ONE_OR_MORE,
        model=_MODEL,
        encoding_format={"enum": ["float", "base64", None]},
        dimensions={"type": ["integer", "null"], "minimum": 1},
        input_type={"enum": ["query", "document", "passage", None]},
    ),
    "EmbeddingList": _object(("data", "usage"), object={"const": "list"}, data=_list(_object()), usage=_USAGE),
    "Tokenize": _object(("inputs",), inputs=_ONE_OR_MORE, add_special_tokens=_FLAG),
    "Tokens": _list(_list(_object(("id", "text", "special"), id=_COUNT, text=_TEXT, special={"type": "boolean"}))),
    "Search": {
        "anyOf": [
            _object(("query",), query=_QUERY, k=_COUNT, model=_MODEL, return_documents=_FLAG),
            _object(("queries",), queries=_TEXTS, k=_COUNT, model=_MODEL, return_documents=_FLAG),
        ]
    },
    "Found": _object(
        ("id", "usage", "meta"),
        id=_TEXT,
        object={"const": "search"},
        model=_TEXT,
        usage=_USAGE,
        meta=_object(timing=_TIMING),
    ),
    "Error": _object(
        ("message", "detail", "error"),
        id=_TEXT,
        message=_TEXT,
        detail=_TEXT,
        error=_object(("message", "type", "code"), message=_TEXT, type=_TEXT, code={"type": "integer"}),
    ),
    "TeiError": _object(("error", "error_type"), error=_TEXT, error_type=_TEXT),
    "Status": _object(("status",), status=_TEXT),
    "Info": _object(("model_id", "model_type"), model_id=_TEXT, model_type=_object()),
    "Models": _object(("data",), object={"const": "list"}, data=_list(_object(("id",), id=_TEXT))),
}

_ERRORS = {
    "400": "a field is missing or wrong, or the body is not JSON",
    "401": "a key is needed, or the one given is not valid",
    "404": "no such model, or the model does not do this",
    "408": "the body came too slowly",
    "413": "the body is too large",
    "415": "the body is not declared as application/json",
    "421": "this server is not called by that name",
    "422": "a field is wrong (dialect of text-embeddings-inference)",
    "424": "the model failed, or does not do this (dialect of text-embeddings-inference)",
    "429": "too much waits already; Retry-After says when to come again",
    "500": "the model failed",
    "503": "waited too long, or the server is loading or shutting down; Retry-After says when to come again",
}
_POSTS = (
    (("/v1/rerank", "/rerank", "/reranking", "/v1/reranking"), "Order documents by a query.", "any", "any"),
    (("/v2/rerank",), "Order documents by a query, as Cohere's second version.", "Rerank", "Reranked"),
    (("/score", "/v1/score"), "Score pairs of texts, in the order given.", "Score", "Scored"),
    (("/predict",), "Score pairs of texts, as text-embeddings-inference.", "Predict", "Predicted"),
    (("/search", "/v1/search"), "Find documents with a pipeline.", "Search", "Found"),
    (("/embed",), "Turn texts into vectors.", "Embed", "Embedded"),
    (("/v1/embeddings", "/embeddings"), "Turn texts into vectors, as OpenAI.", "Embeddings", "EmbeddingList"),
    (("/tokenize",), "Count and show tokens.", "Tokenize", "Tokens"),
    (("/invocations", "/"), "SageMaker's path: what is wanted follows from the body.", "any", "any"),
)
_GETS = (
    ("/info", "What is served, and with which limits.", "Info"),
    ("/v1/models", "The models that can be asked for.", "Models"),
    ("/health", "Whether requests can be answered.", "Status"),
    ("/readyz", "The same.", "Status"),
    ("/ping", "The same.", "Status"),
    ("/livez", "Whether the process runs.", "Status"),
    ("/version", "The version of the server.", None),
    ("/openapi.json", "This document.", None),
)


def document() -> Schema:
    """The document, OpenAPI 3.1.

    >>> sorted(document()["paths"])[:3]
    ['/', '/docs', '/embed']
    """
    paths: dict[str, Schema] = {}
    for some, summary, asked, told in _POSTS:
        for path in some:
            paths[path] = {"post": _post(path, summary, asked, told)}
    for path, summary, told_by in _GETS:
        content = {"application/json": {"schema": _reference(told_by) if told_by else {"type": "object"}}}
        paths.setdefault(path, {})["get"] = _get(path, summary, content)
    paths["/metrics"] = {"get": _get("/metrics", "For Prometheus.", {"text/plain": {"schema": _TEXT}})}
    paths["/docs"] = {"get": _get("/docs", "This document to read.", {"text/html": {"schema": _TEXT}})}
    return {
        "openapi": "3.1.0",
        "info": {"title": "rerank", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _any_of(*names: str) -> Schema:
    return {"anyOf": [_reference(name) for name in names]}


def _post(path: str, summary: str, asked: str, told: str) -> Schema:
    if asked == "any":
        names = (
            ("Rerank", "TeiRerank", "Predict", "Embed") if path in ("/", "/invocations") else ("Rerank", "TeiRerank")
        )
        body: Schema = _any_of(*names)
        reply: Schema = (
            _any_of("Reranked", "TeiReranked", "Predicted") if len(names) > 2 else _any_of("Reranked", "TeiReranked")
        )
    else:
        body, reply = _reference(asked), _reference(told)
    return {
        "summary": summary,
        "operationId": _identifier("post", path),
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "Done.", "content": {"application/json": {"schema": reply}}}, **_errors()},
    }


def _get(path: str, summary: str, content: Mapping[str, Schema]) -> Schema:
    kept = ("401", "404", "421", "503")
    errors = {status: each for status, each in _errors().items() if status in kept}
    if path in ("/health", "/readyz", "/ping"):
        schema = {"schema": _any_of("Status", "Error")}
        errors["503"] = {"description": "Requests cannot be answered now.", "content": {"application/json": schema}}
    responses = {"200": {"description": "Done.", "content": dict(content)}, **errors}
    return {"summary": summary, "operationId": _identifier("get", path), "responses": responses}


def _errors() -> dict[str, Schema]:
    schema = _any_of("Error", "TeiError")
    content = {"application/json": {"schema": schema}}
    return {status: {"description": said, "content": content} for status, said in _ERRORS.items()}


def _identifier(method: str, path: str) -> str:
    return method + "_" + (path.strip("/").replace("/", "_").replace(".", "_") or "root")


def page_of(described: Schema) -> str:
    """The document as a plain page: no script, no outside resource."""
    rows = []
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            statuses = ", ".join(operation["responses"])
            cells = (method.upper(), path, operation["summary"], statuses)
            rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>rerank: routes</title></head><body>'
        f'<h1>rerank {html.escape(__version__)}</h1><p>The document for machines is <a href="/openapi.json">'
        "/openapi.json</a>.</p><table><tr><th>method</th><th>path</th><th>what it does</th><th>answers</th></tr>"
        f"{''.join(rows)}</table></body></html>"
    )
