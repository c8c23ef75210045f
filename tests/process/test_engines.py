"""Engines beside a node, each spoken to in its own words, and what they say of themselves."""

import httpx
import pytest

import kit


@pytest.fixture
def node_with(tmp_path):
    """Starts a node with one stub of a kind; returns both."""
    started = []

    def start(kind, *more):
        stub = kit.Process(tmp_path / "stub", [
            kit.LOADTEST, "stub", "device", "--kind", kind, "--model", "m", "--context", "65536", *more])
        started.append(stub)
        found, _ = kit.until("stub listening", lambda: kit.re.search(r"^listening (http://\S+)$", stub.text(), kit.re.M))
        node = kit.Node(tmp_path / "node", "n1", ["up"], more=["--device", found.group(1)])
        started.append(node)
        node.ready()
        kit.until("the model is listed", lambda: "m" in node.models())
        return node, found.group(1)

    yield start
    for process in reversed(started):
        process.stop()


def seen(url):
    return httpx.get(f"{url}/stub/log", timeout=10).json()["requests"][-1]


def device(node):
    return node.get("/shoal/v1/devices").json()["devices"][0]


def test_ollama_is_asked_in_its_own_words_and_given_a_window_that_holds_the_prompt(node_with):
    node, url = node_with("ollama")
    answer = node.chat("m", "Tell me of otters. [[stub n=5]]", max_tokens=50).json()
    choice = answer["choices"][0]
    assert len(choice["message"]["content"].split()) == 5 and choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 5
    entry = seen(url)
    assert entry["path"] == "/api/chat" and "options.num_predict" in entry["fields"]
    assert "options.num_ctx" not in entry["fields"], "a short prompt leaves the server its own window"
    assert node.chat("m", "word " * 9000 + "[[stub n=5]]").status_code == 200
    assert "options.num_ctx" in seen(url)["fields"]


def test_an_ollama_stream_ends_as_openais_does(node_with):
    node, url = node_with("ollama")
    body = {"model": "m", "stream": True, "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": "Rain in Oslo? [[stub tool=1]]"}],
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": {
                "type": "object", "properties": {"city": {"type": "string"}}}}}]}
    lines = [line for line in node.post("/v1/chat/completions", body).text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    chunks = [kit.json.loads(line[6:]) for line in lines[:-1]]
    calls = [call for chunk in chunks for choice in chunk["choices"] for call in choice["delta"].get("tool_calls", [])]
    assert [call["function"] for call in calls] == [{"name": "weather", "arguments": '{"city":"stub"}'}]
    assert calls[0]["id"] and calls[0]["index"] == 0
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "tool_calls"
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    assert seen(url)["path"] == "/api/chat"


def test_what_ollamas_own_api_cannot_say_goes_by_the_other(node_with):
    node, url = node_with("ollama")
    answer = node.chat("m", "Two birds, please. [[stub n=3]]", n=2).json()
    assert len(answer["choices"]) == 2
    assert seen(url)["path"] == "/v1/chat/completions"


def test_requests_that_reach_an_engine_past_the_mesh_are_its_load_too(node_with):
    node, url = node_with("vllm", "--slots", "2")
    assert (device(node)["in_flight"], device(node)["queued"]) == (0, 0)
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "[[stub n=500 itl=1000]]"}]}
    with httpx.Client(timeout=10) as client:
        streams = [client.stream("POST", f"{url}/v1/chat/completions", json=body) for _ in range(2)]
        for stream in streams:
            stream.__enter__()
        kit.until("two others' requests are seen", lambda: device(node)["in_flight"] == 2)
        assert device(node)["kv_percent"] == 100
        for stream in streams:
            stream.__exit__(None, None, None)
    kit.until("they are gone", lambda: device(node)["in_flight"] == 0)
