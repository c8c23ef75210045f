"""A real llama.cpp server beside a node: found, listed, asked from another node."""

import os

import httpx
import pytest

import kit
from conftest import need

SERVER = os.environ.get("LLAMA_SERVER", "")
ASK = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture
def llama(tmp_path):
    need(SERVER, "llama-server", "scripts/llama-server.sh builds it; set LLAMA_SERVER")
    need(kit.MODEL, "the real model", "set SHOAL_TEST_MODEL to a GGUF file")
    port = kit.free_port()
    server = kit.Process(tmp_path / "llama", [
        SERVER, "-m", kit.MODEL, "--host", "127.0.0.1", "--port", port, "-c", 4096, "-np", 2, "--alias", "smollm2",
    ])
    server.url = f"http://127.0.0.1:{port}"
    kit.until("llama-server healthy", lambda: httpx.get(server.url + "/health", timeout=5).status_code == 200)
    yield server
    server.stop()


def test_both_nodes_answer_with_logprobs_and_usage(mesh, llama):
    mesh.first("n1", more=["--device", llama.url])
    mesh.join("n2")
    mesh.whole(2)
    name, _ = kit.until("a model", lambda: next((m for m in mesh.nodes[1].models() if "smollm2" in m.lower() and ":" not in m), None))
    for node in mesh.nodes:
        more = dict(messages=ASK, model=name, max_tokens=8, logprobs=True, top_logprobs=2)
        body = node.post("/v1/chat/completions", more).json()
        choice = body["choices"][0]
        assert choice["message"]["content"].strip()
        assert all(token["logprob"] <= 0 for token in choice["logprobs"]["content"])
        streamed = node.post("/v1/chat/completions", {**more, "stream": True, "stream_options": {"include_usage": True}})
        payloads = kit.events(streamed.text)
        assert payloads[-1] == "[DONE]"
        assert '"completion_tokens"' in payloads[-2]


def test_a_client_that_goes_away_frees_the_slot(mesh, llama):
    node = mesh.first("n1", more=["--device", llama.url])
    name, _ = kit.until("a model", lambda: next((m for m in node.models() if "smollm2" in m.lower() and ":" not in m), None))
    body = {"model": name, "messages": ASK, "max_tokens": 3000, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", node.url + "/v1/chat/completions", headers=node.auth(), json=body, timeout=60) as answer:
        next(answer.iter_lines())

    def idle():
        return not any(slot["is_processing"] for slot in httpx.get(llama.url + "/slots", timeout=5).json())
    kit.until("all slots idle", idle, within_s=10)
