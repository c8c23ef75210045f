"""What users of LFO type, unchanged: its variables, its paths, its words, with a phone of either kind behind them."""

import json

import httpx
import pytest

import kit
from conftest import need

TOKEN = "lfo-secret-of-mine"
LONG = "word " * 400


class Served(kit.Process):
    """A stub of any kind."""

    def __init__(self, folder, *more):
        super().__init__(folder, [kit.LOADTEST, "stub", *more])
        found, _ = kit.until("stub listening", lambda: kit.re.search(r"^listening \S*//(\S+):(\d+)$", self.text(), kit.re.M))
        self.host, self.port = found.groups()


class Lfo(kit.Node):
    """`shoal up` with nothing but LFO's variables, and a provider where the test has one."""

    def __init__(self, folder, kind, cloud):
        self.phone = Served(folder / "phone", "device", "--kind", kind)
        self.cloud = Served(folder / "cloud", "provider", "--kind", "openai", "--model", "gpt-4o", "--slots", 8) if cloud else None
        env = kit.clean_env(
            ANDROID_HOST=self.phone.host, ANDROID_PORT=self.phone.port, LFO_AUTH_TOKEN=TOKEN, MAX_LOCAL_TOKENS="200")
        more = []
        if kind == "lfo-tcp":
            # By its port alone a socket is known only at 6000, which a test may not take.
            del env["ANDROID_HOST"], env["ANDROID_PORT"]
            more = ["--device", f"lfo+tcp://{self.phone.host}:{self.phone.port}"]
        if cloud:
            (folder / "shoal.toml").write_text(f'''version = 1
[[providers]]
name = "own"
base_url = "http://{self.cloud.host}:{self.cloud.port}/v1"
models = ["gpt-4o"]
[[prices]]
provider = "own"
model = "gpt-4o"
input = 1.0
output = 2.0
''')
            more += ["--config", folder / "shoal.toml"]
        super().__init__(folder / "n1", "n1", ["up"], key=TOKEN, more=more, env=env)

    def ask(self, prompt="Hello!", stream=False, **more):
        body = {"messages": [{"role": "user", "content": prompt}], "stream": stream, **more}
        answer = self.post("/v1/chat/completions", body)
        assert "shoal_phone" not in answer.text
        return answer

    def close(self):
        for process in (self, self.phone, self.cloud):
            if process:
                process.stop()


def nodes(kind, cloud):
    @pytest.fixture(scope="module", params=kind)
    def node(request, tmp_path_factory):
        need(kit.SHOAL, "shoal", "set SHOAL_BIN")
        need(kit.LOADTEST, "shoal-loadtest", "set SHOAL_LOADTEST_BIN")
        node = Lfo(tmp_path_factory.mktemp("lfo"), request.param, cloud)
        try:
            node.ready()
            kit.until("the phone's model", lambda: any(m.startswith("lfo-local") for m in node.models()))
            yield node
        finally:
            node.close()
    return node


alone = nodes(["lfo-http", "lfo-tcp"], cloud=False)
both = nodes(["lfo-http", "lfo-tcp"], cloud=True)
streamed = pytest.mark.parametrize("stream", [False, True])


def lfo_metadata(answer):
    """LFO's own field, from the body or the chunk that has it."""
    objects = [answer.text] if not answer.headers["content-type"].startswith("text/event-stream") else kit.events(answer.text)
    found = [json.loads(text)["lfo_metadata"] for text in objects if "lfo_metadata" in text]
    assert len(found) == 1, answer.text
    return found[0]


@streamed
@pytest.mark.parametrize("model", [None, "lfo-auto", "auto"])
def test_a_chat_needs_no_model(alone, stream, model):
    answer = alone.ask(stream=stream, **({"model": model} if model else {}))
    assert answer.status_code == 200, answer.text
    told = lfo_metadata(answer)
    assert told == {"confidence": pytest.approx(0.9, abs=0.2), "routing_reason": told["routing_reason"], "local_attempt": True}
    assert told["routing_reason"]
    assert answer.headers["x-shoal-egress"] == "none"


def test_health_is_open_and_the_rest_wants_the_token(alone):
    assert httpx.get(alone.url + "/health", timeout=10).status_code == 200
    for headers in ({}, {"authorization": "Bearer wrong"}):
        assert httpx.post(alone.url + "/v1/chat/completions", headers=headers, json={}, timeout=10).status_code == 401
    assert TOKEN not in alone.text()


def test_without_a_cloud_a_long_prompt_and_mode_local_stay_on_the_phone(alone):
    for more in ({}, {"metadata": {"mode": "local"}}, {"metadata": {"mode": "auto"}}):
        answer = alone.ask(LONG, **more)
        assert answer.status_code == 200, answer.text
    answer = alone.ask(metadata={"mode": "cloud"})
    assert answer.status_code in (403, 503), answer.text


@streamed
@pytest.mark.parametrize("mode, prompt, egress", [
    ("local", "Hello!", "none"), ("local", LONG, "none"), ("cloud", "Hello!", "own"), ("auto", LONG, "own"),
])
def test_mode_and_length_decide_where_it_goes(both, stream, mode, prompt, egress):
    answer = both.ask(prompt, stream=stream, metadata={"mode": mode})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-shoal-egress"] == egress
    assert lfo_metadata(answer)["local_attempt"] is (egress == "none")


@streamed
def test_a_phone_that_asks_for_the_cloud_gets_it(both, stream):
    threshold = {"confidence_threshold": 0.3}
    handed = both.ask("[[stub conf=0.9 handoff=1]]", stream=stream, model="lfo-local-functiongemma", metadata=threshold)
    assert handed.headers["x-shoal-egress"] == "own", handed.text
    assert lfo_metadata(handed)["local_attempt"] is True and '"escalated":true' in handed.text
    kept = both.ask("[[stub conf=0.9]]", stream=stream, model="lfo-local-functiongemma", metadata=threshold)
    assert kept.headers["x-shoal-egress"] == "none", kept.text
    forced = both.ask("[[stub conf=0.9 handoff=1]]", stream=stream, metadata={"mode": "local", **threshold})
    assert forced.headers["x-shoal-egress"] == "none", forced.text
