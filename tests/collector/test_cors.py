"""CORS headers by configuration and request, without a server."""

from typing import Any

import pytest

from kanalony.collector.cors import Cors

PAGE = "https://videos.example"
NAMED = {"Access-Control-Allow-Origin": PAGE, "Access-Control-Allow-Credentials": "true", "Vary": "Origin"}


def headers(cors: Cors, method: str, environ: dict[str, Any]) -> dict[str, str]:
    return dict(cors.response_headers(cors.origin({"REQUEST_METHOD": method, **environ})))


@pytest.mark.parametrize(
    ("method", "environ", "expected"),
    [
        ("GET", {"HTTP_ORIGIN": PAGE}, {"Access-Control-Allow-Origin": "*"}),
        ("GET", {"HTTP_ORIGIN": PAGE, "HTTP_COOKIE": ""}, NAMED),
        ("POST", {"HTTP_ORIGIN": PAGE}, NAMED),
        ("POST", {}, {"Access-Control-Allow-Origin": "*"}),
        ("POST", {"HTTP_ORIGIN": "no origin"}, {"Access-Control-Allow-Origin": "*"}),
        ("POST", {"HTTP_ORIGIN": "x" * 257}, {"Access-Control-Allow-Origin": "*"}),
    ],
)
def test_without_a_list_every_page_may_read_and_is_named_where_browsers_need_it(
    method: str, environ: dict[str, str], expected: dict[str, str]
) -> None:
    assert headers(Cors(()), method, environ) == expected


@pytest.mark.parametrize(("origin", "expected"), [(PAGE, NAMED), ("https://a.example", {"Vary": "Origin"})])
def test_with_a_list_only_its_pages_may_read(origin: str, expected: dict[str, str]) -> None:
    assert headers(Cors((PAGE,)), "GET", {"HTTP_ORIGIN": origin}) == expected


@pytest.mark.parametrize("allowed", [(), (PAGE,)])
@pytest.mark.parametrize("environ", [{}, {"HTTP_ORIGIN": PAGE}, {"HTTP_ORIGIN": "https://a.example"}])
def test_a_get_without_a_deciding_header_names_no_origin(allowed: tuple[str, ...], environ: dict[str, str]) -> None:
    cors = Cors(allowed)
    if not set(cors.deciding_headers) & set(environ):
        assert cors.origin({"REQUEST_METHOD": "GET", **environ}) is None


def test_a_preflight_of_another_page_is_refused_only_with_a_list() -> None:
    request = {"HTTP_ORIGIN": "https://a.example", "HTTP_ACCESS_CONTROL_REQUEST_HEADERS": "content-type, x-player"}
    granted = Cors(()).preflight(request)
    assert granted
    assert ("Access-Control-Allow-Headers", "content-type, x-player") in granted
    assert Cors((PAGE,)).preflight(request) is None
    assert Cors((PAGE,)).preflight({**request, "HTTP_ORIGIN": PAGE}) is not None
