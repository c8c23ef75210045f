"""A request is found from every node, while it runs and after it ended, by API, command and dashboard."""

import json
import subprocess

import httpx

import kit


def explain(node, request_id):
    done = subprocess.run([kit.SHOAL, "explain", request_id, "--json", "--data-dir", node.data_dir], text=True,
                          capture_output=True, env=kit.clean_env(), timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def page(node, request_id):
    link = subprocess.run([kit.SHOAL, "dashboard", "--json", "--data-dir", node.data_dir], text=True,
                          capture_output=True, env=kit.clean_env(), timeout=60)
    with httpx.Client(follow_redirects=True, timeout=10) as browser:
        assert browser.get(json.loads(link.stdout)["url"]).status_code == 200
        return browser.get(f"{node.url}/dashboard/requests/{request_id}")


def begin(node, model):
    """Starts a stream of about a minute; returns it, its lines (which end it when forgotten) and its id once content came."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "[[stub n=600 itl=100]]"}]}
    stream = httpx.stream("POST", node.url + "/v1/chat/completions", headers=node.auth(), json=body, timeout=30)
    response = stream.__enter__()
    assert response.status_code == 200
    lines = response.iter_lines()
    while '"content":"w' not in next(lines):
        pass
    return stream, lines, response.headers["x-request-id"]


def test_a_running_request_is_found_from_every_node(trio):
    # `stub-local` is n1's own: n2 passes the request on, so both know of it, and n2, which accepted it, is the one to ask.
    for asked, model, target in ((trio.nodes[0], "stub-a", None), (trio.nodes[1], "stub-local", "peer")):
        stream, _lines, request_id = begin(asked, model)
        try:
            for node in trio.nodes:
                told = explain(node, request_id)
                assert (told["outcome"], told["node"], told["model"]) == ("in progress", asked.name, model), told
                assert told["upstream"] and told["duration_ms"] > 0 and told["ttft_ms"] is not None
                assert target in (None, told["target"])
                html = page(node, request_id)
                assert html.status_code == 200 and "in progress" in html.text and told["upstream"] in html.text
                assert "http-equiv" in html.text, "it reloads until the end"
        finally:
            stream.__exit__(None, None, None)
        for node in trio.nodes:
            kit.until("its end is told", lambda node=node: explain(node, request_id)["outcome"] == "cancelled")
            assert explain(node, request_id)["node"] == asked.name
            html = page(node, request_id)
            assert "cancelled" in html.text and "http-equiv" not in html.text


def test_an_unknown_request_is_told_as_such_by_every_node(trio):
    owner = trio.nodes[0].chat("stub-a", "hi").headers["x-request-id"].split("_")[1]
    for node in trio.nodes:
        for short in (owner, "00000000"):
            answer = node.get(f"/shoal/v1/requests/req_{short}_00000000000000000000000000000000")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
