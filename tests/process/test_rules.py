"""Rules, keys with a budget and LiteLLM's configuration, as a person uses them: a file, commands, requests."""

import json
import os
import re
import subprocess

import pytest

import kit

KEY = "sk-canary-9b02aa71"


class Provider(kit.Stub):
    def __init__(self, folder, model):
        kit.Process.__init__(self, folder, [kit.LOADTEST, "stub", "provider", "--kind", "openai", "--model", model,
                                            "--key", KEY, "--slots", 64])
        found, _ = kit.until("stub listening", lambda: re.search(r"^listening (http://\S+)$", self.text(), re.M))
        self.url, self.model = found.group(1), model


def shoal(*args, **env):
    done = subprocess.run([kit.SHOAL, *map(str, args)], capture_output=True, text=True, timeout=40,
                          env=kit.clean_env(**env), stdin=subprocess.DEVNULL)
    assert "panicked" not in done.stderr, done.stderr
    return done


CONFIG = '''version = 1
[[devices]]
url = "{small}"
[[devices]]
url = "{big}"
[[providers]]
name = "own"
base_url = "{own}/v1"
key_file = "{folder}/key"
models = ["gpt-stub"]
[[prices]]
provider = "own"
model = "gpt-stub"
input = 1000.0
output = 1000.0
max_output = 20
[[aliases]]
name = "ab"
split = [{{ model = "small", weight = 1 }}, {{ model = "big", weight = 3 }}]
[[aliases]]
name = "steady"
split = [{{ model = "small" }}, {{ model = "big" }}]
sticky = "user"
[[aliases]]
name = "chain"
model = "own/gpt-stub"
fallback = ["nobody", "big"]
[[routes]]
name = "secrets"
when = {{ keywords = ["salary"] }}
mode = "local"
data_class = "restricted"
[[routes]]
name = "law"
when = {{ models = ["auto"], keywords = ["contract"] }}
model = "big"
[[routes]]
name = "long"
when = {{ models = ["auto"], min_prompt_tokens = 300 }}
model = "small"
[[routes]]
name = "out"
when = {{ models = ["auto"], keys = ["traveller"] }}
mode = "cloud"
'''


@pytest.fixture
def node(tmp_path):
    if not all(path and os.access(path, os.X_OK) for path in (kit.SHOAL, kit.LOADTEST)):
        pytest.skip("shoal or shoal-loadtest is missing: set SHOAL_BIN and SHOAL_LOADTEST_BIN")
    stubs = {"small": kit.Stub(tmp_path / "small", model="small"), "big": kit.Stub(tmp_path / "big", model="big"),
             "own": Provider(tmp_path / "own", "gpt-stub")}
    (tmp_path / "key").write_text(KEY + "\n")
    urls = {name: stub.url for name, stub in stubs.items()}
    (tmp_path / "shoal.toml").write_text(CONFIG.format(folder=tmp_path, **urls))
    node = kit.Node(tmp_path / "n1", "n1", ["up", "--config", tmp_path / "shoal.toml"])
    node.ready()
    node.stubs = stubs
    kit.until("all models listed", lambda: {"small", "big", "own/gpt-stub"} <= node.models())
    yield node
    for process in [node, *stubs.values()]:
        process.stop()


def record(node, answer):
    told, _ = kit.until("the end recorded", lambda: (r := node.get(
        f"/shoal/v1/requests/{answer.headers['x-request-id']}").json())["outcome"] != "in progress" and r)
    return told


def reason(answer):
    assert answer.status_code == 200, answer.text
    return answer.headers["x-shoal-model"], answer.headers["x-shoal-route-reason"]


