"""`Idempotency-Key` over real sockets: what is sent twice runs once; the stub is the witness."""

import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import kit

REPLAY = "x-shoal-idempotent-replay"


def post(node, path, body, name, **options):
    headers = {**node.auth(), "idempotency-key": name}
    return httpx.post(node.url + path, headers=headers, json=body, timeout=kit.PATIENCE_S, **options)


def chat(prompt, stream=False):
    return {"model": "stub-own", "messages": [{"role": "user", "content": prompt}], "stream": stream}


@pytest.fixture
def alone(mesh):
    stub = mesh.stub("own", model="stub-own")
    node = mesh.first("n1", more=["--device", stub.url])
    mesh.everywhere("stub-own")
    return node, stub


def test_duplicates_in_flight_and_later_run_once_in_every_api(alone):
    node, stub = alone
    texts = {
        "/v1/chat/completions": lambda text: chat(text),
        "/v1/completions": lambda text: {"model": "stub-own", "prompt": text},
        "/v1/responses": lambda text: {"model": "stub-own", "input": text, "store": False},
        "/v1/messages": lambda text: {"model": "stub-own", "max_tokens": 64,
                                      "messages": [{"role": "user", "content": text}]},
        "/api/chat": lambda text: {"model": "stub-own", "messages": [{"role": "user", "content": text}]},
    }
    for at, (path, body) in enumerate(texts.items()):
        for stream in (False, True):
            tag = f"api{at}-{stream}"
            asked = {**body(f"story {tag} [[stub n=12 ttft=400 itl=20 tag={tag}]]"), "stream": stream}
            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(lambda _: post(node, path, asked, tag), range(4)))
            answers.append(post(node, path, asked, tag))
            assert {answer.status_code for answer in answers} == {200}, (path, answers[0].text)
            assert len({answer.content for answer in answers}) == 1, path
            assert sorted(answer.headers.get(REPLAY, "") for answer in answers) == [""] + ["true"] * 4
            assert len(stub.tagged(tag)) == 1, path


def test_another_body_and_another_key(alone):
    node, stub = alone
    first = post(node, "/v1/chat/completions", chat("rivers [[stub n=3 tag=a]]"), "one")
    assert first.status_code == 200
    other = post(node, "/v1/chat/completions", chat("mountains [[stub n=3 tag=b]]"), "one")
    assert other.status_code == 422 and other.json()["error"]["code"] == "idempotency_key_reused"
    assert stub.tagged("b") == []
    made = node.post("/v1/chat/completions", chat("rivers [[stub n=3 tag=a]]"))
    assert made.status_code == 200 and REPLAY not in made.headers
    bad = post(node, "/v1/chat/completions", chat("lakes"), "x" * 300)
    assert bad.status_code == 400 and bad.json()["error"]["param"] == "Idempotency-Key"


def test_the_first_client_may_leave_while_another_waits_and_the_last_one_cancels(alone):
    node, stub = alone
    body = chat("a long tale [[stub n=30 itl=100 tag=left]]", stream=True)
    headers = {**node.auth(), "idempotency-key": "left"}
    with ThreadPoolExecutor(1) as pool:
        with httpx.stream("POST", node.url + "/v1/chat/completions", headers=headers, json=body, timeout=30) as first:
            pieces = first.iter_raw()  # kept: httpx closes the stream with the iterator
            next(pieces)
            second = pool.submit(post, node, "/v1/chat/completions", body, "left")
            shared = lambda: 'shoal_idempotent_replays_total{answer="running"} 1' in node.get("/metrics").text
            kit.until("the second one reads along", shared)
        answer = second.result()
    payloads = kit.events(answer.text)
    assert payloads[-1] == "[DONE]" and answer.headers[REPLAY] == "true"
    assert [one["end"] for one in stub.tagged("left")] == ["completed"]

    body = chat("an endless tale [[stub n=5000 itl=100 tag=last]]", stream=True)
    headers["idempotency-key"] = "last"
    with httpx.stream("POST", node.url + "/v1/chat/completions", headers=headers, json=body, timeout=30) as only:
        next(only.iter_raw())
    kit.until("cancelled", lambda: stub.tagged("last")[0]["end"] == "client_gone", within_s=10)


def test_a_failed_answer_is_not_kept(alone):
    node, stub = alone
    for fault, stream in (("err=500", False), ("cut=3", True)):
        body = chat(f"trouble {fault} [[stub n=9 itl=5 {fault} tag=f-{stream}]]", stream)
        for _ in range(2):
            answer = post(node, "/v1/chat/completions", body, f"f-{stream}")
            assert REPLAY not in answer.headers and '"error"' in answer.text
        assert len(stub.tagged(f"f-{stream}")) >= 2
