"""Clients that do not begin, trickle, or read nothing are cut off in their time, and nobody else notices."""

import json
import select
import socket
import time

import pytest

import kit

LIMITS = """version = 1
[limits]
header_s = 4
body_idle_s = 2
write_idle_s = 3
connections_per_ip = 40
"""


@pytest.fixture
def strict(mesh):
    stub = mesh.stub("own", model="stub-own")
    config = mesh.folder / "strict.toml"
    config.write_text(LIMITS)
    node = mesh.first("n1", more=["--device", stub.url, "--config", config])
    mesh.everywhere("stub-own")
    return node, stub


def connect(node):
    return socket.create_connection(("127.0.0.1", node.port), timeout=30)


def closed_after(connection):
    """Seconds until the node closes the connection."""
    began = time.monotonic()
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - began


def head(node, length):
    return (f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {node.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n").encode()


@pytest.mark.parametrize("beginning", [b"", b"P", b"PRI * HTTP/2.0\r\n", b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: "])
def test_a_client_that_does_not_send_its_header_is_cut_off(strict, beginning):
    node, _ = strict
    with connect(node) as connection:
        connection.sendall(beginning)
        assert closed_after(connection) <= 4 * 1.2 + 1


def test_a_client_that_trickles_is_cut_off_too(strict):
    node, _ = strict
    # A byte a second keeps every silence short; neither header nor body may last for ever.
    for opening, allowed in ((b"GET /healthz HTTP/1.1\r\nx: ", 4), (head(node, 1000) + b"{", 2 * 2)):
        with connect(node) as connection:
            connection.sendall(opening)
            connection.settimeout(0.5)
            began = time.monotonic()
            while time.monotonic() - began < 20:
                try:
                    connection.sendall(b"x")
                    if not connection.recv(65536):
                        break
                    if opening.startswith(b"POST"):
                        break  # it was told why
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
            assert time.monotonic() - began <= allowed * 1.5 + 1, opening


def test_a_client_that_reads_nothing_is_cut_off_and_its_work_ends(strict):
    node, stub = strict
    # With alternatives to every token: far more than the system's buffers hold.
    body = json.dumps({"model": "stub-own", "stream": True, "logprobs": True, "top_logprobs": 20, "messages": [
        {"role": "user", "content": "[[stub n=20000 tag=stalled]]"}]}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", node.port))
        connection.sendall(head(node, len(body)) + body)
        kit.until("the answer begun", lambda: stub.tagged("stalled"))
        began = time.monotonic()
        gone = lambda: node.get("/shoal/v1/status").json()["requests"]["in_flight"] == 0
        kit.until("its work over", gone, within_s=20)
        assert time.monotonic() - began <= 3 * 1.5 + 3
    assert 'shoal_stalled_clients_total' in node.get("/metrics").text
    assert node.chat("stub-own", "[[stub n=2]]").status_code == 200


def test_one_address_has_its_share_of_connections_and_others_are_served(strict):
    node, _ = strict
    held = []
    try:
        for _ in range(45):
            held.append(connect(node))
        # Those over the share are closed at once, the others only when they have not begun in their time.
        closed = lambda: select.select(held, [], [], 0)[0]
        kit.until("those over the share closed", lambda: len(closed()) >= 5, within_s=3)
        assert len(closed()) <= 6, len(closed())
    finally:
        for connection in held:
            connection.close()
    kit.until("served again", lambda: node.get("/healthz").status_code == 200)
