"""What one node learns, read at the other nodes, through deaths, restarts and late comers."""

import secrets
import time

import kit


def totals(node):
    """Plain sums over the mesh as this node shows them, by arm."""
    rows = node.get("/shoal/v1/router").json()["totals"]
    return {row["arm"]: row for row in rows}


def scored(node):
    return sum(row["scored"] for row in totals(node).values())


def numbers(value):
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [float(value)] if isinstance(value, (int, float)) else []


def equal(nodes):
    first, *others = [totals(node) for node in nodes]
    return all(
        other.keys() == first.keys() and len(numbers(other)) == len(numbers(first))
        and all(abs(a - b) <= 1e-4 for a, b in zip(numbers(other), numbers(first)))
        for other in others
    )


def until_equal(what, count, nodes):
    return kit.until(what, lambda: all(scored(node) == count for node in nodes) and equal(nodes))[1]


def give(server, judge, count, score):
    """Has `server` answer `count` requests and gives feedback on them at `judge`."""
    for _ in range(count):
        # A question of its own each time: asking the same again at once would be a judgement, too.
        answer = server.chat("stub-own", "[[stub n=2]] " + " ".join(secrets.token_hex(4) for _ in range(12)))
        assert answer.status_code == 200, answer.text
        body = {"request_id": answer.headers["x-request-id"], "score": score}
        taken = judge.post("/v1/feedback", body)
        assert taken.status_code == 200, taken.text
        assert taken.json()["taken"] is True


def three(mesh):
    stub = mesh.stub("own", model="stub-own")
    first = mesh.first("n1", more=["--device", stub.url])
    second, third = mesh.join("n2"), mesh.join("n3")
    mesh.whole(3)
    mesh.everywhere("stub-own")
    return stub, first, second, third


def again(mesh, node, command):
    back = kit.Node(node.folder, node.name, command, key=node.key, data_dir=node.data_dir, port=node.port,
                    mesh_port=node.mesh_port)
    mesh.nodes[mesh.nodes.index(node)] = back
    back.ready()
    return back


def test_feedback_on_one_node_changes_the_totals_of_all(mesh):
    _, first, second, third = three(mesh)
    give(first, first, 3, 1.0)
    give(second, second, 2, 0.25)
    until_equal("five judgements on all nodes", 5, [first, second, third])
    row = next(iter(totals(third).values()))
    assert abs(row["mean_reward"] - 0.7) <= 1e-4
    assert (row["count"], row["failures"]) == (5, 0)
    assert row["quality"]["version"] == 5 and abs(row["quality"]["mean"] - 0.7) <= 1e-3
    believed = third.get("/shoal/v1/router").json()["believed"]
    assert abs(believed[0]["quality"]["n"] - 5) <= 0.01, "what others were told is decided by here"
    seen = third.get("/shoal/v1/router").json()
    origins = {origin["origin"]: origin for origin in seen["origins"]}
    ids = {node["name"]: node["id"] for node in third.get("/shoal/v1/nodes").json()["nodes"]}
    assert origins[ids["n1"]]["scored"] == 3 and origins[ids["n2"]]["scored"] == 2
    assert all(origin["age_s"] is not None and origin["generation"] > 0 for origin in origins.values())
    status = third.get("/shoal/v1/status").json()["statistics"]
    assert sum(row["scored"] for row in status) == 5


def test_pairs_of_words_that_bad_answers_share_are_told_to_all_and_restricted_prompts_have_none(mesh):
    _, first, second, third = three(mesh)
    # Good where one of two symptoms is there, bad where both are or none: no single word tells which.
    complaints = ["chest pain and a headache", "chest pain and shortness of breath", "a fever and shortness of breath", "a fever and a headache"]

    def judged(count, data_class):
        for n in range(count):
            text = f"[[stub n=2]] My neighbour has {complaints[n % 4]} since {secrets.token_hex(4)}"
            answer = first.chat("stub-own", text, metadata={"data_class": data_class})
            assert answer.status_code == 200, answer.text
            body = {"request_id": answer.headers["x-request-id"], "score": float(n % 2 == 0)}
            assert first.post("/v1/feedback", body).json()["taken"] is True

    judged(30, "restricted")
    until_equal("the restricted ones", 30, [first, second, third])
    assert [row["word_pairs"] for row in totals(second).values()] == [0]
    judged(60, "internal")
    until_equal("the others", 90, [first, second, third])
    assert all(0 < row["word_pairs"] <= 32 for row in totals(second).values()), totals(second)
    route = second.post("/shoal/v1/route", {"model": "auto", "messages": [{"role": "user", "content": complaints[0]}]})
    assert all(isinstance(seen["by_pair"], bool) for seen in route.json()["considered"]), route.text


