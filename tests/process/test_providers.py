"""Providers end to end: reached when asked for, never by what must stay, and never a key in any text."""

import os
import pathlib

import pytest

import kit
from kit import PROVIDER_KEY as KEY, Provider


@pytest.fixture
def cloud(tmp_path):
    kit_needed = [kit.SHOAL, kit.LOADTEST]
    if not all(path and os.access(path, os.X_OK) for path in kit_needed):
        pytest.skip("shoal or shoal-loadtest is missing: set SHOAL_BIN and SHOAL_LOADTEST_BIN")
    stubs = {"own": Provider(tmp_path / "own", "openai", "gpt-stub"),
             "goo": Provider(tmp_path / "goo", "gemini", "gemini-stub"),
             "ant": Provider(tmp_path / "ant", "anthropic", "claude-stub"),
             "az": Provider(tmp_path / "az", "azure", "deployed")}
    stubs["old"] = stubs["az"]
    stubs["res"] = stubs["own"]
    (tmp_path / "key").write_text(KEY + "\n")
    (tmp_path / "shoal.toml").write_text(f'''version = 1
[limits]
first_byte_s = 2
between_chunks_s = 2
[[providers]]
name = "own"
base_url = "{stubs["own"].url}/v1"
key_file = "{tmp_path}/key"
models = ["gpt-stub"]
[[providers]]
name = "goo"
kind = "gemini"
base_url = "{stubs["goo"].url}"
key_file = "{tmp_path}/key"
models = ["gemini-stub"]
[[providers]]
name = "ant"
kind = "anthropic"
base_url = "{stubs["ant"].url}"
key_file = "{tmp_path}/key"
models = ["claude-stub"]
[[providers]]
name = "az"
kind = "azure"
base_url = "{stubs["az"].url}"
key_file = "{tmp_path}/key"
models = ["deployed"]
[[providers]]
name = "old"
kind = "azure"
api_version = "2024-10-21"
base_url = "{stubs["az"].url}"
key_file = "{tmp_path}/key"
models = ["deployed"]
[[providers]]
name = "res"
api = "responses"
base_url = "{stubs["own"].url}/v1"
key_file = "{tmp_path}/key"
models = ["gpt-stub"]
[[prices]]
provider = "own"
model = "gpt-stub"
input = 1.0
output = 2.0
vision = false
[[prices]]
provider = "ant"
model = "claude-stub"
input = 1.0
output = 2.0
vision = true
[[prices]]
provider = "goo"
model = "gemini-stub"
input = 1.0
output = 2.0
''')
    node = kit.Node(tmp_path / "n1", "n1", ["up", "--config", tmp_path / "shoal.toml"])
    node.ready()
    node.stubs = stubs
    yield node
    for process in {node, *stubs.values()}:
        process.stop()


def spent(node, name):
    listed = node.get("/shoal/v1/providers").json()["providers"]
    return next(provider["spent_usd"] for provider in listed if provider["name"] == name)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("provider, model", [
    ("own", "own/gpt-stub"), ("goo", "goo/gemini-stub"), ("ant", "ant/claude-stub"), ("az", "az/deployed"),
    ("old", "old/deployed"), ("res", "res/gpt-stub")])
