"""Recordings through a mesh, with the unchanged `openai` package: to a device, to a provider, and by way of another node.

The stub reads forms with a library that the node does not use, and says in its transcript which bytes arrived.
"""

import base64

import httpx
import openai
import pytest

import kit

# A recording need not sound like anything; what would end a badly read form is in it.
SOUND = bytes(range(256)) * 40 + b"\r\n--boundary\r\n\r\n--\r\n"
REPEATS = 64


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return value


def transcript(media="audio/mpeg", name="talk.mp3"):
    return f"heard {len(SOUND)} bytes {fnv1a(SOUND):016x} of {name} as {media}"


def recording(text, fmt="mp3", voice="alloy"):
    return f"{fmt}|{voice}|{text * REPEATS}".encode()


class Ears(kit.Stub):
    """A server for recordings, as a device or a provider."""

    def __init__(self, folder, role, models, more=()):
        kit.Process.__init__(self, folder, [kit.LOADTEST, "stub", role, "--kind", "openai", "--slots", 64, *more,
                                            *(word for model in models for word in ("--model", model))])
        found, _ = kit.until("stub listening", lambda: kit.re.search(r"^listening (http://\S+)$", self.text(), kit.re.M))
        self.url = found.group(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """n1 has a provider's key and a linked device; n2 reaches both through n1 alone."""
    if not (kit.SHOAL and kit.LOADTEST):
        pytest.skip("shoal or shoal-loadtest is missing: set SHOAL_BIN and SHOAL_LOADTEST_BIN")
    folder = tmp_path_factory.mktemp("audio")
    mesh = kit.Mesh(folder)
    provider = Ears(folder / "provider", "provider", ["whisper-1", "gpt-4o-transcribe", "tts-1", "gpt-x"],
                    ["--key", kit.PROVIDER_KEY])
    device = Ears(folder / "ears", "device", ["whisper-small", "local-transcribe", "kokoro-82m", "chatty"])
    mesh.others += [provider, device]
    (folder / "key").write_text(kit.PROVIDER_KEY)
    (folder / "shoal.toml").write_text(f'''version = 1
[limits]
body_bytes = 1048576
first_byte_s = 2
between_chunks_s = 2
[[aliases]]
name = "dictation"
model = "own/whisper-1"
[[providers]]
name = "own"
base_url = "{provider.url}/v1"
key_file = "{folder}/key"
models = ["whisper-1", "gpt-4o-transcribe", "tts-1", "gpt-x"]
[[prices]]
provider = "own"
model = "whisper-1"
input = 0.0
output = 0.0
minute = 0.006
[[prices]]
provider = "own"
model = "gpt-4o-transcribe"
input = 6.0
output = 10.0
minute = 0.006
[[prices]]
provider = "own"
model = "tts-1"
input = 0.0
output = 0.0
million_chars = 15.0
[[prices]]
provider = "own"
model = "gpt-x"
input = 1.0
output = 1.0
''')
    try:
        mesh.first("n1", more=["--config", folder / "shoal.toml", "--device", device.url])
        mesh.join("n2")
        mesh.whole(2)
        mesh.everywhere("whisper-small")
        mesh.everywhere("own/tts-1")
        mesh.provider, mesh.device_stub = provider, device
        yield mesh
    finally:
        mesh.close()


@pytest.fixture(params=["n1", "n2"])
def node(request, world):
    return next(node for node in world.nodes if node.name == request.param)


@pytest.fixture
def client(node):
    with openai.OpenAI(base_url=node.url + "/v1", api_key=node.key, max_retries=0, timeout=60) as client:
        yield client


def last(stub):
    return stub.log()["requests"][-1]


def record(node, headers):
    told, _ = kit.until("the end recorded", lambda: (r := node.get(
        f"/shoal/v1/requests/{headers['x-request-id']}").json())["outcome"] != "in progress" and r)
    return told


def form(model=None, file=True, **more):
    fields = {**({"model": model} if model else {}), **more}
    return {"data": fields, "files": {"file": ("talk.mp3", SOUND, "audio/mpeg")} if file else {"x": ("", b"")}}


def ask(node, path="transcriptions", headers=None, **parts):
    return httpx.post(f"{node.url}/v1/audio/{path}", headers={**node.auth(), **(headers or {})}, timeout=60, **parts)


@pytest.mark.parametrize("model, egress", [("whisper-small", "none"), ("own/whisper-1", "own")])
def test_a_recording_is_written_down(client, node, world, model, egress):
    raw = client.audio.transcriptions.with_raw_response.create(
        model=model, file=("talk.mp3", SOUND, "audio/mpeg"), prompt="otters", language="en", temperature=0.2)
    assert raw.parse().text == transcript()
    stub = world.provider if egress == "own" else world.device_stub
    seen = last(stub)
    assert (seen["path"], seen["model"]) == ("/v1/audio/transcriptions", model.removeprefix("own/"))
    assert {"file", "language", "model", "prompt", "temperature"} <= set(seen["fields"])
    assert raw.headers["x-shoal-egress"] == egress and raw.headers["x-shoal-model"] == model
    told = record(node, raw.headers)
    assert (told["outcome"], told["path"], told["egress"]) == ("completed", "/v1/audio/transcriptions", egress)
    # The answer says how long the recording is; the stub takes a thousand bytes for a second.
    expected = 0.006 * len(SOUND) / 1000 / 60 if egress == "own" else 0
    assert told["cost_usd"] == pytest.approx(expected, abs=2e-6)


def test_every_form_of_a_transcript_comes_as_it_is(client):
    def heard(**more):
        return client.audio.transcriptions.create(model="whisper-small", file=("talk.mp3", SOUND, "audio/mpeg"), **more)
    assert heard(response_format="text") == transcript() + "\n"
    assert heard(response_format="srt").startswith("1\n00:00:00,000")
    assert heard(response_format="vtt") == f"WEBVTT\n\n00:00.000 --> 00:01.000\n{transcript()}\n\n"
    told = heard(response_format="verbose_json", timestamp_granularities=["word"])
    assert told.text == transcript() and told.duration == pytest.approx(len(SOUND) / 1000)
    english = client.audio.translations.create(model="whisper-small", file=("a.wav", SOUND, "audio/wav"))
    assert english.text == transcript("audio/wav", "a.wav")


@pytest.mark.parametrize("model", ["local-transcribe", "own/gpt-4o-transcribe"])
def test_a_transcript_streams(client, node, model):
    stream = client.audio.transcriptions.create(
        model=model, file=("talk.mp3", SOUND, "audio/mpeg"), stream=True, prompt="[[stub itl=5]]")
    events = list(stream)
    assert "".join(event.delta for event in events[:-1]) == transcript() == events[-1].text
    assert [event.type for event in events[-2:]] == ["transcript.text.delta", "transcript.text.done"]
    told = record(node, stream.response.headers)
    assert (told["prompt_tokens"], told["completion_tokens"]) == (len(SOUND) // 100, 7)
    if model.startswith("own/"):
        assert told["cost_usd"] == pytest.approx((6 * (len(SOUND) // 100) + 10 * 7) / 1e6, abs=2e-6)


@pytest.mark.parametrize("model, egress", [("kokoro-82m", "none"), ("own/tts-1", "own")])
def test_a_text_is_read_aloud(client, node, model, egress):
    text = f"Good morning, {model}."
    with client.audio.speech.with_streaming_response.create(
            model=model, voice="alloy", input=text, response_format="wav", speed=1.25) as answer:
        pieces = list(answer.iter_bytes())
        assert b"".join(pieces) == recording(text, "wav")
        assert answer.headers["content-type"] == "audio/wav"
        assert answer.headers["x-shoal-egress"] == egress
    told = record(node, answer.headers)
    assert (told["outcome"], told["egress"]) == ("completed", egress)
    assert told["cost_usd"] == pytest.approx(15e-6 * len(text) if egress == "own" else 0, abs=2e-6)
    assert client.audio.speech.create(model=model, voice="nova", input=text).content == recording(text, voice="nova")


def test_a_recording_is_passed_on_while_it_is_made(client):
    with client.audio.speech.with_streaming_response.create(
            model="kokoro-82m", voice="alloy", input="slowly [[stub itl=30]] now") as answer:
        assert len(list(answer.iter_bytes())) > 5


@pytest.mark.parametrize("model", ["kokoro-82m", "own/tts-1"])
def test_speech_comes_as_events_too(client, node, model):
    with client.audio.speech.with_streaming_response.create(
            model=model, voice="alloy", input="one two", stream_format="sse") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [kit.json.loads(event) for event in kit.events(answer.read().decode())]
    assert b"".join(base64.b64decode(event["audio"]) for event in events[:-1]) == recording("one two")
    assert events[-1]["type"] == "speech.audio.done" and record(node, answer.headers)["completion_tokens"] == 101


def test_auto_finds_a_model_of_the_craft_and_chats_find_none_of_them(node, world):
    answer = ask(node, **form("auto:local"))
    assert answer.status_code == 200 and answer.headers["x-shoal-model"] in ("whisper-small", "local-transcribe")
    spoken = node.post("/v1/audio/speech", {"model": "auto:local", "input": "hello", "voice": "alloy"})
    assert spoken.status_code == 200 and spoken.headers["x-shoal-model"] == "kokoro-82m"
    assert node.chat("auto:local", f"who chats at {node.name}?").headers["x-shoal-model"] == "chatty"
    device = next(iter(world.nodes[0].devices()))
    pinned = ask(node, **form(f"device:{device}/whisper-small"))
    assert pinned.status_code == 200 and pinned.headers["x-shoal-route-reason"] == "pinned_device", pinned.text


def test_an_alias_is_rewritten_and_nothing_else(world):
    node = world.nodes[0]
    answer = ask(node, **form("dictation", temperature="0.5", **{"metadata[data_class]": "public"}))
    assert answer.json()["text"] == transcript(), answer.text
    assert (last(world.provider)["model"], last(world.provider)["fields"]) == (
        "whisper-1", ["file", "model", "temperature"])


@pytest.mark.parametrize("said", [
    dict(headers={"x-shoal-data-class": "restricted"}), dict(form={"metadata[data_class]": "restricted"}),
    dict(form={"metadata": '{"mode": "local"}'}),
])
def test_what_must_stay_reaches_no_provider(node, world, said):
    before = world.provider.log()["counts"]["requests"]
    more = said.get("form", {})
    for model in ("own/whisper-1", "auto"):
        answer = ask(node, headers=said.get("headers"), **form(model, **more))
        assert answer.headers["x-shoal-egress"] == "none"
        assert answer.status_code == (200 if model == "auto" else answer.status_code)
        assert model == "auto" or answer.status_code in (403, 503), answer.text
    body = {"model": "own/tts-1", "input": "secret", "voice": "alloy", "metadata": {"data_class": "restricted"}}
    assert node.post("/v1/audio/speech", body).status_code == 403
    assert world.provider.log()["counts"]["requests"] == before


@pytest.mark.parametrize("parts, status, param", [
    (form("whisper-small", file=False), 400, "file"), (form(None), 400, "model"),
    (form("nobody-has-it"), 404, "model"), (form("chatty"), 400, None),
    (form("whisper-small", stream="maybe"), 400, "stream"),
    (dict(json={"model": "whisper-small"}), 415, None),
    (dict(data={"model": "whisper-small"}, files={"file": ("big.wav", bytes(1 << 21), "audio/wav")}), 413, None),
])
def test_a_mistake_is_told_in_openais_shape(world, parts, status, param):
    answer = ask(world.nodes[0], **parts)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"] and error["code"] and error["param"] == param
    assert answer.headers["x-shoal-egress"] == "none" or status == 413


def test_the_package_reads_our_errors(client):
    with pytest.raises(openai.NotFoundError, match="nobody-has-it"):
        client.audio.speech.create(model="nobody-has-it", voice="alloy", input="hi")
    with pytest.raises(openai.BadRequestError, match="speech"):
        client.audio.speech.create(model="chatty", voice="alloy", input="hi")
    with pytest.raises(openai.BadRequestError, match="response_format"):
        client.audio.speech.create(model="kokoro-82m", voice="alloy", input="hi", response_format="ogg9")


@pytest.mark.parametrize("fault, status", [("err=500", 502), ("err=429", 429), ("drop=1", 502), ("hang=0", 504)])
def test_a_fault_before_the_first_byte_is_a_clear_error(node, fault, status):
    answer = ask(node, **form("own/whisper-1", prompt=f"[[stub {fault}]]"))
    assert answer.status_code == status and answer.json()["error"]["code"], answer.text
    assert answer.headers["x-shoal-egress"] == "own"


def test_what_breaks_off_never_looks_whole(client, node):
    # The package brings its own HTTP client, whose errors have no name here.
    with pytest.raises(Exception, match="incomplete chunked read"):
        with client.audio.speech.with_streaming_response.create(
                model="kokoro-82m", voice="alloy", input="[[stub cut=9 itl=2]]") as answer:
            list(answer.iter_bytes())
    assert record(node, answer.headers)["outcome"] == "failed"
    with pytest.raises(openai.APIError, match="broke off|was lost|cut off"):
        list(client.audio.transcriptions.create(model="local-transcribe", file=("talk.mp3", SOUND, "audio/mpeg"),
                                                stream=True, prompt="[[stub cut=3 itl=2]]"))


def test_a_form_sent_twice_runs_once_and_one_that_broke_off_anew(node):
    # A client draws a new boundary for each form.
    replay = "x-shoal-idempotent-replay"
    again = [ask(node, headers={"idempotency-key": "whole"}, **form("local-transcribe")) for _ in range(2)]
    assert [answer.headers.get(replay) for answer in again] == [None, "true"] and again[0].content == again[1].content
    broken = form("local-transcribe", stream="true", prompt="[[stub cut=3 itl=2]]")
    again = [ask(node, headers={"idempotency-key": "broken"}, **broken) for _ in range(2)]
    assert all("upstream_interrupted" in answer.text for answer in again)
    assert [answer.headers.get(replay) for answer in again] == [None, None]


def test_a_client_that_goes_away_stops_the_work(node, world):
    with httpx.stream("POST", f"{node.url}/v1/audio/speech", headers=node.auth(), timeout=60, json={
            "model": "kokoro-82m", "voice": "alloy",
            "input": f"[[stub itl=200 tag=gone-{node.name}]]"}) as answer:
        next(answer.iter_raw())
    kit.until("the stub sees it", lambda: [
        entry["end"] for entry in world.device_stub.tagged(f"gone-{node.name}")] == ["client_gone"])


def test_another_host_takes_over_before_the_first_byte(tmp_path):
    ill = Ears(tmp_path / "ill", "device", ["whisper-x", "tts-x"], ["--fault", "err=500"])
    well = Ears(tmp_path / "well", "device", ["whisper-x", "tts-x"])
    mesh = kit.Mesh(tmp_path)
    mesh.others += [ill, well]
    try:
        node = mesh.first("n1")
        for name, stub in (("ill", ill), ("well", well)):
            mesh.device(name, [stub.url])
        kit.until("both devices", lambda: {"ill", "well"} <= node.devices())
        mesh.everywhere("whisper-x")
        for turn in range(6):
            answer = ask(node, **form("whisper-x", prompt=f"turn {turn}"))
            assert answer.json()["text"] == transcript() and answer.headers["x-shoal-upstream"] == "well"
            spoken = node.post("/v1/audio/speech", {"model": "tts-x", "input": f"turn {turn}", "voice": "alloy"})
            assert spoken.content == recording(f"turn {turn}")
        assert ill.log()["counts"]["refused"] > 0
    finally:
        mesh.close()


def test_a_purse_that_does_not_cover_a_recording_sends_nothing(world, tmp_path):
    (tmp_path / "shoal.toml").write_text(f'''version = 1
[[providers]]
name = "poor"
base_url = "{world.provider.url}/v1"
key_file = "{world.folder}/key"
models = ["whisper-1", "mystery-asr"]
budget = "0.01usd/day"
[[prices]]
provider = "poor"
model = "whisper-1"
input = 0.0
output = 0.0
minute = 0.006
''')
    node = kit.Node(tmp_path / "n", "n", ["up", "--config", tmp_path / "shoal.toml"])
    try:
        node.ready()
        before = world.provider.log()["counts"]["requests"]
        short = {"model": "poor/whisper-1"}, {"file": ("a.mp3", SOUND, "audio/mpeg")}
        long = {"model": "poor/whisper-1"}, {"file": ("a.mp3", bytes(1 << 19), "audio/mpeg")}
        unknown = {"model": "poor/mystery-asr"}, {"file": ("a.mp3", SOUND, "audio/mpeg")}
        for data, files in (long, unknown):
            answer = ask(node, data=data, files=files)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota"), answer.text
        assert world.provider.log()["counts"]["requests"] == before
        assert ask(node, data=short[0], files=short[1]).status_code == 200
    finally:
        node.stop()
