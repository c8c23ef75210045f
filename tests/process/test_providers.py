"""Providers end to end: reached when asked for, never by what must stay, and never a key in any text."""

import os
import pathlib

import httpx
import pytest

import kit

KEY = "sk-canary-41c7e9d2"


class Provider(kit.Stub):
    def __init__(self, folder, kind, model):
        kit.Process.__init__(self, folder, [kit.LOADTEST, "stub", "provider", "--kind", kind, "--model", model,
                                            "--key", KEY, "--slots", 64])
        found, _ = kit.until("stub listening", lambda: kit.re.search(r"^listening (http://\S+)$", self.text(), kit.re.M))
        self.url, self.model = found.group(1), model

    def log(self):
        log = httpx.get(f"{self.url}/stub/log", timeout=10).json()
        # This look opened one connection as well, and each look before it.
        self.looks = getattr(self, "looks", 0) + 1
        log["connections"] -= self.looks
        return log


@pytest.fixture
def cloud(tmp_path):
    kit_needed = [kit.SHOAL, kit.LOADTEST]
    if not all(path and os.access(path, os.X_OK) for path in kit_needed):
        pytest.skip("shoal or shoal-loadtest is missing: set SHOAL_BIN and SHOAL_LOADTEST_BIN")
    stubs = {"own": Provider(tmp_path / "own", "openai", "gpt-stub"),
             "goo": Provider(tmp_path / "goo", "gemini", "gemini-stub")}
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
[[prices]]
provider = "own"
model = "gpt-stub"
input = 1.0
output = 2.0
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
    for process in [node, *stubs.values()]:
        process.stop()


def spent(node, name):
    listed = node.get("/shoal/v1/providers").json()["providers"]
    return next(provider["spent_usd"] for provider in listed if provider["name"] == name)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("provider, model", [("own", "own/gpt-stub"), ("goo", "goo/gemini-stub")])
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


def test_mode_cloud_goes_out_and_mode_local_never_does(cloud):
    assert cloud.chat("auto", metadata={"mode": "cloud"}, max_tokens=20).headers["x-shoal-egress"] in ("own", "goo")
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


@pytest.mark.parametrize("fault, status", [
    ("err=429 retry_after=7", 429), ("err=500", 502), ("err=503", 503), ("hang=0", 504), ("drop=1", 502), ("garbage=1", 502),
])
@pytest.mark.parametrize("model", ["own/gpt-stub", "goo/gemini-stub"])
def test_a_providers_fault_is_a_clear_error(cloud, model, fault, status):
    answer = cloud.chat(model, f"[[stub {fault}]]", max_tokens=20)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"]
    assert answer.headers["x-shoal-egress"] == model.split("/")[0]
    if "retry_after" in fault:
        assert answer.headers["retry-after"] == "7"


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
    assert shoal("rm", "mine")[0] == 0 and "mine" not in shoal("ls")[1]
    assert key not in saved.read_text()


def test_a_key_shows_in_no_text(cloud):
    for model in ("own/gpt-stub", "goo/gemini-stub"):
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
