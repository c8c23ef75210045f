"""A model that grades answers, and other models that answer in the shadow: what each was asked, by its own log."""

import kit

JUDGED = "why is the sky blue, in a word?"


def config(folder, text):
    path = folder / "shoal.toml"
    path.write_text("version = 1\n" + text)
    return ["--config", path]


def rows(node, kind):
    listed = node.get("/shoal/v1/requests?limit=200").json()
    return [row for row in listed["requests"] if row["kind"] == kind]


def asked(stub):
    return [entry for entry in stub.log()["requests"] if entry["prompt"]]


def test_answers_are_graded_by_the_named_model_and_the_grade_is_kept(mesh):
    judge = mesh.stub("judge", model="judge", more=["--fault", "say={\"grade\":_9} show=1"])
    worker = mesh.stub("worker", model="worker", more=["--fault", "say=Scattering. show=1"])
    settings = config(mesh.folder, '[evaluator]\nmodel = "judge"\nshare = 1.0\n')
    node = mesh.first("n1", more=[*settings, "--device", judge.url, "--device", worker.url])
    mesh.everywhere("judge")
    mesh.everywhere("worker")
    for stream in (False, True):
        answer = node.chat("worker", JUDGED, stream=stream)
        assert answer.status_code == 200, answer.text
        wanted = 1 + int(stream)
        kit.until("graded", lambda: len([r for r in rows(node, "evaluation") if r["outcome"] == "completed"]) == wanted)

    questions = asked(judge)
    assert len(questions) == 2
    for question in questions:
        assert JUDGED in question["prompt"] and "Scattering." in question["prompt"]
        assert "response_format" in question["fields"]
    assert len(asked(worker)) == 2, "the judge's own requests are graded by nobody"
    clients = {row["id"] for row in rows(node, "client")}
    for row in rows(node, "evaluation"):
        assert row["about"] in clients
        assert row["evaluation"]["grade"] == 9 and row["evaluation"]["prompt"] == "v1"
    metrics = node.get("/metrics").text
    assert "shoal_evaluations_total 2" in metrics
    stored = b"".join(path.read_bytes() for path in node.data_dir.rglob("*") if path.is_file())
    assert JUDGED.encode() not in stored and b"Scattering." not in stored
    assert JUDGED not in node.text()


def test_a_shadow_call_lets_another_model_answer_and_the_client_never_knows(mesh):
    judge = mesh.stub("judge", model="judge-1b", more=["--fault", "say=7 show=1"])
    one = mesh.stub("one", model="one-7b", more=["--fault", "say=First. show=1"])
    two = mesh.stub("two", model="two-7b", more=["--fault", "say=Second. show=1"])
    settings = config(
        mesh.folder,
        '[evaluator]\nmodel = "judge-1b"\nshare = 0.0\nmax_concurrent = 4\nper_hour = 100000\n'
        '[learning]\nshadow_share = 1.0\nshadow_per_hour = 100000\n',
    )
    node = mesh.first("n1", more=[*settings, *(word for s in (judge, one, two) for word in ("--device", s.url))])
    for model in ("judge-1b", "one-7b", "two-7b"):
        mesh.everywhere(model)
    answer = node.chat("auto", JUDGED)
    assert answer.status_code == 200, answer.text
    kit.until("a shadow", lambda: any(row["outcome"] == "completed" for row in rows(node, "shadow")))
    shadow = rows(node, "shadow")[0]
    [client] = rows(node, "client")
    assert shadow["about"] == client["id"] and shadow["model"] != client["model"]
    kit.until("both graded", lambda: {row["about"] for row in rows(node, "evaluation") if row["evaluation"]}
              >= {client["id"], shadow["id"]})
    asks = [entry for stub in (judge, one, two) for entry in asked(stub) if entry["prompt"] == JUDGED]
    assert len(asks) == 2, "the client's request, and one beside it"


def test_a_setting_that_teaches_nothing_is_refused(mesh):
    settings = config(mesh.folder, "[learning]\nshadow_share = 0.1\n")
    node = kit.Node(mesh.folder / "n1", "n1", ["up"], more=settings)
    mesh.nodes.append(node)
    assert node.child.wait(timeout=kit.PATIENCE_S) != 0
    assert "set evaluator.model" in node.text()
