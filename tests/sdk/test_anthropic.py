"""The unchanged `anthropic` package against nodes of a mesh: of stubs, and with the real model where there is one."""

import asyncio
import base64
import itertools

import anthropic
import httpx
import pytest

import kit

PNG = base64.b64encode(bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360000002000001e221bc330000"
    "000049454e44ae426082")).decode()
WEATHER = {"name": "weather", "description": "The weather in a city.",
           "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
NUMBERS = itertools.count()


def user(text):
    """A prompt that no other test sends: one that is asked again counts as a complaint."""
    return [{"role": "user", "content": f"{text} ({next(NUMBERS)})"}]


@pytest.fixture(params=[0, 1, 2])
def node(request, trio):
    return trio.nodes[request.param]


@pytest.fixture
def client(node):
    with anthropic.Anthropic(base_url=node.url, api_key=node.key, max_retries=0, timeout=60) as client:
        yield client


def test_a_message(client):
    message = client.messages.create(
        model="stub-a", max_tokens=20, system="Be brief.", messages=user("A word? [[stub n=5]]"))
    assert message.id.startswith("msg_") and message.role == "assistant" and message.model == "stub-a"
    assert [block.type for block in message.content] == ["text"]
    assert len(message.content[0].text.split()) == 5
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == 5 and message.usage.input_tokens > 5
    assert message.shoal_metadata["model"] == "stub-a" and message.shoal_metadata["target"] in ("local", "peer")


def test_a_limit_ends_with_max_tokens(client):
    message = client.messages.create(model="stub-a", max_tokens=3, messages=user("Many words [[stub n=9]]"))
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 3)


def test_a_stream(client):
    with client.messages.stream(model="stub-a", max_tokens=20, messages=user("A stream [[stub n=7]]")) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert len(text.split()) == 7 and message.content[0].text == text
    assert message.stop_reason == "end_turn" and message.usage.output_tokens == 7


def test_raw_events_carry_the_metadata(client):
    events = list(client.messages.create(
        model="stub-a", max_tokens=20, stream=True, messages=user("Raw events [[stub n=2]]")))
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert events[0].message.usage.input_tokens > 0
    assert events[-2].shoal_metadata["model"] == "stub-a"


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_taken(client, stream):
    asked = user("Is it raining?")
    how = {"model": "stub-a", "max_tokens": 200, "tools": [WEATHER]}
    choice = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    if stream:
        with client.messages.stream(messages=asked, tool_choice=choice, **how) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(messages=asked, tool_choice=choice, **how)
    assert message.stop_reason == "tool_use"
    call = message.content[-1]
    assert (call.type, call.name, call.input) == ("tool_use", "weather", {"city": "stub"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [
        {"type": "text", "text": "sunny"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}]}
    answer = client.messages.create(**how, messages=[
        *asked, {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result, {"type": "text", "text": f"Go on [[stub n=4]] {next(NUMBERS)}"}]}])
    assert answer.stop_reason == "end_turn" and len(answer.content[0].text.split()) == 4


def test_an_image_is_passed_on(trio, client):
    tag = f"image{next(NUMBERS)}"
    message = client.messages.create(model="stub-local", max_tokens=9, messages=[{"role": "user", "content": [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        {"type": "text", "text": f"What is it? [[stub n=2 tag={tag}]]"}]}])
    assert message.stop_reason == "end_turn"
    assert len(trio.stubs["local"].tagged(tag)) == 1


