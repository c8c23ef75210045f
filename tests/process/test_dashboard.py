"""The dashboard, as a browser without a script meets it: the printed link, the cookie, the page, the events."""

import json
import re
import signal
import subprocess

import httpx
import kit

LINK = re.compile(r"dashboard\s+(http://\S+/dashboard\?code=[0-9a-f]{32})")


def printed_link(node):
    found, _ = kit.until("a link printed", lambda: LINK.search(node.text()), 10)
    return found.group(1)


def browser():
    return httpx.Client(timeout=10, follow_redirects=True)


def test_the_printed_link_opens_the_page_once(mesh):
    stub = mesh.stub("d1", model="stub-a")
    node = mesh.first("n1", more=["--device", stub.url])
    mesh.everywhere("stub-a")
    answer = node.chat("stub-a", "a secret prompt")
    assert answer.status_code == 200
    request_id = answer.headers["x-request-id"]

    link = printed_link(node)
    with browser() as visitor, browser() as second:
        out = visitor.get(node.url + "/dashboard")
        assert out.status_code == 401 and "shoal dashboard" in out.text and "stub-a" not in out.text

        page = visitor.get(link)
        assert page.status_code == 200 and str(page.url).endswith("/dashboard"), "the code leaves the address"
        flags = page.history[0].headers["set-cookie"].lower()
        assert "httponly" in flags and "samesite=strict" in flags
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        for shown in ("stub-a", "n1", "alive", "Devices"):
            assert shown in page.text, shown
        kit.until("the request on the page", lambda: request_id in visitor.get(node.url + "/dashboard").text)

        own = visitor.get(f"{node.url}/dashboard/requests/{request_id}")
        assert own.status_code == 200 and request_id in own.text and "completed" in own.text
        assert "a secret prompt" not in own.text
        for path in ("style.css", "script.js", "icon.svg"):
            assert visitor.get(f"{node.url}/dashboard/{path}").status_code == 200

        assert second.get(link).status_code == 401, "the link works once"
        fresh = subprocess.run([kit.SHOAL, "dashboard", "--data-dir", node.data_dir], capture_output=True,
                               text=True, env=kit.clean_env(), timeout=kit.PATIENCE_S, check=True).stdout.strip()
        assert second.get(fresh).status_code == 200


def test_events_bring_what_changes_and_end_with_the_node(mesh):
    stub = mesh.stub("d1", model="stub-a")
    node = mesh.first("n1", more=["--device", stub.url])
    mesh.everywhere("stub-a")
    with browser() as visitor:
        visitor.get(printed_link(node))
        with visitor.stream("GET", node.url + "/dashboard/events", timeout=kit.PATIENCE_S) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            events = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
            assert "stub-a" in next(events)["models"]
            request_id = node.chat("stub-a").headers["x-request-id"]
            assert any(request_id in event.get("requests", "") for event in events)
            node.child.send_signal(signal.SIGTERM)
            for _ in events:
                pass
    node.child.wait(timeout=20)
