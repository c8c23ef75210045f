"""Frameworks and gateways that people put between their agent and a model, unchanged, against a node."""

import os

import pytest

import kit

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("LITELLM_TELEMETRY", "False")

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    if not (kit.SHOAL and kit.LOADTEST):
        pytest.skip("shoal or shoal-loadtest is missing: set SHOAL_BIN and SHOAL_LOADTEST_BIN")
    folder = tmp_path_factory.mktemp("frameworks")
    stub = kit.Stub(folder / "stub")
    node = kit.Node(folder / "node", "n1", ["up"], more=["--device", stub.url])
    node.ready()
    kit.until("the model is listed", lambda: stub.model in node.models())
    yield node
    node.stop()
    stub.stop()


def test_langchain_invokes_streams_and_calls_tools(node):
    from langchain_openai import ChatOpenAI

    llm = ChatOpenAI(model="stub-a", base_url=node.url + "/v1", api_key=node.key, max_retries=0, timeout=60)
    answer = llm.invoke("Name a lake. [[stub n=5]]")
    assert len(answer.content.split()) == 5 and answer.usage_metadata["output_tokens"] == 5
    parts = list(llm.stream("Name a sea. [[stub n=6]]"))
    assert len("".join(part.content for part in parts).split()) == 6
    tool = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": WEATHER}}
    called = llm.bind_tools([tool]).invoke("Rain in Bergen? [[stub tool=1]]")
    assert called.tool_calls[0]["name"] == "weather" and called.tool_calls[0]["args"] == {"city": "stub"}


def test_langchain_reads_structured_output(node):
    from langchain_openai import ChatOpenAI

    llm = ChatOpenAI(model="stub-a", base_url=node.url + "/v1", api_key=node.key, max_retries=0, timeout=60)
    schema = {"title": "Lake", "description": "d", **WEATHER, "additionalProperties": False}
    found = llm.with_structured_output(schema, method="json_schema").invoke('Which city? [[stub say={"city":_"Oslo"}]]')
    assert found == {"city": "Oslo"}


@pytest.mark.parametrize("model, base", [
    ("openai/stub-a", "/v1"), ("anthropic/stub-a", ""), ("ollama_chat/stub-a", "")])
def test_litellm_is_content_whichever_api_it_speaks(node, model, base):
    import litellm

    def ask(prompt, **more):
        return litellm.completion(
            model=model, api_base=node.url + base, api_key=node.key, max_tokens=64, num_retries=0, timeout=60,
            messages=[{"role": "user", "content": f"{prompt} ({model})"}], **more)

    answer = ask("Name a hill. [[stub n=5]]")
    assert len(answer.choices[0].message.content.split()) == 5 and answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 5
    parts = list(ask("Name a valley. [[stub n=6]]", stream=True))
    assert len("".join(part.choices[0].delta.content or "" for part in parts).split()) == 6
    tool = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": WEATHER}}
    called = ask("Snow in Turku? [[stub tool=1]]", tools=[tool])
    assert called.choices[0].message.tool_calls[0].function.name == "weather"


def test_litellm_tells_an_unknown_model_as_its_own_error(node):
    import litellm

    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/none", api_base=node.url + "/v1", api_key=node.key, num_retries=0,
                           messages=[{"role": "user", "content": "Name an island."}])
