"""A client that goes away stops the work, in every phase, on every path; the stub is the witness."""

import httpx
import pytest

import kit

PATHS = {
    # name: (node that is asked, model, stubs that may serve it)
    "own server": (0, "stub-local", ["local"]),
    "through a peer": (1, "stub-local", ["local"]),
    "device by tunnel": (2, "stub-a", ["d1", "d2", "d3"]),
}


def entry(trio, names, tag):
    found = [one for name in names for one in trio.stubs[name].tagged(tag)]
    return found[0] if found else None


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_upstream_sees_the_client_go(trio, path, phase, stream):
    at, model, names = PATHS[path]
    node = trio.nodes[at]
    tag = f"{path}-{phase}-{stream}".replace(" ", "_")
    pace = "ttft=120000" if phase == "prefill" else "n=5000 itl=1000"
    body = {"model": model, "messages": [{"role": "user", "content": f"[[stub {pace} tag={tag}]]"}], "stream": stream}
    leave(node, body, lambda: (entry(trio, names, tag) or {}).get("phase") == phase)
    gone, _ = kit.until("client_gone", lambda: entry(trio, names, tag)["end"] == "client_gone", within_s=10)
    assert gone
    kit.until("nothing in flight", lambda: node.get("/shoal/v1/status").json()["requests"]["in_flight"] == 0, within_s=10)


def leave(node, body, when):
    """Sends a request on a raw connection, waits for `when`, and hangs up."""
    import json
    import socket

    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {node.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as connection:
        connection.sendall(head + payload)
        kit.until("the request in its phase", when)


def test_a_slow_reader_loses_nothing(trio):
    node = trio.nodes[1]
    body = {"model": "stub-a", "messages": [{"role": "user", "content": "[[stub n=400]]"}], "stream": True}
    with httpx.stream("POST", node.url + "/v1/chat/completions", headers=node.auth(), json=body, timeout=30) as answer:
        text = "".join(answer.iter_text(chunk_size=7))
    payloads = kit.events(text)
    assert payloads[-1] == "[DONE]"
    assert len([payload for payload in payloads if ":" in payload]) >= 400
