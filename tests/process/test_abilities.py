"""What engines say that their models can and cannot do, asked for by the vendors' unchanged clients."""

import uuid

import httpx
import ollama
import openai
import pytest

import kit

PICTURE = [{"type": "text", "text": "What is it?"},
           {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}]


@pytest.fixture
def node_with(tmp_path):
    """Starts a node with one stub of a kind; returns both."""
    started = []

    def start(kind, model="m", config=None):
        stub = kit.Process(tmp_path / "stub", [kit.LOADTEST, "stub", "device", "--kind", kind, "--model", model,
                                               "--slots", "2"])
        started.append(stub)
        found, _ = kit.until("stub listening", lambda: kit.re.search(r"^listening (http://\S+)$", stub.text(), kit.re.M))
        more = ["--device", found.group(1)]
        if config:
            (tmp_path / "shoal.toml").write_text("version = 1\n" + config)
            more += ["--config", tmp_path / "shoal.toml"]
        node = kit.Node(tmp_path / "node", "n1", ["up"], more=more)
        started.append(node)
        node.ready()
        kit.until("the model is listed", lambda: model in node.models())
        return node, found.group(1)

    yield start
    for process in reversed(started):
        process.stop()


def client(node):
    return openai.OpenAI(base_url=node.url + "/v1", api_key=node.key, max_retries=0, timeout=60)


def log(url):
    return httpx.get(f"{url}/stub/log", timeout=10).json()


def told(node):
    return node.get("/shoal/v1/devices").json()["devices"][0]["models"][0]


def ask(script=""):
    # Equal prompts in a row would count as the same question asked again.
    return [{"role": "user", "content": f"{uuid.uuid4()} [[stub {script}]]"}]


def test_sglang_is_known_by_its_words_and_its_load_is_read(node_with):
    node, url = node_with("sglang")
    model = told(node)
    assert (model["engine"], model["context_length"]) == ("sglang", 8192)
    assert [model[can] for can in ("tools", "logprobs", "schema", "vision", "audio", "embeddings", "speech")] == [
        True, True, True, False, False, False, None]
    body = {"model": "m", "stream": True, "messages": ask("n=500 itl=1000")}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=10):
        device = lambda: node.get("/shoal/v1/devices").json()["devices"][0]  # noqa: E731
        kit.until("another's request is seen", lambda: device()["in_flight"] == 1)
        assert device()["kv_percent"] == 50
    answer = client(node).chat.completions.create(model="m", messages=ask("n=4"), logprobs=True, top_logprobs=2)
    assert len(answer.choices[0].message.content.split()) == 4 == len(answer.choices[0].logprobs.content)


@pytest.mark.parametrize("kind", ["sglang", "ollama"])
def test_what_a_device_says_it_lacks_is_known_before_it_is_asked(node_with, kind):
    node, url = node_with(kind)
    assert told(node)["vision"] is False
    before = log(url)["counts"]["requests"]
    for model in ("m", "auto"):
        body = {"model": model, "messages": [{"role": "user", "content": PICTURE}], "max_tokens": 9}
        refused = node.post("/v1/chat/completions", body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported"), refused.text
        assert "images" in refused.json()["error"]["message"]
    if kind == "sglang":
        with pytest.raises(openai.BadRequestError, match="embeddings"):
            client(node).embeddings.create(model="m", input="a text")
    assert log(url)["counts"]["requests"] == before


@pytest.mark.parametrize("kind, model", [("sglang", "embed-m"), ("vllm", "m"), ("openai", "bge-m3"),
                                         ("llama.cpp", "m"), ("ollama", "m")])
def test_embeddings_come_as_the_engine_made_them(node_with, kind, model):
    node, url = node_with(kind, model)
    texts = [f"one {kind}", f"two {kind} words"]
    direct = httpx.post(f"{url}/v1/embeddings", json={"model": model, "input": texts}, timeout=10).json()
    expected = [entry["embedding"] for entry in direct["data"]]
    # Unless told otherwise, the package asks for base64 and unpacks it.
    answer = client(node).embeddings.create(model=model, input=texts)
    assert [entry.embedding for entry in answer.data] == expected
    assert answer.usage.prompt_tokens == 5
    assert [e.embedding for e in client(node).embeddings.create(model=model, input=texts, encoding_format="float").data] == expected
    assert len(client(node).embeddings.create(model=model, input="three", dimensions=3).data[0].embedding) == 3
    theirs = ollama.Client(host=node.url, headers=node.auth(), timeout=60).embed(model=model, input=texts)
    assert [list(vector) for vector in theirs.embeddings] == expected


@pytest.mark.parametrize("kind", ["sglang", "vllm", "llama.cpp", "ollama"])
def test_thoughts_are_told_beside_the_answer(node_with, kind):
    node, _ = node_with(kind)
    thought = "hm0 hm1 hm2 "
    whole = client(node).chat.completions.create(model="m", messages=ask("n=2 think=3")).choices[0].message
    assert whole.reasoning_content == thought and len(whole.content.split()) == 2
    parts = [chunk.choices[0].delta for chunk in client(node).chat.completions.create(
        model="m", messages=ask("n=2 think=3"), stream=True) if chunk.choices]
    assert "".join(getattr(part, "reasoning_content", None) or "" for part in parts) == thought
    assert len("".join(part.content or "" for part in parts).split()) == 2
    quiet = client(node).chat.completions.create(model="m", messages=ask("n=2 think=3"), reasoning_effort="none")
    assert not getattr(quiet.choices[0].message, "reasoning_content", None)
    theirs = ollama.Client(host=node.url, headers=node.auth(), timeout=60)
    assert theirs.chat(model="m", messages=ask("n=2 think=3"), think=True).message.thinking == thought
    assert not theirs.chat(model="m", messages=ask("n=2 think=3"), think=False).message.thinking


def test_ollamas_own_words_reach_ollama_and_aliases_are_models_there(node_with):
    node, url = node_with("ollama", config='[[aliases]]\nname = "helper"\nmodel = "m"\n')
    theirs = ollama.Client(host=node.url, headers=node.auth(), timeout=60)
    names = {model.model for model in theirs.list().models}
    assert {"m", "helper", "auto"} <= names
    assert "completion" in theirs.show("helper").capabilities
    for name in ("helper", "helper:latest", "m:latest"):
        answer = theirs.chat(model=name, messages=ask("n=3"), keep_alive="7m")
        assert len(answer.message.content.split()) == 3
        assert log(url)["requests"][-1]["model"] == "m" and "keep_alive" in log(url)["requests"][-1]["fields"]