def test_a_named_providers_model_answers(cloud, provider, model, stream):
    answer = cloud.chat(model, "say [[stub n=5 tag=t]]", stream=stream, max_tokens=50)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-shoal-egress"] == provider
    assert answer.headers["x-shoal-route-reason"] == "pinned_provider"
    assert f'"egress":"{provider}"' in answer.text and '"target":"cloud"' in answer.text
    assert len(cloud.stubs[provider].tagged("t")) == 1
    record = cloud.get(f"/shoal/v1/requests/{answer.headers['x-request-id']}").json()
    assert record["egress"] == provider and record["cost_usd"] > 0
    kit.until("the purse settled", lambda: abs(spent(cloud, provider) - record["cost_usd"]) < 1e-9)


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}
CALLED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in two towns?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": f"call:{i}", "type": "function", "function": {"name": "weather", "arguments": "{}"}} for i in (1, 2)]},
    {"role": "tool", "tool_call_id": "call:1", "content": "rain"},
    {"role": "tool", "tool_call_id": "call:2", "content": "sun"},
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["ant/claude-stub", "az/deployed", "old/deployed", "res/gpt-stub"])
def test_tools_and_their_results_cross_every_dialect(cloud, model, stream):
    """The stub of each vendor refuses what the vendor refuses."""
    def ask(messages, **more):
        body = {"model": model, "messages": messages, "stream": stream, "max_tokens": 99, "tools": [TOOL], **more}
        answer = cloud.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        if not stream:
            choice = answer.json()["choices"][0]
            return choice["message"].get("tool_calls"), choice["message"]["content"], choice["finish_reason"]
        calls, text, reason = [], "", None
        for chunk in map(kit.json.loads, kit.events(answer.text)[:-1]):
            for choice in chunk["choices"]:
                reason = choice["finish_reason"] or reason
                text += choice["delta"].get("content") or ""
                for call in choice["delta"].get("tool_calls") or []:
                    if call["index"] == len(calls):
                        calls.append(call)
                    else:
                        calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        return calls, text, reason
    calls, _, reason = ask([{"role": "user", "content": "Weather?"}], tool_choice="required", parallel_tool_calls=False)
    assert reason == "tool_calls" and calls[0]["id"]
    assert (calls[0]["function"]["name"], calls[0]["function"]["arguments"]) == ("weather", '{"city":"stub"}')
    calls, text, reason = ask(CALLED)
    assert not calls and text.startswith("w0000") and reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_is_kept_by_anthropic_too(cloud, stream):
    """This model is not known to be held to schemas by its API: a tool's arguments are the answer."""
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {
        "type": "object", "properties": {"grade": {"type": "integer"}}}}}
    answer = cloud.chat("ant/claude-stub", "How good?", stream=stream, max_tokens=99, response_format=form)
    parts = [kit.json.loads(part) for part in kit.events(answer.text)[:-1]] if stream else [answer.json()]
    choices = [choice for part in parts for choice in part["choices"]]
    parts = [choice.get("delta") or choice.get("message") or {} for choice in choices]
    said = "".join(part.get("content") or "" for part in parts)
    assert kit.json.loads(said) == {"grade": 1} and choices[-1]["finish_reason"] == "stop", answer.text


