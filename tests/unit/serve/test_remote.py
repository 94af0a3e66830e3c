"""Remote images: URLs and addresses that are never fetched."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from blip3o.core.errors import UsageError
from blip3o.serve.http import image_reader
from blip3o.serve.http.image_reader import RemoteImages, is_public

PUBLIC = "93.184.216.34"


class FakeWeb(RemoteImages):
    """Answers without a network; records the addresses to which it would connect."""

    def __init__(self, answers: dict[str, Any], addresses: dict[str, list[str]]) -> None:
        super().__init__(["img.example", "cdn.example"], 100, self.look_up)
        self.answers = answers
        self.addresses = addresses
        self.asked: list[tuple[str, str]] = []

    def look_up(self, host: str, port: int) -> list[str]:
        return self.addresses[host]

    def _get(self, scheme: str, host: str, address: str, path: str, end: float) -> bytes | str:
        self.asked.append((host, address))
        return self.answers[host + path]


def web(answers: dict[str, Any] | None = None, **addresses: list[str]) -> FakeWeb:
    known = {"img.example": [PUBLIC], "cdn.example": [PUBLIC]}
    known.update({name.replace("_", "."): found for name, found in addresses.items()})
    return FakeWeb(answers or {"img.example/a.png": b"png"}, known)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.3.4",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::a9fe:a9fe",
        "ff02::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


def test_addresses_that_are_public() -> None:
    assert all(map(is_public, [PUBLIC, "2606:4700:4700::1111", f"::ffff:{PUBLIC}"]))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://img.example/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://127.0.0.1/a.png",
        "http://[::1]/a.png",
        "http://other.example/a.png",
        "http://img.example.evil.example/a.png",
        "http://img.example@other.example/a.png",
        "http://user@img.example/a.png",
        "http://img.example:22/a.png",
        "http://img.example:99999/a.png",
        "http://img.example/a.png\r\nHost: other",
        "http://[img.example/a.png",
        "//img.example/a.png",
        "",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    fake = web()
    with pytest.raises(UsageError):
        fake.read(url)
    assert fake.asked == []


def test_without_a_list_no_url_is_read() -> None:
    with pytest.raises(UsageError, match="reads no image URLs"):
        RemoteImages([], 100).read("https://img.example/a.png")


def test_a_listed_host_is_read_at_the_address_that_was_checked() -> None:
    fake = web()
    assert fake.read("https://img.example/a.png") == b"png"
    assert fake.asked == [("img.example", PUBLIC)]


def test_a_listed_host_with_any_private_address_is_refused() -> None:
    fake = web(img_example=[PUBLIC, "10.0.0.1"])
    with pytest.raises(UsageError, match="private addresses"):
        fake.read("https://img.example/a.png")
    assert fake.asked == []


def test_redirects_follow_the_same_rules() -> None:
    good = web({"img.example/a": "https://cdn.example/b", "cdn.example/b": b"png"})
    assert good.read("https://img.example/a") == b"png"
    for target in ("http://169.254.169.254/x", "file:///etc/passwd", "http://other.example/"):
        with pytest.raises(UsageError):
            web({"img.example/a": target}).read("https://img.example/a")
    inward = web({"img.example/a": "https://cdn.example/b"}, cdn_example=["127.0.0.1"])
    with pytest.raises(UsageError, match="private"):
        inward.read("https://img.example/a")
    with pytest.raises(UsageError, match="redirects more than"):
        web({"img.example/a": "/a"}).read("https://img.example/a")


def answering(talk: Callable[[socket.socket], None]) -> int:
    """Starts a host that accepts one connection; returns its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(65536)
            with contextlib.suppress(OSError):  # the other side may have closed it
                talk(connection)

    threading.Thread(target=run, daemon=True).start()
    return listener.getsockname()[1]


def dripping(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n")
    for _ in range(90):
        connection.sendall(b"x")
        time.sleep(0.05)


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def short(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\nxxx")


def whole(connection: socket.socket) -> None:
    body = b"5\r\nhello\r\n0\r\n\r\n"
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)


@pytest.mark.parametrize(
    ("talk", "said"),
    [(dripping, "cannot read"), (short, "cannot read"), (endless, "over 100 bytes"), (whole, "")],
)
def test_slow_and_endless_hosts_are_abandoned(
    monkeypatch: pytest.MonkeyPatch, talk: Callable[[socket.socket], None], said: str
) -> None:
    port = answering(talk)
    monkeypatch.setattr(image_reader, "_PORTS", {"http": port})
    monkeypatch.setattr(image_reader, "_MOST_SECONDS", 0.5)
    monkeypatch.setattr(image_reader, "is_public", lambda address: True)
    images = RemoteImages(["img.example"], 100, lambda host, port: ["127.0.0.1"])
    start = time.monotonic()
    if said:
        with pytest.raises(UsageError, match=said):
            images.read("http://img.example/a.png")
    else:
        assert images.read("http://img.example/a.png") == b"hello"
    assert time.monotonic() - start < 3
