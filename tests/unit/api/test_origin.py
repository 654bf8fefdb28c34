from __future__ import annotations

import pytest

from services.api.origin import Peer, host_name, origin_of, own_host, proxies, same_origin

NAMES = frozenset({"n1", "n1.local"})


def of(client: str, headers: dict[str, str] | None = None, trusted: tuple[str, ...] = ()) -> tuple[str, bool]:
    found = origin_of(None, client, False, headers or {}, proxies(trusted))
    return found.source, found.local


def test_the_unix_socket_is_local_and_named_by_its_uid() -> None:
    found = origin_of(Peer(7, 1000), "", False, {"x-forwarded-for": "1.2.3.4"}, proxies(["0.0.0.0/0"]))
    assert (found.source, found.local) == ("uid:1000", True)


@pytest.mark.parametrize("client", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_local(client: str) -> None:
    assert of(client)[1]


def test_another_machine_is_not_local() -> None:
    assert of("192.0.2.7") == ("192.0.2.7", False)


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "x-real-ip", "via", "x-forwarded-host"])
def test_loopback_behind_a_proxy_that_nobody_trusts_is_not_local(header: str) -> None:
    assert of("127.0.0.1", {header: "127.0.0.1"}) == ("127.0.0.1", False)


def test_forwarded_headers_of_strangers_are_ignored() -> None:
    assert of("192.0.2.7", {"x-forwarded-for": "10.0.0.1"}) == ("192.0.2.7", False)


@pytest.mark.parametrize(
    ("forwarded", "source"),
    [
        ("203.0.113.5", "203.0.113.5"),
        ("127.0.0.1, 203.0.113.5", "203.0.113.5"),  # the left part is what the client invented
        ("203.0.113.5, 10.1.1.1", "203.0.113.5"),
        ("nonsense", "10.0.0.9"),
        ("203.0.113.5, nonsense", "10.0.0.9"),
        ("", "10.0.0.9"),
    ],
)
def test_a_trusted_proxy_names_the_client(forwarded: str, source: str) -> None:
    assert of("10.0.0.9", {"x-forwarded-for": forwarded}, ("10.0.0.0/8",)) == (source, False)


def test_what_comes_through_a_trusted_proxy_is_never_local() -> None:
    assert of("127.0.0.1", {"x-forwarded-for": "127.0.0.1"}, ("127.0.0.1",)) == ("127.0.0.1", False)


def test_a_trusted_proxy_tells_whether_the_client_spoke_tls() -> None:
    headers = {"x-forwarded-proto": "https"}
    assert origin_of(None, "10.0.0.9", False, headers, proxies(["10.0.0.9"])).secure
    assert not origin_of(None, "10.0.0.8", False, headers, proxies(["10.0.0.9"])).secure


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8080", "n1", "N1.local:80", "a.localhost", "10.0.0.1"])
def test_addresses_and_own_names_are_our_hosts(host: str) -> None:
    assert own_host(host, NAMES)


@pytest.mark.parametrize("host", ["", "evil.example", "n1.evil.example", "localhost.evil.example", "127.0.0.1.evil.example"])
def test_other_names_are_not(host: str) -> None:
    assert not own_host(host, NAMES)


def test_a_page_is_of_the_same_origin_by_host_and_port() -> None:
    assert same_origin("http://n1:8080", "n1:8080")
    assert not same_origin("http://n1:8081", "n1:8080")
    assert not same_origin("null", "n1:8080")
    assert not same_origin("http://[", "n1")
    assert not same_origin("", "")


def test_a_host_header_has_a_name_and_maybe_a_port() -> None:
    assert [host_name(text) for text in ("a:1", "[::1]:2", "A.b.", "[::1", "")] == ["a", "::1", "a.b", "::1", ""]
