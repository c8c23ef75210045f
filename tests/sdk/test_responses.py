"""The Responses API through the unchanged `openai` and `openai-agents` packages, over a mesh of stub devices."""

import asyncio
import json
import uuid

import agents
import openai
import pydantic
import pytest

import kit

WEATHER = {
    "type": "function", "name": "weather", "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
                   "additionalProperties": False},
}


class Colour(pydantic.BaseModel):
    name: str
    warm: bool


def client_of(node):
    return openai.OpenAI(base_url=node.url + "/v1", api_key=node.key, max_retries=0, timeout=kit.PATIENCE_S)


@pytest.fixture
def client(trio):
    with client_of(trio.nodes[0]) as client:
        yield client


def question(script=""):
    # Equal prompts from one key in a row would count as the same question asked again.
    return f"{uuid.uuid4()} [[stub {script}]]"


def test_an_answer(client):
    answer = client.responses.create(model="stub-a", input=question("n=6"), instructions="Be brief.", temperature=0.5)
    assert answer.status == "completed" and len(answer.output_text.split()) == 6
    assert answer.usage.output_tokens == 6 and answer.usage.total_tokens == answer.usage.input_tokens + 6
    assert (answer.instructions, answer.temperature, answer.store) == ("Be brief.", 0.5, True)
    assert answer.shoal_metadata["target"] in ("local", "peer")


def test_a_limit_makes_it_incomplete(client):
    answer = client.responses.create(model="stub-a", input=question("n=30"), max_output_tokens=4)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_stream(client):
    with client.responses.stream(model="stub-a", input=question("n=8")) as stream:
        events = list(stream)
        final = stream.get_final_response()
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == final.output_text and len(text.split()) == 8
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert final.usage.output_tokens == 8 and final.shoal_metadata["model"] == "stub-a"


def test_a_cut_stream_fails(client):
    events = list(client.responses.create(model="stub-a", input=question("n=40 cut=20"), stream=True))
    assert events[-1].type == "response.failed" and events[-1].response.error.code == "upstream_interrupted"


def test_structured_output(client):
    script = question('say={"name":"red","warm":true}')
    assert client.responses.parse(model="stub-a", input=script, text_format=Colour).output_parsed == Colour(name="red", warm=True)


def test_log_probabilities(client):
    answer = client.responses.create(
        model="stub-a", input=question("n=3"), include=["message.output_text.logprobs"], top_logprobs=2)
    tokens = answer.output[0].content[0].logprobs
    assert len(tokens) == 3 and all(len(token.top_logprobs) == 2 for token in tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_a_loop_of_tools(client, stream):
    asked = [{"role": "user", "content": question()}]
    options = {"model": "stub-a", "tools": [WEATHER], "tool_choice": "required", "store": False}
    if stream:
        with client.responses.stream(input=asked, **options) as events:
            first = events.get_final_response()
    else:
        first = client.responses.create(input=asked, **options)
    call = first.output[0]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "stub"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    answer = client.responses.create(
        model="stub-a", tools=[WEATHER], input=[*asked, call.model_dump(exclude={"parsed_arguments"}), result])
    assert answer.output_text


def test_free_text_for_a_tool(client):
    tool = {"type": "custom", "name": "note", "description": "Takes a note."}
    call = client.responses.create(model="stub-a", input=question(), tools=[tool], tool_choice="required").output[0]
    assert (call.type, call.name, call.input) == ("custom_tool_call", "note", "stub")


def test_a_conversation_goes_on_at_any_node(trio):
    with client_of(trio.nodes[0]) as first, client_of(trio.nodes[1]) as second:
        tag = uuid.uuid4().hex
        begun = first.responses.create(model="stub-a", input=question("n=5"))
        assert second.responses.retrieve(begun.id).output_text == begun.output_text
        further = second.responses.create(
            model="stub-a", previous_response_id=begun.id, input=question(f"n=5 tag={tag}"))
        # 4 tokens for each message and one for each word: the stub counts what it was sent.
        assert further.usage.input_tokens > begun.usage.input_tokens + 5
        items = second.responses.input_items.list(further.id, order="asc").data
        assert [item.role for item in items] == ["user", "assistant", "user"]
        second.responses.delete(begun.id)
        with pytest.raises(openai.NotFoundError):
            first.responses.retrieve(begun.id)
        with pytest.raises(openai.NotFoundError):
            first.responses.create(model="stub-a", previous_response_id=begun.id, input="again")


def test_errors_have_their_classes(client):
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.create(model="stub-a", input="x", background=True)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="no-such-model", input="x")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-shoal-wrong").responses.create(model="stub-a", input="x")


def test_a_conversation_outlives_the_node(trio, tmp_path):
    stub = next(iter(trio.stubs.values()))
    node = kit.Node(tmp_path / "alone", "alone", ["up"], more=["--device", stub.url])
    try:
        node.ready()
        kit.until("the model is listed", lambda: stub.model in node.models())
        with client_of(node) as client:
            begun = client.responses.create(model=stub.model, input=question("n=5"))
        node.stop()
        node = kit.Node(node.folder, "alone", ["up"], key=node.key, data_dir=node.data_dir, more=["--device", stub.url])
        node.ready()
        with client_of(node) as client:
            assert client.responses.retrieve(begun.id).output_text == begun.output_text
    finally:
        node.stop()


def test_agents_run_their_tools(trio):
    called = []

    @agents.function_tool
    def weather(city: str) -> str:
        """Tells the weather."""
        called.append(city)
        return "rain"

    async def run():
        agents.set_tracing_disabled(True)
        async with openai.AsyncOpenAI(base_url=trio.nodes[2].url + "/v1", api_key=trio.nodes[2].key) as client:
            model = agents.OpenAIResponsesModel(model="stub-a", openai_client=client)
            agent = agents.Agent(
                name="forecaster", instructions="Be brief.", model=model, tools=[weather],
                model_settings=agents.ModelSettings(tool_choice="required"))
            whole = await agents.Runner.run(agent, question())
            streamed = agents.Runner.run_streamed(agent, question())
            kinds = [event.type async for event in streamed.stream_events()]
            return whole.final_output, streamed.final_output, kinds

    whole, streamed, kinds = asyncio.run(run())
    assert whole and streamed and "raw_response_event" in kinds
    assert called == ["stub", "stub"]
