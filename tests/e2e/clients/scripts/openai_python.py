"""OpenAI's client for Python."""

from typing import Any

from cells import AND_NOW, CHANGE, HELLO, MODEL, PROMPT, QUESTION, URL, file_of, run, uri_of
from openai import OpenAI

client = OpenAI(base_url=URL, api_key="none", max_retries=0)
turns: list[Any] = [{"role": "user", "content": HELLO}]
TOOLS: list[Any] = [{"type": "image_generation"}]


def draw() -> Any:
    return client.images.generate(model=MODEL, prompt=PROMPT, n=1).data[0].b64_json


def edit() -> Any:
    return client.images.edit(model=MODEL, image=file_of(draw()), prompt=CHANGE).data[0].b64_json


def ask() -> Any:
    return client.chat.completions.create(model=MODEL, messages=turns).choices[0].message.content


def stream() -> Any:
    options = {"include_usage": True}
    chunks = client.chat.completions.create(
        model=MODEL, messages=turns, stream=True, stream_options=options
    )
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def look() -> Any:
    parts = [
        {"type": "image_url", "image_url": {"url": uri_of(draw()), "detail": "low"}},
        {"type": "text", "text": QUESTION},
    ]
    asked: list[Any] = [{"role": "user", "content": parts}]
    return client.chat.completions.create(model=MODEL, messages=asked).choices[0].message.content


def talk() -> Any:
    said = client.chat.completions.create(model=MODEL, messages=turns).choices[0].message
    longer = [*turns, said.model_dump(), {"role": "user", "content": AND_NOW}]
    return client.chat.completions.create(model=MODEL, messages=longer).choices[0].message.content


def sample() -> Any:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "developer", "content": "Be short."}, *turns],
        temperature=0.7,
        top_p=0.9,
        seed=3,
        stop=["\n\n"],
        max_completion_tokens=20,
        frequency_penalty=0,
        presence_penalty=0,
        response_format={"type": "text"},
        store=False,
    )
    return answer.choices[0].message.content


def respond() -> Any:
    return client.responses.create(model=MODEL, input=HELLO).output_text


def respond_streamed() -> Any:
    with client.responses.stream(model=MODEL, input=HELLO) as events:
        said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        return said if said == events.get_final_response().output_text else "two texts"


def respond_drawn() -> Any:
    drawn = client.responses.create(model=MODEL, input=PROMPT, tools=TOOLS)
    longer: list[Any] = [
        {"role": "user", "content": PROMPT},
        *(item.model_dump() for item in drawn.output),
        {"role": "user", "content": CHANGE},
    ]
    return client.responses.create(model=MODEL, input=longer, tools=TOOLS).output[0].result


run(
    draw=draw,
    ask=ask,
    stream=stream,
    edit=edit,
    look=look,
    talk=talk,
    sample=sample,
    respond=respond,
    respond_streamed=respond_streamed,
    respond_drawn=respond_drawn,
)
