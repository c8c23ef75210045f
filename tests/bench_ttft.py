#!/usr/bin/env python3
"""Prints the time to the first token of a stub asked directly and through a node beside it, at 20 ms a token.

The first, second and third request of a connection are told apart: a proxy that leaves Nagle's algorithm on loses 40 ms
from the second on. It asserts nothing, since a busy machine adds milliseconds of its own; compare the lines of one run.

    SHOAL_BIN=… SHOAL_LOADTEST_BIN=… python tests/bench_ttft.py [rounds]
"""

import pathlib
import statistics
import sys
import tempfile
import time

import httpx

import kit


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
        for _ in range(rounds):
            for name, base, headers in (("direct", stub.url, {}), ("node", node.url, node.auth())):
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
