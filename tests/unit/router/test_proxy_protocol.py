from __future__ import annotations

from services.router.proxy_protocol import header_v2, unmapped


def test_an_ipv4_client_is_told_as_the_specification_says() -> None:
    header = header_v2(("192.0.2.7", 50001), ("198.51.100.1", 35000))
    assert header[:12] == b"\r\n\r\n\x00\r\nQUIT\n"
    assert header[12:16] == bytes([0x21, 0x11, 0, 12])
    assert header[16:] == bytes([192, 0, 2, 7, 198, 51, 100, 1]) + (50001).to_bytes(2) + (35000).to_bytes(2)


def test_an_ipv6_client_is_told_with_whole_addresses() -> None:
    header = header_v2(("2001:db8::1", 1), ("2001:db8::2", 2))
    assert header[12:16] == bytes([0x21, 0x21, 0, 36])
    assert len(header) == 16 + 36


def test_an_ipv4_client_on_a_dual_stack_socket_is_an_ipv4_client() -> None:
    assert unmapped("::ffff:192.0.2.7") == "192.0.2.7"
    assert unmapped("fe80::1%eth0") == "fe80::1"
    assert header_v2(("::ffff:192.0.2.7", 1), ("::ffff:192.0.2.8", 2))[13] == 0x11