def test_the_first_rule_that_holds_decides_and_says_so(node):
    assert reason(node.chat("auto", "Please read this Contract. [[stub n=3]]")) == ("big", "rule:law")
    assert reason(node.chat("auto", "word " * 400 + "[[stub n=3]]")) == ("small", "rule:long")
    answer = node.chat("own/gpt-stub", "What is Ann's salary?")
    assert answer.status_code in (403, 503) and "rule 'secrets'" in answer.json()["error"]["message"]
    answer = node.chat("auto", "Her salary is in this contract [[stub n=3]]")
    assert reason(answer)[1] == "rule:secrets" and answer.headers["x-shoal-egress"] == "none"
    told = record(node, answer)
    assert (told["rule"], told["data_class"]) == ("secrets", "restricted")
    explained = shoal("explain", told["id"], "--data-dir", node.data_dir)
    assert "rule:secrets" in explained.stdout, explained
    assert not node.stubs["own"].log()["requests"]
    dry = node.post("/shoal/v1/route", {"model": "auto", "messages": [{"role": "user", "content": "a contract"}]})
    assert (dry.json()["rule"], dry.json()["routing_reason"], dry.json()["model"]) == ("law", "rule:law", "big")


def test_splits_keep_their_shares_and_sticky_ones_their_users(node):
    for number in range(40):
        model, why = reason(node.chat("ab", f"question {number} [[stub n=2]]"))
        assert model in ("small", "big") and why == "rule:ab"
    picks = {user: {reason(node.chat("steady", f"{user} asks {n} [[stub n=2]]", user=user))[0] for n in range(4)}
             for user in [f"user-{n}" for n in range(12)]}
    assert all(len(models) == 1 for models in picks.values()), picks
    assert len({next(iter(models)) for models in picks.values()}) == 2, "not all users have one model"
    rule = next(rule for rule in node.get("/shoal/v1/router").json()["rules"] if rule["name"] == "ab")
    assert rule["requests"] == 40 and {sent["model"]: sent for sent in rule["sent"]}["big"]["requests"] > 18
    assert [(one["model"], one["share"]) for one in rule["split"]] == [("small", 0.25), ("big", 0.75)]
    assert re.search(r'^shoal_rule_requests_total\{.*rule="ab".*\} \d', node.get("/metrics").text, re.M)
    assert {"ab", "steady", "chain"} <= node.models()


def test_a_chain_takes_over_before_the_client_sees_a_fault(node):
    assert reason(node.chat("chain", "hello [[stub n=3]]", max_tokens=5)) == ("own/gpt-stub", "rule:chain")
    node.stubs["own"].kill()
    answer = node.chat("chain", "hello again [[stub n=3]]", max_tokens=5)
    assert reason(answer) == ("big", "fallback")
    told = record(node, answer)
    assert told["rule"] == "chain" and [one["model"] for one in told["attempt_log"]] == ["own/gpt-stub", "big"]


def key_with(node, name, *more):
    made = shoal("keys", "create", name, *more, "--json", "--data-dir", node.data_dir)
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def listed(node, key):
    out = shoal("keys", "ls", "--json", "--data-dir", node.data_dir)
    return next(one for one in json.loads(out.stdout)["keys"] if one["id"] == key["id"])


def test_a_key_spends_its_budget_and_then_what_costs_nothing(node, tmp_path):
    bad = shoal("keys", "create", "x", "--budget", "5eur/week", "--data-dir", node.data_dir)
    assert bad.returncode == 2 and "5usd/day" in bad.stderr
    # The price makes an answer of 10 tokens cost about 0.02 USD; the bound before it is about 0.2.
    key = key_with(node, "intern", "--budget", "0.5usd/month")
    node.key, owner = key["key"], node.key
    answer = node.chat("own/gpt-stub", "spend [[stub n=10]]", max_tokens=10)
    assert answer.status_code == 200, answer.text
    cost = record(node, answer)["cost_usd"]
    kit.until("the key billed", lambda: abs(listed(node, key)["spent_usd"] - cost) < 1e-9)
    for number in range(100):
        answer = node.chat("own/gpt-stub", f"spend more {number} [[stub n=10]]", max_tokens=10)
        if answer.status_code != 200:
            break
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota"), answer.text
    assert "keys create" in answer.json()["error"]["message"] or "--budget" in answer.json()["error"]["message"]
    assert 0 < listed(node, key)["spent_usd"] <= 0.5
    assert node.chat("auto", "an ordinary question [[stub n=3]]").headers["x-shoal-egress"] == "none"
    table = shoal("keys", "ls", "--data-dir", node.data_dir).stdout
    assert re.search(rf"{key['id']}.*0\.5usd/month", table), table
    before = listed(node, key)["spent_usd"]
    node.stop()
    again = kit.Node(tmp_path / "again", "n1", ["up", "--config", tmp_path / "shoal.toml"], key=key["key"],
                     data_dir=node.data_dir)
    try:
        again.ready()
        kit.until("all models listed", lambda: {"small", "big", "own/gpt-stub"} <= again.models())
        assert abs(listed(again, key)["spent_usd"] - before) < 1e-9, "a restart forgives nothing"
        assert again.chat("own/gpt-stub", "once more [[stub n=10]]", max_tokens=10).status_code == 429
        again.key = owner
        assert again.chat("own/gpt-stub", "another key [[stub n=3]]", max_tokens=3).status_code == 200
    finally:
        again.stop()


