"""Where settings come from, and what is refused."""

from __future__ import annotations

import pytest

from rerank.errors import ConfigError
from rerank.serve.settings import ServedModel, Settings, load_settings


def test_flags_come_before_the_environment_before_the_file_before_defaults(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text("port: 1\nmax_documents: 1\nqueue_timeout: 1\nmodels: [{model: minilm-l6, name: small}]\n")
    environment = {"RERANK_PORT": "2", "RERANK_MAX_DOCUMENTS": "2", "RERANK_HOME": "/somewhere", "RERANK_DEBUG": "1"}
    settings = load_settings({"port": 3, "data": None}, environment, path)
    assert (settings.port, settings.max_documents, settings.queue_timeout) == (3, 2, 1.0)
    assert settings.models == (ServedModel("minilm-l6", "small"),)
    assert settings.home == "/somewhere"
    assert settings.request_timeout == 300.0


def test_models_of_flags_replace_those_of_the_file(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text("models: [{model: minilm-l6}]\n")
    settings = load_settings({"models": [ServedModel("bm25")]}, {}, path)
    assert [each.model for each in settings.models] == ["bm25"]


def test_lists_and_switches_come_from_the_environment():
    environment = {"RERANK_API_KEYS": "one, two", "RERANK_AUTO_TRUNCATE": "false", "RERANK_QUEUE_TIMEOUT": "5"}
    settings = load_settings({}, environment)
    assert settings.api_keys == ("one", "two")
    assert settings.auto_truncate is False
    assert settings.queue_timeout == 5.0


def test_defaults_are_those_of_the_contract():
    settings = Settings()
    assert (settings.host, settings.max_documents, settings.max_body_bytes) == ("127.0.0.1", 1000, 16 << 20)
    assert (settings.max_concurrent_requests, settings.queue_timeout, settings.request_timeout) == (512, 30.0, 300.0)
    assert (settings.shutdown_timeout, settings.auto_truncate) == (30.0, True)
    assert settings.keys() == ()


@pytest.mark.parametrize(
    ("flags", "environment", "text", "said"),
    [
        ({}, {}, "prot: 1\n", "serve.yaml:1.*prot.*port"),
        ({}, {}, "port: many\n", "serve.yaml:1: port"),
        ({}, {}, "port: 1.5\n", "serve.yaml:1: port"),
        ({}, {}, "[1]\n", "settings are a mapping"),
        ({}, {}, "models: [{model: a}, {model: b/a}]\n", "two models are called 'a'"),
        ({}, {}, "models: [{modle: a}]\n", "modle"),
        ({}, {"RERANK_PORT": "many"}, "", "RERANK_PORT"),
        ({}, {"RERANK_AUTO_TRUNCATE": "no"}, "", "RERANK_AUTO_TRUNCATE"),
        ({"port": 70000}, {}, "", "--port: .*65535"),
        ({"max_documents": 0}, {}, "", "--max-documents: .*at least 1"),
        ({}, {"RERANK_QUEUE_TIMEOUT": "0"}, "", "RERANK_QUEUE_TIMEOUT: .*above 0"),
        ({}, {"RERANK_MAX_BODY_BYTES": "100000000"}, "", "max_body_bytes"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(tmp_path, flags, environment, text, said):
    path = tmp_path / "serve.yaml"
    path.write_text(text or "{}\n")
    with pytest.raises(ConfigError, match=said):
        load_settings(flags, environment, path)


@pytest.mark.parametrize("content", [None, "", "# nothing\n\n"])
def test_a_file_of_keys_must_hold_some(tmp_path, content):
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="api_key_file"):
        Settings(api_key_file=str(path)).keys()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (ServedModel("owner/some-model"), "some-model"),
        (ServedModel("/a/folder"), "folder"),
        (ServedModel("a/pipeline.yaml"), "pipeline"),
        (ServedModel("base", adapter="runs/mine"), "mine"),
        (ServedModel("BAAI/bge-reranker-v2.5"), "bge-reranker-v2.5"),
        (ServedModel("x", "own"), "own"),
    ],
)
def test_models_have_names(model, name):
    assert model.served_name == name


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_addresses_are_known(host):
    assert Settings(host=host).is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "box"])
def test_other_addresses_are_not(host):
    assert not Settings(host=host).is_loopback
