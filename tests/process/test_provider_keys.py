"""A provider's key on one node of three: the others answer through it, and what must stay never starts on the way."""

import httpx
import pytest

import kit
from kit import PROVIDER_KEY as KEY, Provider


@pytest.fixture
def keyed(mesh, tmp_path):
    """Nodes n1 to n3, of which n1 alone has the key of provider `own`."""
    stub = Provider(tmp_path / "own", "openai", "gpt-stub")
    mesh.others.append(stub)
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "shoal.toml").write_text(f'''version = 1
[[providers]]
name = "own"
base_url = "{stub.url}/v1"
key_file = "{tmp_path}/key"
models = ["gpt-stub"]
budget = "1usd/day"
[[prices]]
provider = "own"
model = "gpt-stub"
input = 1.0
output = 2.0
context = 5000
vision = false
''')
    mesh.first("n1", more=["--config", tmp_path / "shoal.toml"])
    mesh.join("n2")
    mesh.join("n3")
    mesh.whole(3)
    mesh.everywhere("own/gpt-stub")
    mesh.provider = stub
    return mesh


def accepted(node):
    return node.get("/shoal/v1/status").json()["requests"]["accepted"]


def spent(node):
    listed = node.get("/shoal/v1/providers").json()["providers"]
    return sum(provider["spent_usd"] for provider in listed)


@pytest.mark.parametrize("stream", [False, True])
def test_a_node_without_the_key_answers_through_the_one_that_has_it(keyed, stream):
    n1, n2, n3 = keyed.nodes
    for node in (n2, n3):
        answer = node.chat("own/gpt-stub", f"say [[stub n=5 tag={node.name}]]", stream=stream, max_tokens=50)
        assert answer.status_code == 200 and "w0000" in answer.text, answer.text
        assert answer.headers["x-shoal-egress"] == "own"
        assert '"target":"cloud"' in answer.text and '"egress":"own"' in answer.text
        assert len(keyed.provider.tagged(node.name)) == 1
        record = node.get(f"/shoal/v1/requests/{answer.headers['x-request-id']}").json()
        assert record["egress"] == "own" and record["cost_usd"] > 0 and record["attempts"] == 1
    # The purse is the owner's; who only asks has none.
    kit.until("the owner's purse pays", lambda: spent(n1) > 0)
    assert n2.get("/shoal/v1/providers").json()["providers"] == []
    elsewhere = n2.get("/shoal/v1/providers").json()["elsewhere"]
    assert [(entry["name"], entry["node"], entry["models"]) for entry in elsewhere] == [("own", "n1", ["own/gpt-stub"])]
    answer = n2.chat("auto", "which one?", metadata={"mode": "cloud"}, max_tokens=20)
    assert answer.headers["x-shoal-egress"] == "own"


def test_what_must_stay_does_not_even_start_on_the_way(keyed):
    n1, n2, _ = keyed.nodes
    before, connections = accepted(n1), keyed.provider.log()["connections"]
    kept = [dict(metadata={"data_class": "restricted"}), dict(metadata={"mode": "local"}),
            dict(metadata={"data_class": "restricted", "mode": "cloud"})]
    for more in kept:
        for model in ("own/gpt-stub", "auto"):
            for stream in (False, True):
                answer = n2.chat(model, "secret", stream=stream, **more)
                assert answer.status_code in (403, 503), answer.text
                assert answer.headers["x-shoal-egress"] == "none"
    assert accepted(n1) == before, "the owner never saw it"
    assert keyed.provider.log()["connections"] == connections


def test_what_the_model_cannot_is_known_at_the_entry(keyed):
    n1, n2, _ = keyed.nodes
    before = accepted(n1)
    long = n2.chat("own/gpt-stub", "word " * 9000, max_tokens=20)
    assert long.json()["error"]["code"] == "context_length_exceeded", long.text
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}]
    seen = n2.post("/v1/chat/completions", {"model": "own/gpt-stub", "max_tokens": 9, "messages": [
        {"role": "user", "content": picture}]})
    assert seen.json()["error"]["code"] == "unsupported", seen.text
    assert accepted(n1) == before


def test_the_owners_errors_reach_the_asker_with_what_left(keyed):
    _, n2, _ = keyed.nodes
    answer = n2.chat("own/gpt-stub", "[[stub err=429 retry_after=7]]", max_tokens=20)
    assert (answer.status_code, answer.headers["retry-after"], answer.headers["x-shoal-egress"]) == (429, "7", "own")
    # More than the owner's purse holds: refused there before anything is sent.
    answer = n2.chat("own/gpt-stub", "a long one", max_tokens=2_000_000_000)
    assert answer.headers["x-shoal-egress"] == "none", answer.text
    assert answer.status_code in (400, 429)


def test_without_the_owner_the_error_is_clear_and_its_return_mends_it(keyed, tmp_path):
    n1, n2, _ = keyed.nodes
    assert n2.chat("own/gpt-stub", "the first", max_tokens=9).status_code == 200
    n1.kill()

    def gone():
        answer = n2.chat("own/gpt-stub", "is anybody there?", max_tokens=9)
        assert answer.status_code in (502, 503, 504), answer.text
        return answer if answer.json()["error"]["code"] == "provider_away" else None
    answer, _ = kit.until("the owner's death known", gone)
    assert answer.status_code == 503 and "retry-after" in answer.headers
    message = answer.json()["error"]["message"]
    assert "'own'" in message and "shoal nodes" in message
    assert "own/gpt-stub" not in n2.models()
    kept = n2.chat("own/gpt-stub", "secret", metadata={"data_class": "restricted"})
    assert kept.status_code in (403, 503) and kept.headers["x-shoal-egress"] == "none"
    back = kit.Node(tmp_path / "n1-again", "n1", ["up", "--config", tmp_path / "shoal.toml"], key=n1.key,
                    data_dir=n1.data_dir, port=n1.port, mesh_port=n1.mesh_port)
    keyed.nodes[0] = back
    back.ready()
    kit.until("n2 answers again", lambda: n2.chat(
        "own/gpt-stub", f"welcome back {kit.time.monotonic()}", max_tokens=9).status_code == 200)


def test_the_key_stays_where_it_is(keyed):
    for node in keyed.nodes:
        node.chat("own/gpt-stub", f"hello from {node.name}", max_tokens=9)
        for path in ("status", "nodes", "models", "providers", "requests"):
            assert KEY not in httpx.get(f"{node.url}/shoal/v1/{path}", headers=node.auth(), timeout=10).text
    for node in keyed.nodes:
        node.stop()
        assert KEY not in node.text()
        for file in node.data_dir.rglob("*"):
            assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
