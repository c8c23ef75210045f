#!/usr/bin/env python3
"""Prints the time to the first token of a stub asked directly, through nginx and through a node, at 20 ms a token.

The first, second and third request of a connection are told apart: a proxy that leaves Nagle's algorithm on loses 40 ms
from the second on. nginx (where it is installed, plain HTTP, keep-alive, no buffering) is what a proxy costs that reads
nothing. It asserts nothing, since a busy machine adds milliseconds of its own; compare the lines of one run.

    SHOAL_BIN=… SHOAL_LOADTEST_BIN=… python tests/bench_ttft.py [rounds]
"""

import contextlib
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse

import httpx

import kit

NGINX = """
worker_processes 1; daemon off; pid nginx.pid; error_log stderr error;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  upstream stub {{ server {stub}; keepalive 16; }}
  server {{ listen 127.0.0.1:{port};
    location / {{ proxy_pass http://stub; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }}
}}
"""


@contextlib.contextmanager
def nginx(folder, stub):
    """Yields the address of an nginx before the stub, or None where there is none."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        print("nginx is not installed: left out")
        yield None
        return
    folder.mkdir()
    port = kit.free_port()
    (folder / "nginx.conf").write_text(NGINX.format(stub=urllib.parse.urlparse(stub).netloc, port=port))
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(folder / "nginx.conf")])
    base = f"http://127.0.0.1:{port}"
    try:
        kit.until("nginx answers", lambda: answers(base))
        yield base
    finally:
        process.terminate()
        process.wait(10)


def answers(base):
    try:
        return httpx.get(base + "/v1/models").status_code == 200
    except httpx.HTTPError:
        return False


def first_token_ms(client, base, headers, number):
    body = {"model": "stub-a", "stream": True, "messages": [
        {"role": "user", "content": f"question {number} [[stub n=8 ttft=0 itl=20]]"}]}
    start = time.perf_counter()
    first = None
    with client.stream("POST", base + "/v1/chat/completions", json=body, headers=headers) as answer:
        for line in answer.iter_lines():
            if first is None and line.startswith("data: {") and kit.json.loads(line[6:])["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - start
    return first * 1e3


def main(rounds):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        stub = kit.Stub(folder / "stub")
        node = kit.Node(folder / "node", "n1", ["up"], more=["--device", stub.url])
        node.ready()
        kit.until("the model is listed", lambda: stub.model in node.models())
        taken, number = {}, 0
        with nginx(folder / "nginx", stub.url) as proxy:
            ways = [("direct", stub.url, {}), ("nginx", proxy, {}), ("node", node.url, node.auth())]
            for _ in range(rounds):
                for name, base, headers in (way for way in ways if way[1]):
                    with httpx.Client(timeout=30) as client:
                        for place in ("first", "second", "third"):
                            number += 1
                            taken.setdefault((place, name), []).append(first_token_ms(client, base, headers, number))
        for (place, name), values in sorted(taken.items()):
            values.sort()
            print(f"{place:6} {name:6}  p50 {statistics.median(values):6.2f} ms  p90 {values[int(len(values) * 0.9)]:6.2f} ms")
        node.stop()
        stub.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
