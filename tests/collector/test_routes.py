"""Requests generated from docs/openapi.yaml: no response is a server error, and every response is as documented."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from harness.load import cat
from harness.server import Server, run, serving
from tests.tools import examples

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = examples(60)  # for each operation and server

schema = schemathesis.openapi.from_path(Path(__file__).parents[2] / "docs" / "openapi.yaml")


@pytest.fixture(scope="module", params=["meinheld", "granian"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts a collector, and checks its log and data when all requests have been sent."""
    with serving(tmp_path_factory.mktemp("routes") / "data", "--server", request.param) as server:
        yield server
        assert "Traceback" not in server.log.read_text()
        cat(server.data)
        assert run("verify", "--data", server.data).returncode == 0


@schema.parametrize()
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
def test_every_response_is_as_documented_and_none_is_a_5xx(case: Any, server: Server) -> None:
    case.call_and_validate(base_url=f"http://{server.host}:{server.port}", checks=CHECKS)
