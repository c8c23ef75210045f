"""The main job with nothing else installed: `shoal dev` and a real model, from every port."""

import time

import httpx
import pytest

import kit
from conftest import need

QUESTION = [{"role": "user", "content": "Name three colours."}]


def ask(dev, url, **more):
    body = {"model": dev.model(), "messages": QUESTION, "max_tokens": 16, **more}
    return httpx.post(url + "/v1/chat/completions", headers=dev.auth(), json=body, timeout=kit.PATIENCE_S)


def test_the_first_answer_comes_within_15_seconds_of_the_start(tmp_path):
    need(kit.SHOAL, "shoal", "set SHOAL_BIN")
    need(kit.MODEL, "the real model", "set SHOAL_TEST_MODEL to a GGUF file")
    dev = kit.Dev(tmp_path)
    try:
        assert ask(dev, dev.urls[0]).status_code == 200
        assert time.monotonic() - dev.started <= 15
        pids = [node["pid"] for node in dev.info["nodes"]] + [device["pid"] for device in dev.info["devices"]]
        assert len(set(pids)) == 6, "each node and device is a process of its own"
    finally:
        dev.stop()

    def all_gone():
        return not any(is_running(pid) for pid in pids)
    kit.until("every child ended with its parent", all_gone, within_s=15)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("port", [0, 1, 2])
def test_every_port_answers_with_generated_text(dev, port):
    answer = ask(dev, dev.urls[port])
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["choices"][0]["message"]["content"].strip()
    assert body["usage"]["completion_tokens"] > 0
    assert body["shoal_metadata"]["target"] in ("local", "peer")
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["x-shoal-upstream"]


@pytest.mark.parametrize("port", [0, 1, 2])
def test_every_port_streams_to_a_finish_reason_and_done(dev, port):
    answer = ask(dev, dev.urls[port], stream=True)
    payloads = kit.events(answer.text)
    assert payloads[-1] == "[DONE]"
    assert sum('"finish_reason":"' in payload.replace(" ", "") for payload in payloads) == 1


def test_two_prompts_get_two_answers(dev):
    def text(prompt):
        body = {"model": dev.model(), "messages": [{"role": "user", "content": prompt}], "max_tokens": 24, "temperature": 0}
        answer = httpx.post(dev.urls[0] + "/v1/chat/completions", headers=dev.auth(), json=body, timeout=kit.PATIENCE_S)
        return answer.json()["choices"][0]["message"]["content"]
    assert text("Count from one to five.") != text("What is the capital of France?")


def test_the_base_url_works_without_v1(dev):
    body = {"model": dev.model(), "messages": QUESTION, "max_tokens": 4}
    answer = httpx.post(dev.urls[0] + "/chat/completions", headers=dev.auth(), json=body, timeout=kit.PATIENCE_S)
    assert answer.status_code == 200


def test_a_stream_that_is_left_frees_the_device_at_once(dev):
    def busy():
        answers = [httpx.get(url + "/shoal/v1/devices", headers=dev.auth(), timeout=10).json() for url in dev.urls]
        return sum(device["in_flight"] for answer in answers for device in answer["devices"])
    kit.until("idle devices", lambda: busy() == 0)
    story = [{"role": "user", "content": "Write a very long fairy tale with many chapters."}]
    body = {"model": dev.model(), "messages": story, "max_tokens": 1500, "stream": True, "temperature": 0}
    with httpx.stream("POST", dev.urls[1] + "/v1/chat/completions", headers=dev.auth(), json=body, timeout=60) as answer:
        lines = answer.iter_lines()  # kept: dropping it would close the connection
        assert next(lines).startswith("data: ")
        kit.until("a busy device", busy)
    kit.until("idle devices again", lambda: busy() == 0, within_s=5)
    newest = httpx.get(dev.urls[1] + "/shoal/v1/requests?limit=1", headers=dev.auth(), timeout=10).json()["requests"][0]
    assert newest["outcome"] == "cancelled", newest
