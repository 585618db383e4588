"""What schemathesis makes of the OpenAPI document: no 500, and no answer that the document does not foresee."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra serve brings it")
pytest.importorskip("uvicorn", reason="the extra serve brings it")

from serve.live import live
from serve.stand_in import StandIn, model_folder

from rerank.serve.settings import ServedModel

pytestmark = [pytest.mark.slow, pytest.mark.needs("schemathesis")]

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.parametrize("n_models", [1, 3])
def test_requests_made_from_the_document_get_answers_that_it_foresees(tmp_path, n_models):
    models = [
        ServedModel(model_folder(tmp_path / "small")),
        ServedModel("bm25", name="found"),
        ServedModel(model_folder(tmp_path / "encoder", "dense")),
    ]
    worker = StandIn()
    worker.facts["dimension"] = 3
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", "--checks", CHECKS, "--max-examples", "60",
        "--seed", "1", "--generation-deterministic", "--no-color",
    ]  # fmt: skip
    with live(*models[:n_models], worker=worker) as server:
        done = subprocess.run(
            [*command, f"{server.url}/openapi.json"], capture_output=True, text=True, cwd=tmp_path, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        statuses = server.service.metrics.text().decode()
    assert 'path="/v1/rerank",status="200"' in statuses
