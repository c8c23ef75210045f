"""Ollama's own API through the unchanged `ollama` package, over a mesh of stub devices."""

import asyncio
import json
import uuid

import ollama
import pytest

import kit

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells the weather.",
                 "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture
def client(trio):
    return ollama.Client(host=trio.nodes[0].url, headers=trio.nodes[0].auth(), timeout=kit.PATIENCE_S)


def ask(script=""):
    # Equal prompts from one key in a row would count as the same question asked again.
    return [{"role": "user", "content": f"{uuid.uuid4()} [[stub {script}]]"}]


def test_an_answer_and_a_stream(client):
    answer = client.chat(model="stub-a", messages=ask("n=6"), options={"temperature": 0.5, "num_ctx": 4096})
    assert len(answer.message.content.split()) == 6
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "stop", 6)
    assert answer.total_duration > 0 and answer.eval_duration > 0
    parts = list(client.chat(model="stub-a:latest", messages=ask("n=8"), stream=True))
    assert len("".join(part.message.content for part in parts).split()) == 8
    assert [part.done for part in parts].count(True) == 1 and parts[-1].done and parts[-1].eval_count == 8


def test_a_limit(client):
    answer = client.chat(model="stub-a", messages=ask("n=30"), options={"num_predict": 4})
    assert (answer.done_reason, answer.eval_count) == ("length", 4)


def test_generate(client):
    prompt = ask("n=5")[0]["content"]
    assert len(client.generate(model="stub-a", prompt=prompt, system="Be brief.").response.split()) == 5
    parts = list(client.generate(model="stub-a", prompt=ask("n=7")[0]["content"], stream=True))
    assert len("".join(part.response for part in parts).split()) == 7
    assert client.generate(model="stub-a").done_reason == "load"


@pytest.mark.parametrize("stream", [False, True])
def test_a_loop_of_tools(client, stream):
    messages = ask("tool=1")
    answer = client.chat(model="stub-a", messages=messages, tools=[WEATHER], stream=stream)
    message = next(part.message for part in answer if part.message.tool_calls) if stream else answer.message
    call = message.tool_calls[0].function
    assert (call.name, call.arguments) == ("weather", {"city": "stub"})
    messages += [message, {"role": "tool", "tool_name": "weather", "content": "rain"}, *ask("n=3")]
    assert len(client.chat(model="stub-a", messages=messages, tools=[WEATHER]).message.content.split()) == 3


def test_a_format(client):
    answer = client.chat(model="stub-a", messages=ask('say={"a":1}'), format={"type": "object", "properties": {"a": {}}})
    assert json.loads(answer.message.content) == {"a": 1}


def test_models(client):
    assert {"stub-a", "auto"} <= {model.model for model in client.list().models}
    shown = client.show("stub-a")
    assert "completion" in shown.capabilities
    assert "stub-a" in {model.model for model in client.ps().models}


def test_errors(client, trio):
    with pytest.raises(ollama.ResponseError) as failed:
        client.chat(model="no-such-model", messages=ask())
    assert failed.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="devices"):
        client.pull("stub-a")
    with pytest.raises(ollama.ResponseError) as failed:
        ollama.Client(host=trio.nodes[0].url).list()
    assert failed.value.status_code == 401
    with pytest.raises(ollama.ResponseError):
        list(client.chat(model="stub-a", messages=ask("n=40 cut=20"), stream=True))


def test_the_asynchronous_client(trio):
    async def run():
        client = ollama.AsyncClient(host=trio.nodes[1].url, headers=trio.nodes[1].auth())
        parts = [part async for part in await client.chat(model="stub-a", messages=ask("n=4"), stream=True)]
        return "".join(part.message.content for part in parts)

    assert len(asyncio.run(run()).split()) == 4