def test_what_agents_send_is_survived_and_said(client):
    """The fields of Claude Code's requests, by the beta client, which asks at `?beta=true`."""
    raw = client.beta.messages.with_raw_response.create(
        model="claude-sonnet-next", max_tokens=64, betas=["context-management-2025-06-27"],
        thinking={"type": "enabled", "budget_tokens": 1024},
        system=[{"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}}],
        metadata={"user_id": "user_" + "0" * 120}, extra_headers={"x-claude-code-session-id": "s"},
        tools=[WEATHER, {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}],
        messages=[{"role": "user", "content": [
            {"type": "text", "text": f"Hello [[stub n=3]] {next(NUMBERS)}", "cache_control": {"type": "ephemeral"}}]}])
    assert raw.headers["request-id"] == raw.headers["x-request-id"]
    warnings = raw.headers["x-shoal-warnings"]
    assert "thinking" in warnings and "web_search" in warnings
    message = raw.parse()
    assert message.content[0].text and message.model in ("stub-a", "stub-local")


def test_counting(client):
    def count(**more):
        return client.messages.count_tokens(
            model="claude-sonnet-next", messages=[{"role": "user", "content": "Hello, world"}], **more).input_tokens
    bare = count()
    assert bare == 10
    assert count(system="Be brief.") > bare
    assert count(tools=[WEATHER]) > bare + 20


def test_models(client):
    listed = list(client.models.list())
    assert {"stub-a", "stub-local", "auto"} <= {model.id for model in listed}
    assert [model.id for model in client.models.list(limit=1)] == [model.id for model in listed]
    one = client.models.retrieve("stub-a")
    assert (one.id, one.type, one.display_name) == ("stub-a", "model", "stub-a")
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("nobody")


def test_errors_have_their_classes(client):
    def ask(**more):
        how = {"model": "stub-a", "max_tokens": 5, "messages": user("Hm [[stub n=2]]"), **more}
        return client.messages.create(**how)
    with pytest.raises(anthropic.NotFoundError) as unknown:
        ask(model="no-such-model")
    assert unknown.value.body["error"]["type"] == "not_found_error" and unknown.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="messages"):
        ask(messages=[])
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        ask(max_tokens=0)
    with pytest.raises(anthropic.BadRequestError, match="only"):
        ask(tools=[{"type": "web_search_20250305", "name": "web_search"}])
    with pytest.raises(anthropic.RequestTooLargeError):
        ask(system="x" * (40 << 20))
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="sk-shoal-wrong").messages.create(
            model="stub-a", max_tokens=5, messages=user("Who am I?"))
    with pytest.raises(anthropic.InternalServerError) as down:
        ask(messages=user("[[stub err=503]]"))
    assert down.value.status_code in (502, 503)


def test_a_cut_stream_raises_and_never_ends_well(client):
    kinds = []
    with pytest.raises(anthropic.APIStatusError) as cut:
        for event in client.messages.create(
            model="stub-local", max_tokens=50, stream=True, messages=user("[[stub n=9 cut=3]]"),
        ):
            kinds.append(event.type)
    assert "content_block_delta" in kinds and "message_stop" not in kinds
    assert cut.value.body["error"]["code"] == "upstream_interrupted"


def test_an_abandoned_stream_stops_the_work(trio, client):
    tag = f"left{next(NUMBERS)}"
    stream = client.messages.create(
        model="stub-local", max_tokens=900, stream=True, messages=user(f"[[stub n=500 itl=1000 tag={tag}]]"))
    next(iter(stream))
    stream.close()
    kit.until("client_gone", lambda: trio.stubs["local"].tagged(tag)[0]["end"] == "client_gone")


def test_async_messages_and_streams(trio):
    async def ask(node):
        async with anthropic.AsyncAnthropic(
            base_url=node.url, auth_token=node.key, api_key=None, max_retries=0, timeout=60,
        ) as client:
            whole = await client.messages.create(
                model="stub-a", max_tokens=20, messages=user("Async [[stub n=3]]"))
            async with client.messages.stream(
                model="stub-a", max_tokens=20, messages=user("Async stream [[stub n=3]]"),
            ) as stream:
                texts = [text async for text in stream.text_stream]
            return whole.content[0].text, "".join(texts)

    async def all_of_them():
        return await asyncio.gather(*(ask(node) for node in trio.nodes))

    for whole, streamed in asyncio.run(all_of_them()):
        assert len(whole.split()) == len(streamed.split()) == 3


def test_a_request_is_found_by_its_messages_id(trio, client):
    message = client.messages.create(model="stub-a", max_tokens=9, messages=user("Find me [[stub n=2]]"))
    found = httpx.get(f"{trio.nodes[0].url}/shoal/v1/requests/{message.id.replace('msg_', 'req_')}",
                      headers=trio.nodes[0].auth(), timeout=10).json()
    assert found["completion_tokens"] == 2


def test_the_real_model_answers_whole_and_streamed(dev):
    model = dev.model()
    with anthropic.Anthropic(base_url=dev.urls[0], api_key=dev.key, max_retries=0, timeout=60) as client:
        message = client.messages.create(model=model, max_tokens=16, messages=user("Name three colours."))
        assert message.content[0].text.strip() and message.stop_reason in ("end_turn", "max_tokens")
        assert 0 < message.usage.output_tokens <= 16
        with client.messages.stream(model=model, max_tokens=16, messages=user("Name three animals.")) as stream:
            text = "".join(stream.text_stream)
            assert text.strip() and 0 < stream.get_final_message().usage.output_tokens <= 16
