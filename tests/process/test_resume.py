"""Opt-in resume: a device dies in mid-stream, its twin goes on, and the client reads one unbroken answer."""

import json
import re

import httpx
import pytest

import kit

WORD = re.compile(r"w(\d{4,}):([0-9a-f]{4})[0-9a-f]{4}")


@pytest.fixture
def twins(mesh):
    stubs = [mesh.stub(name, model="stub-a", more=["--digest", "sha256:feed"]) for name in ("d1", "d2")]
    node = mesh.first("n1")
    for name, stub in zip(("d1", "d2"), stubs):
        mesh.device(name, [stub.url])
    kit.until("both devices", lambda: {"d1", "d2"} <= node.devices())
    mesh.everywhere("stub-a")
    serving = lambda: [d["name"] for d in node.get("/shoal/v1/devices").json()["devices"] if d["models"]]
    kit.until("both serve", lambda: {"d1", "d2"} <= set(serving()))
    return node, stubs


def read_while_killing(node, stubs, body, tag):
    """Reads a stream and kills the stub that writes it after a few words; returns the payloads."""
    payloads = []
    with httpx.stream("POST", node.url + "/v1/chat/completions", headers=node.auth(), json=body, timeout=60) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if not line.startswith("data: "):
                continue
            payloads.append(line[6:])
            if len(payloads) == 8:
                [victim] = [stub for stub in stubs if stub.alive() and stub.tagged(tag)]
                victim.kill()
    return payloads


def test_a_twin_goes_on_where_the_first_broke_off(twins):
    node, stubs = twins
    body = {"model": "stub-a", "messages": [{"role": "user", "content": "tell [[stub n=40 itl=50 tag=go]]"}],
            "stream": True, "stream_options": {"include_usage": True}, "metadata": {"resume": True}}
    payloads = read_while_killing(node, stubs, body, "go")
    assert payloads[-1] == "[DONE]", payloads[-2:]
    chunks = [json.loads(payload) for payload in payloads[:-1]]
    assert not [chunk for chunk in chunks if "error" in chunk]
    assert len({chunk["id"] for chunk in chunks if chunk["choices"]}) == 1, "one answer has one id"
    roles = [chunk for chunk in chunks if chunk["choices"] and chunk["choices"][0]["delta"].get("role")]
    assert len(roles) == 1, "one beginning"
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    words = WORD.findall(text)
    assert [int(at) for at, _ in words] == list(range(40)), text
    assert len({nonce for _, nonce in words}) == 1 and text.count(" ") == 39, "byte for byte one attempt's text"
    meta = chunks[-1]["shoal_metadata"]
    assert meta["resumed"] == 1 and meta["attempts"] == 2, meta
    assert chunks[-1]["usage"]["completion_tokens"] == 40
    record = node.get(f"/shoal/v1/requests/{meta['request_id']}").json()
    assert record["resumed"] == 1 and [one["ended"] for one in record["attempt_log"]][-1] == "ok"


def test_without_being_asked_the_stream_ends_with_an_error(twins):
    node, stubs = twins
    body = {"model": "stub-a", "messages": [{"role": "user", "content": "sing [[stub n=40 itl=50 tag=no]]"}], "stream": True}
    payloads = read_while_killing(node, stubs, body, "no")
    assert "[DONE]" not in payloads and json.loads(payloads[-1])["error"]["code"] == "upstream_interrupted"
    assert sum(len(stub.tagged("no")) for stub in stubs if stub.alive()) == 0
