"""LangChain with its OpenAI models; images come from the tool of its responses."""

from typing import Any

from cells import AND_NOW, CHANGE, HELLO, MODEL, PROMPT, QUESTION, URL, run, uri_of
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

HERE: dict[str, Any] = {"model": MODEL, "base_url": URL, "api_key": "none", "max_retries": 0}
chat = ChatOpenAI(**HERE)
responses = ChatOpenAI(use_responses_api=True, **HERE)
artist = responses.bind_tools([{"type": "image_generation"}])


def image_of(message: Any) -> Any:
    return next(b["base64"] for b in message.content_blocks if b["type"] == "image")


def draw() -> Any:
    return image_of(artist.invoke(PROMPT))


def edit() -> Any:
    drawn = artist.invoke(PROMPT)
    return image_of(artist.invoke([HumanMessage(PROMPT), drawn, HumanMessage(CHANGE)]))


def ask() -> Any:
    return chat.invoke(HELLO).content


def stream() -> Any:
    return "".join(chunk.content for chunk in chat.stream(HELLO))


def look() -> Any:
    parts: list[Any] = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": uri_of(draw())}},
    ]
    return chat.invoke([HumanMessage(parts)]).content


def talk() -> Any:
    said = chat.invoke(HELLO)
    return chat.invoke([HumanMessage(HELLO), said, HumanMessage(AND_NOW)]).content


def sample() -> Any:
    settings: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "seed": 3, "max_tokens": 20}
    warm = ChatOpenAI(
        stop=["\n\n"], n=1, frequency_penalty=0, presence_penalty=0, **settings, **HERE
    )
    return warm.invoke([SystemMessage("Be short."), HumanMessage(HELLO)]).content


def respond() -> Any:
    return responses.invoke(HELLO).text


def respond_streamed() -> Any:
    return "".join(chunk.text for chunk in responses.stream(HELLO))


def respond_drawn() -> Any:
    return draw()


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