def test_a_litellm_configuration_becomes_ours_and_serves(node, tmp_path):
    (tmp_path / "config.yaml").write_text(f'''
model_list:
  - model_name: team
    litellm_params: {{model: openai/small, api_base: "{node.stubs['small'].url}/v1", api_key: none}}
  - model_name: paid
    litellm_params: {{model: openai/gpt-stub, api_base: "{node.stubs['own'].url}/v1", api_key: {KEY}}}
  - model_name: odd
    litellm_params: {{model: bedrock/x}}
router_settings:
  fallbacks: [{{"paid": ["team"]}}]
  model_group_alias: {{"gpt-4": "team"}}
general_settings: {{master_key: {KEY}}}
''')
    ours = tmp_path / "ours.toml"
    done = shoal("config", "import", "litellm", tmp_path / "config.yaml", "--out", ours)
    assert done.returncode == 0 and "1 devices, 1 providers, 3 aliases" in done.stdout, done
    assert KEY not in ours.read_text() + done.stdout
    assert shoal("config", "import", "litellm", tmp_path / "config.yaml").stdout.strip() == ours.read_text().strip()
    variable = re.search(r"keys come from (\w+)", done.stdout).group(1)
    unset = shoal("config", "check", "--config", ours)
    assert unset.returncode == 2 and variable in unset.stderr
    assert shoal("config", "check", "--config", ours, **{variable: KEY}).returncode == 0
    other = kit.Node(tmp_path / "n2", "n2", ["up", "--config", ours], env=kit.clean_env(**{variable: KEY}))
    try:
        other.ready()
        kit.until("the device listed", lambda: "small" in other.models())
        assert reason(other.chat("gpt-4", "hello [[stub n=3]]")) == ("small", "rule:gpt-4")
        model, why = reason(other.chat("paid", "hello you [[stub n=3]]", max_tokens=5))
        assert model.endswith("/gpt-stub") and why == "rule:paid"
    finally:
        other.stop()
    assert shoal("config", "import", "litellm", tmp_path / "config.yaml", "--out", ours).returncode == 1
    assert shoal("config", "import", "litellm", tmp_path / "nothing.yaml").returncode == 1
    assert shoal("config", "import", "portkey", tmp_path / "config.yaml").returncode == 2


def test_what_a_chat_says_reaches_the_engine_or_is_refused(node):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    refused = [
        ("tool_choice", dict(tools=[tool], tool_choice={"type": "function", "function": {"name": "whether"}})),
        ("response_format.json_schema", dict(response_format={"type": "json_schema"})),
        ("seed", dict(seed="x")), ("n", dict(n=0)), ("top_logprobs", dict(top_logprobs=2)),
    ]
    for param, more in refused:
        answer = node.chat("small", "hello", **more)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert not node.stubs["small"].log()["requests"]
    body = {"model": "small", "max_completion_tokens": 4, "messages": [
        {"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi [[stub n=9 tag=t]]"}]}
    answer = node.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 4, "the limit reached the engine"
