"""The server's settings: flags before the environment (`RERANK_*`), before a file, before defaults."""

from __future__ import annotations

import dataclasses
import ipaddress
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rerank.config import AdapterPath, FilePath, build
from rerank.engines.text_model import DType
from rerank.errors import ConfigError
from rerank.yamlfile import Tree, parse_yaml, read_yaml

PREFIX = "RERANK_"
LogLevel = Literal["debug", "info", "warning", "error"]
_LARGEST_BODY = 64 << 20


@dataclass(frozen=True)
class ServedModel:
    """One thing that is served.

    >>> ServedModel("minilm-l6", name="small").served_name
    'small'
    """

    model: str
    """What `rerank.Reranker` takes, or a pipeline that starts from queries."""
    name: str | None = None
    """What clients call it; default the last part of `model`, without an ending."""
    adapter: AdapterPath | None = None
    """The folder of a LoRA adapter of the model."""
    rule: str | None = None
    """How comparisons become an order; default as the model wants it."""
    prompt: str | None = None
    """For language models, the name of a profile or a prompt file."""
    revision: str | None = None
    """Of a hub model."""
    dtype: DType = "auto"
    """What the model computes in."""
    data: str | None = None
    """The collection that a pipeline searches; default the server's `data`."""

    @property
    def served_name(self) -> str:
        """What clients call it."""
        if self.name is not None:
            return self.name
        path = Path(self.adapter or self.model)
        return path.stem if path.suffix in (".yaml", ".yml") else path.name


@dataclass(frozen=True)
class Settings:
    """All that can be set.

    Raises:
        ConfigError: a value that cannot be.

    >>> Settings(port=8000).port
    8000
    """

    models: tuple[ServedModel, ...] = ()
    """What is served; the first answers requests that name none."""
    models_folder: FilePath | None = None
    """A folder of models, adapters and pipeline files, each served under its name as soon as it is there."""
    data: str = "stdlib"
    """The collection that pipelines search."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = 8080
    """The port to listen on; 0 takes a free one."""
    api_keys: tuple[str, ...] = ()
    """Keys of which a request must bring one; none: requests need no key."""
    api_key_file: FilePath | None = None
    """A file of keys, one a line."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that a server on a loopback address may be called by, besides localhost."""
    home: FilePath | None = None
    """The cache root."""
    device: str = "auto"
    """Where models run: auto, cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """Processors that the models use; default all that the process may use."""
    max_documents: int = 1000
    """Documents of a request."""
    max_body_bytes: int = 16 << 20
    """Bytes of a request's body."""
    max_batch_tokens: int | None = None
    """Tokens that the worker is given at once; default by the device."""
    max_concurrent_requests: int = 512
    """Requests that are waited for at once."""
    max_queued_tokens: int | None = None
    """Tokens that wait before requests are refused; default 16 times `max_batch_tokens`."""
    queue_timeout: float = 30.0
    """Seconds that a request may wait for its first batch."""
    request_timeout: float = 300.0
    """Seconds that a request may take."""
    body_timeout: float = 30.0
    """Seconds that a client may take to send a request's body."""
    shutdown_timeout: float = 30.0
    """Seconds that requests under way are given when the server ends."""
    heartbeat_timeout: float = 30.0
    """Seconds that the worker may leave a sign of life out."""
    batch_timeout: float = 300.0
    """Seconds that a batch may take before the worker counts as stuck and is replaced."""
    auto_truncate: bool = True
    """Whether documents that are too long are cut, where a request does not say."""
    watch_seconds: float = 2.0
    """Seconds between two looks into `models_folder`."""
    log_level: LogLevel = "info"
    """The least severe lines that are logged."""

    def __post_init__(self) -> None:
        for name in ("max_documents", "max_body_bytes", "max_concurrent_requests"):
            _at_least_one(name, getattr(self, name))
        for name in ("max_batch_tokens", "max_queued_tokens", "threads"):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not 0 < value < 1e9:
                raise ConfigError(f"{field.name} is {value:g}; a number of seconds above 0 is needed")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port is {self.port}; 0 to 65535 is possible")
        if self.max_body_bytes >= _LARGEST_BODY:
            raise ConfigError(f"max_body_bytes is {self.max_body_bytes:,}; less than {_LARGEST_BODY:,} is possible")
        names = [each.served_name for each in self.models]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"two models are called {twice!r}; give them names: --model NAME=MODEL")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can call."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def keys(self) -> tuple[str, ...]:
        """All valid keys.

        Raises:
            ConfigError: the file of keys cannot be read, or holds none.
        """
        if self.api_key_file is None:
            return self.api_keys
        try:
            lines = Path(self.api_key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_key_file: {self.api_key_file} cannot be read as text ({error})") from None
        found = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
        if not found:
            raise ConfigError(f"api_key_file: {self.api_key_file} holds no key; write one a line")
        return (*self.api_keys, *found)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} is {value}, at least 1 is needed")


def load_settings(
    flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None, file: Path | None = None
) -> Settings:
    """The settings: each from the flags, else the environment, else the file, else its default.

    Args:
        flags: by field; None counts as not given.
        environment: variables such as `RERANK_PORT`; lists are separated by commas.  Models are given by flags or file.
        file: YAML with fields of `Settings`.

    Raises:
        ConfigError: a value that cannot be; the message names its place.

    >>> load_settings({"port": 9000}, {"RERANK_PORT": "8000", "RERANK_MAX_DOCUMENTS": "50"}).max_documents
    50
    """
    tree = _file_tree(file)
    given = dict(tree.value)
    places = {name: tree.place((name,)) for name in given}
    hints = typing.get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        variable = PREFIX + field.name.upper()
        text = (environment or {}).get(variable)
        if text is not None and field.name != "models":
            given[field.name] = _read(text, hints[field.name])
            places[field.name] = variable
    for name, value in (flags or {}).items():
        if value is not None and name != "models":
            given[name] = list(value) if isinstance(value, tuple) else value
            places[name] = "--" + name.replace("_", "-")
    try:
        settings = build(Settings, given, tree, ())
    except ConfigError as error:
        known = [place for name, place in places.items() if f"{name}:" in str(error) or f"{name} is" in str(error)]
        outside = [place for place in known if place.startswith(("--", PREFIX))]
        if not outside:
            raise
        raise ConfigError(f"{outside[0]}: {error}") from None
    models = (flags or {}).get("models")
    return dataclasses.replace(settings, models=tuple(models)) if models else settings


def _file_tree(file: Path | None) -> Tree:
    tree = parse_yaml("{}", "settings") if file is None else read_yaml(file)
    if not isinstance(tree.value, dict):
        raise tree.error((), f"settings are a mapping such as {{port: 8080}}; this is {type(tree.value).__name__}")
    return tree


def _read(text: str, hint: Any) -> Any:
    """What a variable's text says, as YAML would have it; texts stay texts."""
    names = {part for part in (hint, *typing.get_args(hint)) if isinstance(part, type)}
    if typing.get_origin(hint) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if names & {int, float, bool}:
        value = parse_yaml(text, "value").value
        return float(value) if float in names and isinstance(value, int) and not isinstance(value, bool) else value
    return text
