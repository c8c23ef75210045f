"""Escalation with a real engine: its own log probabilities decide whether the provider is asked."""

import pytest

import kit
from conftest import need


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    need(kit.SHOAL, "shoal", "set SHOAL_BIN")
    need(kit.LOADTEST, "shoal-loadtest", "set SHOAL_LOADTEST_BIN")
    need(kit.MODEL, "the real model", "set SHOAL_TEST_MODEL to a GGUF file")
    folder = tmp_path_factory.mktemp("live")
    stub = kit.Process(folder / "cloud", [kit.LOADTEST, "stub", "provider", "--kind", "openai", "--model", "gpt-4o", "--slots", 8])
    node = None
    try:
        found, _ = kit.until("stub listening", lambda: kit.re.search(r"^listening (http://\S+)$", stub.text(), kit.re.M))
        (folder / "shoal.toml").write_text(f'''version = 1
[[providers]]
name = "own"
base_url = "{found.group(1)}/v1"
models = ["gpt-4o"]
''')
        node = kit.Node(folder / "n1", "n1", ["up"],
                        more=["--embedded", "--config", folder / "shoal.toml"],
                        env={**kit.clean_env(), "SHOAL_MODEL_FILE": kit.MODEL})
        node.ready()

        def own_model():
            return [m for m in node.models() if not m.startswith(("auto", "device:", "own/")) and m != "gpt-4o"]
        names, _ = kit.until("the engine's model", own_model)
        node.model = names[0]
        yield node
    finally:
        for process in filter(None, (node, stub)):
            process.stop()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("threshold, egress", [(0.999, "own"), (0.01, "none")])
def test_live_log_probabilities_decide(live, stream, threshold, egress):
    answer = live.chat(live.model, "Name three colours.", stream=stream, max_tokens=24, temperature=0,
                       metadata={"confidence_threshold": threshold})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-shoal-egress"] == egress
    record = live.get(f"/shoal/v1/requests/{answer.headers['x-request-id']}").json()
    assert record["local_attempt"] and record["escalated"] is (egress == "own"), record
    if egress == "own":
        assert record["escalation"] == "low_confidence" and record["rejected_tokens"] > 0
    else:
        assert 0 < record["confidence"] < 1 and "logprobs\":{" not in answer.text.replace(" ", "")
