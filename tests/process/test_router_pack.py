"""Router packs between meshes: export, trust, estimate, adoption, removal; and the decision log evaluated."""

import json
import random
import subprocess

import pytest

import kit

OK, FAILURE, USAGE, _, NOT_ALLOWED = range(5)
# Requests of a lesson that name each of the two models.
NAMED = 3

EASY = ["What colour is the sky?", "Say hello.", "Name a fruit.", "How many legs has a dog?"]
HARD = [
    "Prove that every homomorphic image of a group G is isomorphic to a factor group of G.",
    "Let S be a compact topological space and f a function onto T. Which condition makes T compact?",
    "Derive the Euler-Lagrange equation of a relativistic string and quantise it.",
]


def router(node, *args):
    """Runs `shoal router …` at a node; exit code, standard output, standard error."""
    done = subprocess.run(
        [kit.SHOAL, "router", *map(str, args), "--data-dir", str(node.data_dir)], capture_output=True, text=True,
        timeout=60, env=kit.clean_env(), stdin=subprocess.DEVNULL,
    )
    assert "panicked" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def told(node, *args):
    code, out, err = router(node, *args, "--json")
    assert code == OK, err
    return json.loads(out)


def believed(node):
    rows = node.get("/shoal/v1/router").json()["believed"]
    return {row["arm"].split("@")[0]: row["quality"]["n"] for row in rows}


def teach(node, count):
    """Has the node choose for `count` requests, and answers one more of each ten with a model by name; judges each
    answer: the large model is right, the small one on easy prompts only. Mode `local`: no answer is escalated."""
    chance = random.Random(1)
    models = ["auto"] * count + ["stub-8b", "stub-70b"] * NAMED
    for model in models:
        hard = chance.random() < 0.5
        prompt = chance.choice(HARD if hard else EASY)
        answer = node.chat(model, f"{prompt} [[stub n=2]]", metadata={"mode": "local"})
        assert answer.status_code == 200, answer.text
        good = "70b" in answer.headers["x-shoal-model"] or not hard
        body = {"request_id": answer.headers["x-request-id"], "score": 1.0 if good else 0.0}
        assert node.post("/v1/feedback", body).status_code == 200


@pytest.fixture
def taught(mesh):
    """A mesh of one node with two models that it has learnt about."""
    small = mesh.stub("small", model="stub-8b")
    large = mesh.stub("large", model="stub-70b")
    node = mesh.first("n1", more=["--device", small.url, "--device", large.url])
    mesh.everywhere("stub-8b")
    mesh.everywhere("stub-70b")
    teach(node, 60)
    def on_disk():
        seen = told(node, "eval")
        return (seen["decisions"], seen["left_out"]["no_choice"]) == (60, 2 * NAMED)
    kit.until("rows on disk", on_disk)
    return node


@pytest.fixture
def stranger(tmp_path):
    """A fresh mesh of its own."""
    mesh = kit.Mesh(tmp_path / "elsewhere")
    mesh.folder.mkdir()
    yield mesh.first("m1")
    mesh.close()


def test_a_pack_goes_from_a_mesh_to_a_fresh_node_of_another(taught, stranger, tmp_path):
    pack = tmp_path / "learnt.pack"
    written = told(taught, "export", "--out", pack)
    assert {arm.split("@")[0] for arm in written["arms"]} == {"stub-8b", "stub-70b"}
    assert written["judgements"] >= 60 and len(written["key"]) == 64

    code, _, err = router(stranger, "import", pack)
    assert code == NOT_ALLOWED and written["key"] in err, err
    code, _, err = router(stranger, "import", pack, "--key", "00" * 32)
    assert code == NOT_ALLOWED and written["key"] in err, err
    code, _, err = router(stranger, "import", pack, "--key", "zz")
    assert code == FAILURE and "hexadecimal" in err, err

    code, out, err = router(stranger, "import", pack, "--key", written["key"])
    assert code == OK and "too few" in out and "not adopted" in out, out + err
    assert believed(stranger) == {}, "showing is not adopting"
    seen = told(stranger, "import", pack, "--key", written["key"], "--yes")
    assert seen["adopted"] and seen["trust"] == "named_key" and seen["estimate"]["too_few"]
    assert set(believed(stranger)) == {"stub-8b", "stub-70b"}
    totals = stranger.get("/shoal/v1/router").json()["totals"]
    assert totals == [], "a pack is no observation"

    stranger.stop()
    again = kit.Node(stranger.folder, "m1", ["up"], key=stranger.key, data_dir=stranger.data_dir)
    try:
        again.ready()
        assert set(believed(again)) == {"stub-8b", "stub-70b"}, "adopted for good"
        code, out, _ = router(again, "import", "--remove")
        assert code == OK and "removed" in out
        assert believed(again) == {}
        code, _, err = router(again, "import", "--remove")
        assert code == FAILURE and "no pack is adopted" in err
    finally:
        again.stop()


