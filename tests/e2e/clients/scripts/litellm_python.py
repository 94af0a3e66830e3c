"""LiteLLM, which many programs use to call models of different providers."""

from typing import Any

import litellm
from cells import AND_NOW, CHANGE, HELLO, MODEL, PROMPT, QUESTION, URL, file_of, run, uri_of

HERE: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": "none"}
turns: list[Any] = [{"role": "user", "content": HELLO}]
TOOLS: list[Any] = [{"type": "image_generation"}]


def draw() -> Any:
    return litellm.image_generation(prompt=PROMPT, n=1, **HERE).data[0].b64_json


def edit() -> Any:
    return litellm.image_edit(image=file_of(draw()), prompt=CHANGE, **HERE).data[0].b64_json


def ask() -> Any:
    return litellm.completion(messages=turns, **HERE).choices[0].message.content


def stream() -> Any:
    chunks = litellm.completion(messages=turns, stream=True, **HERE)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def look() -> Any:
    parts = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": uri_of(draw())},
    ]
    asked = [{"role": "user", "content": parts}]
    return litellm.completion(messages=asked, **HERE).choices[0].message.content


def talk() -> Any:
    said = litellm.completion(messages=turns, **HERE).choices[0].message
    for back in (said, said.model_dump()):
        longer = [*turns, back, {"role": "user", "content": AND_NOW}]
        answer = litellm.completion(messages=longer, **HERE).choices[0].message.content
    return answer


def sample() -> Any:
    answer = litellm.completion(
        messages=turns, temperature=0.7, top_p=0.9, seed=3, stop="\n\n", max_tokens=20, n=1, **HERE
    )
    return answer.choices[0].message.content


def respond() -> Any:
    return litellm.responses(input=HELLO, **HERE).output_text


def respond_streamed() -> Any:
    events = litellm.responses(input=HELLO, stream=True, **HERE)
    return "".join(e.delta for e in events if e.type == "response.output_text.delta")


def respond_drawn() -> Any:
    answer = litellm.responses(input=PROMPT, tools=TOOLS, **HERE)
    item = answer.output[0]
    return item["result"] if isinstance(item, dict) else item.result


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
