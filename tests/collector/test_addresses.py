"""The client's address: X-Forwarded-For counts only from trusted proxies, and only as far as they vouch for it."""

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from harness.load import cat
from harness.server import serving
from kanalony.collector.addresses import client_address

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("127.0.0.1/32"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "chain", "client"),
    [
        ("198.51.100.1", "203.0.113.9", "198.51.100.1"),  # not a trusted proxy: its header does not count
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "1.2.3.4, 203.0.113.9", "203.0.113.9"),  # the left one was sent by the client
        ("10.0.0.1", "203.0.113.9, 10.2.3.4", "203.0.113.9"),
        ("10.0.0.1", "6.6.6.6,203.0.113.9 ,10.2.3.4, 127.0.0.1", "203.0.113.9"),
        ("10.0.0.1", "10.1.1.1, 10.2.2.2", "10.1.1.1"),  # all trusted: the outermost
        ("10.0.0.1", "203.0.113.9, unknown", "10.0.0.1"),  # nothing left of a hop that is no address is known
        ("10.0.0.1", "", "10.0.0.1"),
        ("fd00::1", "2001:db8::7", "2001:db8::7"),
        ("127.0.0.1", "::ffff:203.0.113.9", "203.0.113.9"),
        ("::ffff:10.0.0.1", "203.0.113.9, ::ffff:10.2.3.4", "203.0.113.9"),  # from granian's dual-stack socket
    ],
)
def test_the_client_is_the_rightmost_hop_that_is_no_trusted_proxy(peer: str, chain: str | None, client: str) -> None:
    environ = {"REMOTE_ADDR": peer}
    if chain is not None:
        environ["HTTP_X_FORWARDED_FOR"] = chain
    assert client_address(TRUSTED)(environ) == ip_address(client).packed


def test_without_trusted_proxies_the_header_does_not_count() -> None:
    environ = {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "203.0.113.9"}
    assert client_address(())(environ) == ip_address("127.0.0.1").packed


def test_the_real_server_trusts_a_trusted_proxy(tmp_path: Path) -> None:
    arguments = ("--trusted-proxy", "127.0.0.0/8", "--trusted-proxy", "10.0.0.0/8")
    with serving(tmp_path / "data", *arguments) as server:
        server.get("/collect", "X-Forwarded-For: 6.6.6.6, 203.0.113.9", "X-Forwarded-For: 10.1.1.1")
        (event,) = cat(server.data)
    assert event["remote_addr"] == "203.0.113.9"
    assert event["forwarded_for"] == "6.6.6.6, 203.0.113.9, 10.1.1.1"
