"""The client's address, told to the container in both ways."""

from __future__ import annotations

import asyncio
import struct

import pytest

from services.router.route import ClientIp, Mode, Protocol

from .harness import Bench, Client, backend, echo, http_ok, on_loop, relaying, until

XFF = {"protocol": Protocol.HTTP, "client_ip": ClientIp.XFF}


@on_loop
async def test_proxy_v2_tells_the_clients_own_address_before_its_first_byte() -> None:
    async with backend(echo) as at, relaying(at, client_ip=ClientIp.PROXY_V2) as bench:
        client = await bench.connect()
        source = client.writer.get_extra_info("sockname")
        answer = await client.ask(b"hello")
        assert answer[:12] == b"\r\n\r\n\x00\r\nQUIT\n"
        assert answer[16:28] == bytes([127, 0, 0, 1] * 2) + struct.pack("!HH", source[1], bench.number)
        assert answer[28:] == b"hello"
        await client.close()


@on_loop
async def test_proxy_v2_comes_first_also_for_a_held_client_and_a_server_that_speaks_first() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        header = await reader.readexactly(28)
        writer.write(b"220 " + header[:12])
        await reader.read(-1)

    async with backend(serve) as at, relaying(at, client_ip=ClientIp.PROXY_V2, mode=Mode.HOLD) as bench:
        client = await bench.connect()
        await until(lambda: len(bench.port.held) == 1, "it is held")
        bench.allow(Mode.LOCAL)
        assert await asyncio.wait_for(client.reader.readexactly(16), 5) == b"220 \r\n\r\n\x00\r\nQUIT\n"
        await client.close()


@on_loop
async def test_xff_replaces_what_the_client_claims() -> None:
    async with backend(http_ok) as at, relaying(at, **XFF) as bench:
        client = await bench.connect()
        client.writer.write(
            b"GET /x HTTP/1.1\r\nHost: notes:35000\r\nX-Forwarded-For: 10.9.9.9\r\nX_Forwarded_For: 10.9.9.9\r\n\r\n"
        )
        answer = await client.rest()
        assert answer.count(b"X-Forwarded-For: 127.0.0.1\r\n") == 1
        assert b"X-Forwarded-Host: notes:35000\r\n" in answer
        assert b"X-Forwarded-Proto: http\r\n" in answer
        assert b"10.9.9.9" not in answer
        await client.close()


@on_loop
async def test_a_head_that_comes_byte_by_byte_is_read_whole() -> None:
    async with backend(http_ok) as at, relaying(at, **XFF) as bench:
        client = await bench.connect()
        for byte in b"GET / HTTP/1.1\r\nHost: a\r\n\r\n":
            client.writer.write(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0.001)
        assert (await client.rest()).startswith(b"HTTP/1.1 200 ")
        await client.close()


async def body_of(bench: Bench, request: bytes, later: bytes = b"") -> bytes:
    client = await bench.connect()
    client.writer.write(request)
    await client.writer.drain()
    if later:
        await asyncio.sleep(0.05)
        client.writer.write(later)
    answer = await client.rest()
    await client.close()
    return answer


@on_loop
async def test_a_second_request_on_the_connection_never_reaches_the_container() -> None:
    arrived = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.extend(await reader.readuntil(b"\r\n\r\n"))
        try:
            async with asyncio.timeout(0.2):
                while data := await reader.read(1000):
                    arrived.extend(data)
        except TimeoutError:
            pass
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n"
    post = b"POST / HTTP/1.1\r\nHost: a\r\n"
    cases = (
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + smuggled, b""),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", smuggled),
        (post + b"Content-Length: 4\r\n\r\nbo", b"dy" + smuggled),
        (post + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n" + smuggled, b""),
        (post + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbo", b"dy\r\n0\r\n\r\n" + smuggled),
    )
    async with backend(serve) as at, relaying(at, **XFF) as bench:
        for request, later in cases:
            arrived.clear()
            assert (await body_of(bench, request, later)).startswith(b"HTTP/1.1 200 ")
            assert b"smuggled" not in arrived
            assert b"10.0.0.1" not in arrived
            assert (b"body" in arrived) == (b"POST" in request)


@on_loop
async def test_a_long_body_passes_whole() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(3_000_000)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + str(sum(body)).encode())

    body = bytes(range(256)) * 11719
    async with backend(serve) as at, relaying(at, **XFF) as bench:
        request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n" + body[:3_000_000]
        assert (await body_of(bench, request)).endswith(str(sum(body[:3_000_000])).encode())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01 not http at all\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
    ],
)
def test_an_ambiguous_request_is_answered_here_and_never_dialled(request_: bytes, status: bytes) -> None:
    @on_loop
    async def run() -> None:
        dialled: list[Client] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            dialled.append(Client(reader, writer))

        async with backend(serve) as at, relaying(at, **XFF) as bench:
            assert (await body_of(bench, request_)).startswith(b"HTTP/1.1 " + status)
            assert not dialled

    run()


@on_loop
async def test_a_client_that_never_finishes_its_head_is_sent_away() -> None:
    async with backend(http_ok) as at, relaying(at, head_s=0.3, **XFF) as bench:
        assert (await body_of(bench, b"GET / HTTP/1.1\r\nHost: a\r\n")).startswith(b"HTTP/1.1 408 ")
        await until(lambda: bench.relay.admission.total == 0, "it is gone")


@on_loop
async def test_a_request_held_is_rewritten_when_it_is_released() -> None:
    async with backend(http_ok) as at, relaying(at, mode=Mode.HOLD, **XFF) as bench:
        client = await bench.connect()
        client.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.9.9.9\r\n\r\n")
        await until(lambda: len(bench.port.held) == 1, "it is held")
        bench.allow(Mode.LOCAL)
        answer = await client.rest()
        assert b"X-Forwarded-For: 127.0.0.1\r\n" in answer
        assert b"10.9.9.9" not in answer
        await client.close()