def test_what_a_model_cannot_is_known_before_it_is_asked(cloud):
    picture = [{"type": "text", "text": "What is it?"},
               {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}]
    body = {"model": "own/gpt-stub", "messages": [{"role": "user", "content": picture}], "max_tokens": 9}
    before = cloud.stubs["own"].log()["connections"]
    refused = cloud.post("/v1/chat/completions", body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported")
    assert refused.headers["x-shoal-egress"] == "none" and cloud.stubs["own"].log()["connections"] == before
    body["model"] = "ant/claude-stub"
    assert cloud.post("/v1/chat/completions", body).status_code == 200
    sound = [{"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}}]
    body["messages"] = [{"role": "user", "content": sound}]
    assert cloud.post("/v1/chat/completions", body).json()["error"]["code"] == "unsupported"


def test_two_routers_that_are_each_others_provider_do_not_go_in_circles(tmp_path):
    """Each has the other's free choice as its only model, so each sends on what it is sent."""
    ports = [kit.free_port() for _ in range(2)]
    nodes = []
    for i, other in ((0, 1), (1, 0)):
        config = tmp_path / f"loop{i}.toml"
        config.write_text(f"""version = 1
[[providers]]
name = "other"
base_url = "http://127.0.0.1:{ports[other]}/v1"
models = ["auto"]
""")
        nodes.append(kit.Node(tmp_path / f"r{i}", f"r{i}", ["up", "--config", config], port=ports[i], more=["--no-auth"],
                              key="unused"))
    try:
        for node in nodes:
            node.ready()
        answer = nodes[0].chat("auto", "round and round", max_tokens=9)
        assert (answer.status_code, answer.json()["error"]["code"]) == (508, "too_many_hops"), answer.text
        told = [node.get("/shoal/v1/status").json()["requests"]["accepted"] for node in nodes]
        assert told == [2, 2]
    finally:
        for node in nodes:
            node.stop()


def test_mode_cloud_goes_out_and_mode_local_never_does(cloud):
    assert cloud.chat("auto", metadata={"mode": "cloud"}, max_tokens=20).headers["x-shoal-egress"] in cloud.stubs
    before = {name: stub.log()["connections"] for name, stub in cloud.stubs.items()}
    kept = [dict(metadata={"mode": "local"}), dict(metadata={"data_class": "restricted"}),
            dict(metadata={"mode": "cloud", "data_class": "restricted"})]
    for more in kept:
        for model in ("auto", "auto:local", "own/gpt-stub", "goo/gemini-stub"):
            if model == "auto:local" and more["metadata"].get("mode") == "cloud":
                continue
            for stream in (False, True):
                answer = cloud.chat(model, "secret", stream=stream, **more)
                assert answer.status_code in (403, 503), answer.text
                assert answer.headers["x-shoal-egress"] == "none"
    assert {name: stub.log()["connections"] for name, stub in cloud.stubs.items()} == before
    answer = cloud.chat("auto", metadata={"mode": "local"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_local_capacity")


def record(node, answer):
    """The request's record once it has ended."""
    told, _ = kit.until("the end recorded", lambda: (r := node.get(
        f"/shoal/v1/requests/{answer.headers['x-request-id']}").json())["outcome"] != "in progress" and r)
    return told


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault, status, code", [
    ("err=429 retry_after=7", 429, None), ("err=500", 502, None), ("err=503", 503, None),
    ("hang=0", 504, "upstream_timeout"), ("drop=1", 502, None), ("html=1", 502, "upstream_error"),
])
@pytest.mark.parametrize("model", ["own/gpt-stub", "goo/gemini-stub", "ant/claude-stub"])
def test_a_providers_fault_before_the_first_byte_is_a_clear_error(cloud, model, fault, status, code, stream):
    provider = model.split("/")[0]
    answer = cloud.chat(model, f"[[stub {fault} tag=t]]", stream=stream, max_tokens=20)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["code"] == (code or answer.json()["error"]["code"]) != ""
    assert answer.headers["x-shoal-egress"] == provider
    if "retry_after" in fault:
        assert answer.headers["retry-after"] == "7"
    told = record(cloud, answer)
    assert (told["outcome"], told["status"], told["egress"]) == ("failed", status, provider)
    assert told["attempts"] == len(cloud.stubs[provider].tagged("t")) == 1
    others = [stub for name, stub in cloud.stubs.items() if stub is not cloud.stubs[provider]]
    assert not any(other.tagged("t") for other in others), "who names a model of a provider is not sent to another"


@pytest.mark.parametrize("fault", ["cut=3", "hang=3", "inband=3", "garbage=1"])
@pytest.mark.parametrize("model", ["own/gpt-stub", "goo/gemini-stub", "ant/claude-stub"])
def test_a_providers_fault_after_the_first_byte_is_told_in_the_stream(cloud, model, fault):
    provider = model.split("/")[0]
    answer = cloud.chat(model, f"[[stub {fault} n=9 tag=t]]", stream=True, max_tokens=20)
    assert (answer.status_code, answer.headers["x-shoal-egress"]) == (200, provider)
    parts = kit.events(answer.text)
    assert '"content":"w0000' in answer.text.replace(" ", ""), answer.text
    assert parts[-1] != "[DONE]" and '"finish_reason":"stop"' not in answer.text, "never a clean end"
    assert kit.json.loads(parts[-1])["error"]["code"] == "upstream_interrupted", answer.text
    told = record(cloud, answer)
    assert (told["outcome"], told["error"], told["attempts"]) == ("failed", "upstream_interrupted", 1)
    assert len(cloud.stubs[provider].tagged("t")) == 1, "what was begun is not asked again"


@pytest.mark.parametrize("fault", ["cut=3", "garbage=1"])
@pytest.mark.parametrize("model", ["own/gpt-stub", "goo/gemini-stub", "ant/claude-stub"])
def test_a_whole_answer_that_breaks_in_the_middle_is_no_answer(cloud, model, fault):
    answer = cloud.chat(model, f"[[stub {fault} n=9 tag=t]]", max_tokens=20)
    assert answer.status_code == 502 and "w0000" not in answer.text, answer.text
    assert record(cloud, answer)["outcome"] == "failed"


def test_mode_local_with_every_device_dead_goes_nowhere(cloud, tmp_path):
    """No device answers any more, the providers are well: whoever asks for local gets 503 and nobody outside hears of it."""
    devices = [kit.Stub(tmp_path / f"device{i}") for i in (1, 2)]
    config = tmp_path / "shoal.toml"
    node = kit.Node(tmp_path / "n2", "n2", ["up", "--config", config], more=[
        word for device in devices for word in ("--device", device.url)])
    try:
        node.ready()
        kit.until("the devices' model listed", lambda: "stub-a" in node.models())
        assert node.chat("auto", metadata={"mode": "local"}).headers["x-shoal-egress"] == "none"
        before = {name: stub.log()["connections"] for name, stub in cloud.stubs.items()}
        for device in devices:
            device.kill()
        asked = [(model, stream) for model in ("auto", "auto:local", "stub-a") for stream in (False, True)]

        def ask(model, stream):
            answer = node.chat(model, "secret", stream=stream, metadata={"mode": "local", "confidence_threshold": 0.99})
            assert answer.headers["x-shoal-egress"] == "none"
            assert answer.status_code >= 500, answer.text
            return answer.status_code, answer.json()["error"]["code"]
        # While the deaths are not known yet, the attempts themselves fail; what is asked for stays the same.
        for model, stream in asked:
            assert ask(model, stream)[0] in (502, 503)
        gone = (503, "no_local_capacity")
        kit.until("the deaths known", lambda: ask("auto", False) == gone)
        for model, stream in asked:
            assert ask(model, stream) == gone, model
        assert {name: stub.log()["connections"] for name, stub in cloud.stubs.items()} == before
        # The way out was open all the time.
        assert node.chat("auto", metadata={"mode": "cloud"}, max_tokens=9).headers["x-shoal-egress"] in cloud.stubs
    finally:
        node.stop()
        for device in devices:
            device.stop()


def test_the_command_adds_lists_and_removes_and_tells_no_key(cloud, tmp_path):
    def shoal(*words, stdin=None):
        done = kit.subprocess.run([kit.SHOAL, "cloud", *words, "--data-dir", cloud.data_dir], input=stdin, text=True,
                                  capture_output=True, env=kit.clean_env(), timeout=60)
        return done.returncode, done.stdout + done.stderr

    key = KEY + "-added"
    code, text = shoal("add", "mine", "--base-url", cloud.stubs["own"].url, "--key-file", "-", "--model", "gpt-stub",
                       "--budget", "0usd/day", stdin=key)
    assert code == 0 and key not in text, text
    code, text = shoal("ls")
    assert code == 0 and "mine" in text and "0usd/day" in text and KEY not in text
    answer = cloud.chat("mine/gpt-stub", "hello")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
    assert answer.headers["x-shoal-egress"] == "none"
    saved = cloud.data_dir / "providers.json"
    assert saved.stat().st_mode & 0o777 == 0o600
    code, text = shoal("add", "hosted", "--kind", "azure", "--api-version", "2024-10-21", "--key-file", "-",
                       "--base-url", cloud.stubs["az"].url, "--model", "deployed", stdin=KEY)
    assert code == 0 and "azure" in shoal("ls")[1], text
    assert cloud.chat("hosted/deployed", "hello there", max_tokens=9).headers["x-shoal-egress"] == "hosted"
    code, text = shoal("add", "bad", "--kind", "gemini", "--api", "responses", "--base-url", "https://x.example")
    assert code != 0 and "responses" in text, text
    assert shoal("rm", "mine")[0] == 0 and "mine" not in shoal("ls")[1]
    assert key not in saved.read_text()


def test_a_key_shows_in_no_text(cloud):
    for model in ("own/gpt-stub", "goo/gemini-stub", "ant/claude-stub", "az/deployed", "res/gpt-stub"):
        for marker in ("n=3", "err=401", "err=500", "garbage=1"):
            answer = cloud.chat(model, f"[[stub {marker}]]", max_tokens=9)
            assert KEY not in answer.text + str(answer.headers)
    for path in ("status", "models", "providers", "requests", "router"):
        assert KEY not in cloud.get(f"/shoal/v1/{path}").text
    metrics = cloud.get("/metrics").text
    assert KEY not in metrics and 'shoal_egress_total{provider="own",class="internal"}' in metrics
    assert KEY not in cloud.text() and "egress" in cloud.text()
    cloud.stop()
    for file in pathlib.Path(cloud.data_dir).rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
