"""Clients that send or read too little, too slowly or too much do not keep others from being served."""

import contextlib
import socket
import time

import numpy as np
import pytest
from helpers.viewer_small import Served, blobs, write_result

from bcss_jax.viewer import http_server

GET = b"GET /static/viewer.css HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
PART = b"GET / HTTP/1.1\r\nHost: "


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    write_result(folder / "out/a", folder / "a.png", 80, 60, blobs(60, 80))
    with Served(folder / "out") as found:
        yield found


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.5)


@contextlib.contextmanager
def connected(served, number=1):
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=10)) for _ in range(number)
        ]


def ends(client) -> bool:
    """Returns whether the server ends the connection; what it sends before is discarded."""
    try:
        while client.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def test_400_clients_that_send_half_a_request_do_not_block_another(served):
    with connected(served, 400) as clients:
        for client in clients:
            with contextlib.suppress(ConnectionError):  # its place was given to another
                client.sendall(PART)
        start = time.perf_counter()
        assert served.get("/result/out/a").status == 200
        assert time.perf_counter() - start < 5


def test_the_first_to_lose_its_place_is_the_one_that_waited_longest(served):
    with connected(served, 3) as first:
        time.sleep(0.2)
        with connected(served, http_server.MAX_CONNECTIONS - 3) as others, connected(served, 3):
            start = time.perf_counter()
            assert all(ends(client) for client in first)
            assert time.perf_counter() - start < 5
            others[-1].settimeout(0.5)
            assert not ends(others[-1])


@pytest.mark.parametrize("first", [b"", PART, GET, GET + PART], ids=["nothing", "a part", "a request", "both"])
def test_a_connection_without_a_whole_request_is_closed_in_time(served, quick, first):
    with connected(served) as (client,):
        start = time.perf_counter()
        client.sendall(first)
        assert ends(client)
        assert time.perf_counter() - start < 3


def test_a_request_that_arrives_byte_by_byte_gets_no_more_time(served, quick):
    with connected(served) as (client,), contextlib.suppress(ConnectionError):
        for _ in range(30):
            client.sendall(b"G")
            time.sleep(0.1)
        pytest.fail("still open after three seconds")


def test_an_endless_body_is_not_read(served, quick):
    with connected(served) as (client,), contextlib.suppress(ConnectionError):
        client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000000\r\n\r\n")
        for _ in range(30):
            client.sendall(bytes(1000))
            time.sleep(0.1)
        pytest.fail("still open after three seconds")


def test_a_client_that_reads_nothing_is_closed(served, quick):
    path = b"/static/openseadragon/openseadragon.min.js"
    with connected(served) as (client,):
        client.sendall(GET.replace(b"/static/viewer.css", path) * 60)  # more than the buffers of both sockets hold
        time.sleep(2)
        received = 0
        with contextlib.suppress(ConnectionError):
            while chunk := client.recv(1 << 20):
                received += len(chunk)
        assert received < 60 * len(served.get(path.decode()).content)


def test_long_request_lines_and_headers_are_refused(served):
    for request in (
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"A: a\r\n" * 50_000 + b"\r\n",
    ):
        with connected(served) as (client,):
            with contextlib.suppress(ConnectionError):
                client.sendall(request)
            with contextlib.suppress(ConnectionError):
                assert client.recv(12) in (b"HTTP/1.1 400", b"")
            assert ends(client)
    assert served.get("/result/out/a").status == 200


def test_bytes_that_are_no_request_are_answered_with_400(served):
    random = np.random.default_rng(0)
    for _ in range(20):
        with connected(served) as (client,), contextlib.suppress(ConnectionError):
            client.sendall(random.bytes(200) + b"\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 400"
