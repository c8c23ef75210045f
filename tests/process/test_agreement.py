"""A second model of a device is asked whether it says the same, before a provider is: who was asked what, by their own logs."""

import re
import subprocess

import kit

QUESTION = "What is the capital of France, in a word?"


def start(mesh, other, settings=""):
    """A node with two small models on devices, which give no log probabilities, and a strong one at a provider."""
    weak = mesh.stub("weak", model="weak-135m", more=["--fault", "say=Paris no_logprobs=1 show=1"])
    second = mesh.stub("second", model="other-135m", more=["--fault", f"say={other} no_logprobs=1 show=1"])
    cloud = kit.Provider(mesh.folder / "cloud", "openai", "strong-400b")
    mesh.others.append(cloud)
    (mesh.folder / "key").write_text(kit.PROVIDER_KEY + "\n")
    (mesh.folder / "shoal.toml").write_text(f'''version = 1
[escalation]
agreement = true
agreement_wait_s = 60
{settings}
[[providers]]
name = "own"
base_url = "{cloud.url}/v1"
key_file = "{mesh.folder}/key"
models = ["strong-400b"]
[[prices]]
provider = "own"
model = "strong-400b"
input = 1.0
output = 2.0
''')
    node = mesh.first("n1", more=["--config", mesh.folder / "shoal.toml", "--device", weak.url, "--device", second.url])
    for model in ("weak-135m", "other-135m", "own/strong-400b"):
        mesh.everywhere(model)
    return node, weak, second, cloud


def asked(stub):
    return [entry for entry in stub.log()["requests"] if entry.get("prompt")]


def ask(node, prompt=QUESTION, **metadata):
    answer = node.chat("weak-135m", prompt, metadata={"confidence_threshold": 0.5, **metadata})
    assert answer.status_code == 200, answer.text
    request_id = answer.headers["x-request-id"]
    def ended():
        record = node.get(f"/shoal/v1/requests/{request_id}").json()
        return record if record.get("outcome") == "completed" else None

    return answer.json(), kit.until("the record", ended)[0]


def told(node, *command):
    done = subprocess.run([kit.SHOAL, *command, "--data-dir", str(node.data_dir)], capture_output=True, text=True,
                          timeout=60, env=kit.clean_env())
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(node, kind):
    return [row for row in node.get("/shoal/v1/requests?limit=100").json()["requests"] if row["kind"] == kind]


def test_two_models_that_agree_keep_the_answer_here(mesh):
    node, weak, second, cloud = start(mesh, "paris.")
    answer, record = ask(node)
    assert answer["choices"][0]["message"]["content"] == "Paris"
    assert record["escalated"] is False and record["egress"] == "none"
    agreement = record["agreement"]
    assert (agreement["share"], agreement["model"], agreement["skipped"]) == (1.0, "other-135m", "")
    assert agreement["tokens"] > 0 and record["raw_confidence"] == 1.0
    assert [len(asked(stub)) for stub in (weak, second)] == [1, 1]
    assert asked(second)[0]["prompt"] == asked(weak)[0]["prompt"], "the same request"
    assert not cloud.log()["requests"]
    found, _ = kit.until("a row of its own", lambda: rows(node, "agreement"))
    assert [row["about"] for row in found] == [record["id"]] and found[0]["id"] == agreement["request_id"]
    assert 'shoal_agreement_calls_total{said="same"} 1' in node.get("/metrics").text
    shown = node.get(f"/shoal/v1/requests/{agreement['request_id']}").json()
    assert shown["kind"] == "agreement" and shown["data_class"] == "restricted"
    assert re.search(r"second opinion other-135m on .* says 100 % of it, too; \d+ tokens", told(node, "explain", record["id"]))

    # What agreement said is calibrated as any confidence is.
    assert node.post("/v1/feedback", {"request_id": record["id"], "score": 1.0}).status_code == 200
    kit.until("a judged confidence", lambda: node.get("/shoal/v1/router").json()["calibration"])
    table = told(node, "router", "calibration")
    assert "weak-135m" in table and "1 judged" in table and re.search(r"0\.9-1\.0 +1 +1\.00 +1\.00", table), table


def test_two_that_do_not_agree_pass_it_up_unless_it_must_stay(mesh):
    node, _, second, cloud = start(mesh, "Lyon")
    _, record = ask(node)
    assert record["escalated"] is True and record["escalation"] == "low_confidence" and record["egress"] == "own"
    assert record["agreement"]["share"] == 0.0
    assert [attempt["ended"] for attempt in record["attempt_log"]] == ["rejected", "ok"]
    outside = len(cloud.log()["requests"])
    assert outside == 1

    answer, record = ask(node, "And of Norway, which is a secret?", data_class="restricted")
    assert answer["choices"][0]["message"]["content"] in ("Paris", "Lyon") and record["egress"] == "none"
    assert len(cloud.log()["requests"]) == outside, "restricted never leaves"
    assert all("secret" not in str(entry) for entry in cloud.log()["requests"])


def test_nobody_is_asked_beyond_the_budget_nor_for_a_stream(mesh):
    node, _, second, _ = start(mesh, "Lyon", "agreement_per_hour = 1")
    assert ask(node)[1]["agreement"]["share"] == 0.0
    answer, record = ask(node, "And the capital of Italy, in a word?")
    assert record["agreement"]["skipped"] == "allowance" and record["agreement"]["share"] is None
    assert answer["choices"][0]["message"]["content"] == "Paris", "unknown is not low"
    stream = node.chat("weak-135m", "A stream about Spain?", stream=True, metadata={"confidence_threshold": 0.5})
    assert stream.status_code == 200
    assert len(asked(second)) == 1
    assert 'shoal_agreement_skipped_total{reason="allowance"} 1' in node.get("/metrics").text


def test_the_opinion_of_the_model_to_be_asked_next_is_its_answer(mesh):
    weak = mesh.stub("weak", model="weak-135m", more=["--fault", "say=Paris no_logprobs=1 show=1"])
    better = mesh.stub("better", model="better-1b", more=["--fault", "say=Lyon no_logprobs=1 show=1"])
    (mesh.folder / "shoal.toml").write_text("version = 1\n[escalation]\nagreement = true\nagreement_wait_s = 60\n")
    node = mesh.first("n1", more=["--config", mesh.folder / "shoal.toml", "--device", weak.url, "--device", better.url])
    for model in ("weak-135m", "better-1b"):
        mesh.everywhere(model)
    answer, record = ask(node, "And the capital of Norway?")
    assert answer["choices"][0]["message"]["content"] == "Lyon" and answer["model"] == "better-1b"
    assert record["escalated"] is True and record["agreement"]["share"] == 0.0
    assert [attempt["ended"] for attempt in record["attempt_log"]] == ["rejected", "ok"]
    assert [len(asked(stub)) for stub in (weak, better)] == [1, 1], "it is not asked twice"
