"""The unchanged `openai` package against each node of a mesh that runs a real model."""

import asyncio

import openai
import pytest

QUESTION = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(params=[0, 1, 2])
def client(request, dev):
    with openai.OpenAI(base_url=dev.urls[request.param] + "/v1", api_key=dev.key, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def model(dev):
    return dev.model()


def test_models_are_listed(client, model):
    assert model in [listed.id for listed in client.models.list()]
    assert client.models.retrieve(model).id == model


def test_an_answer(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=16)
    assert answer.choices[0].message.content.strip()
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= 16


def test_a_stream_with_usage(client, model):
    stream = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=16, stream=True, stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    finish = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert text.strip()
    assert len(finish) == 1
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_logprobs(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=5, logprobs=True, top_logprobs=3, temperature=0,
    )
    tokens = answer.choices[0].logprobs.content
    assert 0 < len(tokens) <= 5
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.logprob <= token.top_logprobs[0].logprob + 1e-6


def test_a_limit_ends_with_length(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=3)
    assert answer.usage.completion_tokens <= 3
    assert answer.choices[0].finish_reason == "length"


def test_errors_have_their_classes(client, model, dev):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=model, messages=[])
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-shoal-wrong").models.list()


def test_an_abandoned_stream_does_not_disturb_the_next_request(client, model):
    stream = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=200, stream=True)
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(model=model, messages=QUESTION, max_tokens=4).choices


def test_async_answers_and_streams(dev, model):
    async def ask(url):
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=dev.key, max_retries=0, timeout=60) as client:
            answer = await client.chat.completions.create(model=model, messages=QUESTION, max_tokens=6)
            stream = await client.chat.completions.create(model=model, messages=QUESTION, max_tokens=6, stream=True)
            finish = [c.choices[0].finish_reason async for c in stream if c.choices and c.choices[0].finish_reason]
            return answer.choices[0].message.content, finish

    async def all_of_them():
        return await asyncio.gather(*(ask(url) for url in dev.urls))

    for text, finish in asyncio.run(all_of_them()):
        assert text
        assert len(finish) == 1