def test_a_changed_pack_and_other_files_are_refused(taught, tmp_path):
    pack = tmp_path / "learnt.pack"
    told(taught, "export", "--out", pack)
    code, out, err = router(taught, "import", pack)
    assert code == OK and "of this mesh" in out, err
    bytes_ = bytearray(pack.read_bytes())
    bytes_[len(bytes_) // 2] ^= 1
    tampered = tmp_path / "tampered.pack"
    tampered.write_bytes(bytes_)
    for options in ([], ["--yes"], ["--yes", "--allow-unsigned"]):
        code, _, err = router(taught, "import", tampered, *options)
        assert code == FAILURE and ("does not fit" in err or "damaged" in err), err
    other = tmp_path / "model.gguf"
    other.write_bytes(b"GGUF" * 100)
    code, _, err = router(taught, "import", other, "--yes")
    assert code == FAILURE and "no router pack" in err, err
    code, _, err = router(taught, "import", tmp_path / "absent")
    assert code == FAILURE and "cannot read" in err, err
    code, _, err = router(taught, "import")
    assert code == USAGE, err
    assert router(taught, "import", "--remove")[0] == FAILURE, "nothing was adopted"


def test_the_decision_log_is_evaluated_against_other_policies(taught):
    seen = told(taught, "eval", "--policy", "fixed:stub-70b", "--since", "1h")
    assert seen["decisions"] == 60 and seen["policy"] == "fixed:stub-70b"
    assert seen["left_out"] == {"no_choice": 2 * NAMED, "taken_over": 0, "incomplete": 0}
    verdict = seen["candidate"]
    # The large model is always right: where the log supports it at all, the self-normalised estimate is exact.
    assert abs(verdict["quality"]["snips"]["value"] - 1.0) < 1e-6
    assert verdict["effective"] > 0
    for estimator in ("logged", "ips", "snips", "doubly_robust", "gain"):
        interval = verdict["utility"][estimator]
        assert interval["low"] <= interval["value"] <= interval["high"]
    assert seen["present"]["decisions"] == 60
    code, out, _ = router(taught, "eval", "--policy", "random")
    assert code == OK and "doubly robust" in out and "effective sample size" in out
    code, _, err = router(taught, "eval", "--policy", "best")
    assert code == USAGE and "thompson" in err
    # A request whose model the client named was no choice.
    answer = taught.chat("stub-8b", "[[stub n=2]]")
    taught.post("/v1/feedback", {"request_id": answer.headers["x-request-id"], "score": 1.0})
    kit.until("the row on disk", lambda: told(taught, "eval")["left_out"]["no_choice"] == 2 * NAMED + 1)


def test_packs_are_trained_from_history_and_from_files(taught, tmp_path):
    pack = tmp_path / "history.pack"
    report = told(taught, "train", "--from", "history", "--out", pack)
    assert report["signed"] and {arm["arm"].split("@")[0] for arm in report["arms"]} == {"stub-8b", "stub-70b"}
    seen = told(taught, "import", pack)
    assert seen["trust"] == "own_mesh" and not seen["adopted"]
    assert told(taught, "eval", "--pack", pack)["candidate"]["decisions"] == 60

    rows = tmp_path / "rows.jsonl"
    lines = [{"prompt": prompt, "y": [int(prompt in EASY), 1]} for prompt in (EASY + HARD) * 20]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "rows.models.json").write_text(json.dumps({"models": ["a-8b", "b-70b"]}))
    first, second = tmp_path / "1.pack", tmp_path / "2.pack"
    for out in (first, second):
        report = told(taught, "train", "--from", rows, "--out", out, "--unsigned")
    assert first.read_bytes() == second.read_bytes(), "equal rows give equal bytes"
    assert report["held_out"]["chosen"] == report["held_out"]["best_fixed"] == 1.0
    code, _, err = router(taught, "import", first, "--yes")
    assert code == NOT_ALLOWED and "--allow-unsigned" in err
    code, out, _ = router(taught, "import", first, "--yes", "--allow-unsigned")
    assert code == OK and "WARNING" in out
    rows.write_text('{"prompt": "?", "y": [1]}\n')
    code, _, err = router(taught, "train", "--from", rows, "--out", first)
    assert code == FAILURE and "line 1" in err


def test_all_of_it_works_on_the_files_of_a_node_that_does_not_run(taught, tmp_path):
    while_running = told(taught, "eval")
    taught.stop()
    code, out, err = router(taught, "eval")
    assert code == OK and "no node runs here" in out, err
    seen = told(taught, "eval")
    assert seen["decisions"] == while_running["decisions"]
    assert seen["logged_shares"] == pytest.approx(while_running["logged_shares"])
    worth = [v["present"]["utility"]["doubly_robust"]["value"] for v in (seen, while_running)]
    assert worth[0] == pytest.approx(worth[1]), "the same sums, the same estimate"

    pack = tmp_path / "learnt.pack"
    written = told(taught, "export", "--out", pack)
    assert written["judgements"] >= 60
    assert told(taught, "import", pack)["adopted"] is False
    taken = told(taught, "import", pack, "--yes")
    assert (taken["adopted"], taken["trust"]) == (True, "own_mesh")
    assert told(taught, "import", "--remove")["removed"] is True
    code, _, err = router(taught, "import", "--remove")
    assert code == FAILURE and "no pack is adopted" in err
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run([kit.SHOAL, "router", "eval", "--data-dir", str(empty)], capture_output=True, text=True,
                          timeout=60, env=kit.clean_env())
    assert done.returncode == 3 and "no node runs" in done.stderr, "there is no data of one either"
