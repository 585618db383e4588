from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest

from rerank.errors import UnknownNameError
from rerank.models.catalogue import CATALOGUE, CatalogueModel, lookup, same_weights

MODELS = list(CATALOGUE.values())


def test_the_catalogue_has_the_promised_names():
    assert set(CATALOGUE) == {"minilm-l6", "me5-small", "me5-small-enpt", "splade-tiny", "smollm2-135m"}


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_every_entry_is_complete(model: CatalogueModel):
    module, _, function = model.builder.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert model.licence
    assert model.parameters > 1_000_000
    assert len({source.name for source in model.sources}) == len(model.sources)
    for source in model.sources:
        assert re.fullmatch(r"[0-9a-f]{64}", source.sha256)
        assert ".." not in source.member
        assert not source.member.startswith("/")
    for package in model.packages:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", package.pin)


def test_entries_made_from_different_files_have_different_fingerprints():
    assert len({model.fingerprint for model in MODELS}) == len(MODELS)


def test_an_unknown_short_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'me5-small'"):
        lookup("me5-smal")


def test_hub_ids_of_catalogue_weights_are_known_in_any_case():
    assert same_weights("Sentence-Transformers/all-minilm-l6-v2") is CATALOGUE["minilm-l6"]
    assert same_weights("someone/else") is None


def test_importing_the_package_and_its_commands_loads_nothing_heavy():
    code = (
        "import sys, rerank.models, rerank.cli.models\n"
        "heavy = {'numpy', 'torch', 'transformers', 'safetensors', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_public_name_can_be_had():
    import rerank.models

    for name in rerank.models.__all__:
        assert getattr(rerank.models, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = rerank.models.nothing