def test_feedback_given_at_another_node_is_learnt_by_the_one_that_served(mesh):
    _, first, second, third = three(mesh)
    give(first, second, 2, 1.0)
    until_equal("two judgements on all nodes", 2, [first, second, third])
    seen = second.get("/shoal/v1/router").json()
    mine = next(node["id"] for node in second.get("/shoal/v1/nodes").json()["nodes"] if node["name"] == "n1")
    assert {origin["origin"] for origin in seen["origins"] if origin["scored"]} == {mine}
    unknown = second.post("/v1/feedback", {"request_id": f"req_{mine[:8]}_{'0' * 32}", "score": 1.0})
    assert unknown.status_code == 404, unknown.text


def test_late_feedback_after_a_restart_is_learnt_by_the_requests_features(mesh):
    stub, first, second, third = three(mesh)
    answer = second.chat("stub-own", "[[stub n=2]]")
    request = answer.headers["x-request-id"]
    kit.until("the row on disk", lambda: second.get(f"/shoal/v1/requests/{request}").status_code == 200)
    time.sleep(1.0)  # rows are written in batches
    second.kill()
    kit.until("n2 out of the view", lambda: first.alive_nodes() == {"n1", "n3"})
    away = first.post("/v1/feedback", {"request_id": request, "score": 1.0})
    assert away.status_code == 404 and "away" in away.text, away.text
    back = again(mesh, second, ["join"])
    mesh.whole(3)
    taken = third.post("/v1/feedback", {"request_id": request, "score": 1.0})
    assert taken.status_code == 200, taken.text
    until_equal("the late judgement everywhere", 1, [first, back, third])
    assert next(iter(totals(first).values()))["quality"]["version"] == 1
    twice = first.post("/v1/feedback", {"request_id": request, "score": 0.0})
    assert twice.status_code == 409, twice.text


def test_a_killed_node_takes_nothing_with_it_and_goes_on_where_it_was(mesh):
    _, first, second, third = three(mesh)
    give(first, first, 2, 1.0)
    give(second, second, 4, 0.5)
    until_equal("six judgements on all nodes", 6, [first, second, third])
    second.kill()
    kit.until("n2 out of the view", lambda: first.alive_nodes() == {"n1", "n3"})
    assert scored(first) == 6 and scored(third) == 6, "what the dead learnt stays"
    back = again(mesh, second, ["join"])
    assert scored(back) >= 4, "its own are on its disk before others hear of them"
    # What others told within the last second may not have been; it is asked for again.
    kit.until("what the others know", lambda: scored(back) == 6)
    mesh.whole(3)
    give(back, back, 1, 0.5)
    until_equal("the seventh on top, not anew", 7, [first, back, third])


def test_a_fourth_node_knows_what_the_mesh_knows_also_of_the_dead(mesh):
    _, first, second, third = three(mesh)
    give(second, second, 3, 1.0)
    give(first, first, 2, 0.0)
    until_equal("five judgements on all nodes", 5, [first, second, third])
    second.kill()
    kit.until("n2 out of the view", lambda: first.alive_nodes() == {"n1", "n3"})
    started = time.monotonic()
    fourth = mesh.join("n4")
    until_equal("the same totals on the fourth", 5, [first, third, fourth])
    assert time.monotonic() - started <= 10
    row = next(iter(totals(fourth).values()))
    assert abs(row["mean_reward"] - 0.6) <= 1e-4


def test_a_lone_node_restarts_with_what_the_mesh_knew(mesh):
    _, first, second, third = three(mesh)
    give(second, second, 3, 1.0)
    until_equal("three judgements on all nodes", 3, [first, second, third])
    time.sleep(1.5)  # what others learnt is written once a second
    for node in (first, second, third):
        node.kill()
    back = again(mesh, third, ["join"])
    assert scored(back) == 3
