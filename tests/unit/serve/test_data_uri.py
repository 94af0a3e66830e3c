"""Data URIs in the forms that clients send."""

import base64
from urllib.parse import quote

import pytest

pytest.importorskip("fastapi")

from blip3o.core.errors import UsageError
from blip3o.serve.http.data_uri import TooLongError, data_of, has_image_type, is_data_uri

# Bytes whose base64 has padding and both characters that differ in the URL-safe alphabet.
DATA = b"\x89PNG\r\n\x1a\n" + b"\xfb\xef\xbe\xff\xfe" * 20 + b"!"
TEXT = base64.b64encode(DATA).decode()
SAFE = base64.urlsafe_b64encode(DATA).decode()


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png;base64,{TEXT}",
        f"DATA:IMAGE/PNG;BASE64,{TEXT}",
        f"  data:image/png;base64,{TEXT}\n",
        f"data:image/png;base64,{SAFE}",
        f"data:image/png;base64,{TEXT.rstrip('=')}",
        f"data:image/png;base64,{SAFE.rstrip('=')}",
        f"data:image/png;base64,{TEXT}====",
        "data:image/png;base64," + "\r\n".join(TEXT[k : k + 76] for k in range(0, len(TEXT), 76)),
        "data:image/png;base64, " + " ".join(TEXT[k : k + 4] for k in range(0, len(TEXT), 4)),
        f"data:image/png;base64,{quote(TEXT, safe='')}",
        f"data:image/png;charset=utf-8;base64,{TEXT}",
        f"data:image/png;name=a.png;base64,{TEXT}",
        f"data:image/png; base64 ,{TEXT}",
        f"data:image/svg+xml;base64,{TEXT}",
        f"data:application/octet-stream;base64,{TEXT}",
        f"data:text/html;base64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"data:;name=x;base64,{TEXT}",
        f"data:image/png,{quote(DATA, safe='')}",
        f"data:,{quote(DATA, safe='')}",
        f"data:image/png,{TEXT}",
        f"data:image/png;charset=utf-8,{SAFE.rstrip('=')}",
    ],
)
def test_forms_that_clients_send_are_read(uri: str) -> None:
    assert is_data_uri(uri)
    assert data_of(uri, len(DATA)) == DATA
    with pytest.raises(TooLongError):
        data_of(uri, len(DATA) - 1)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("data:image/png;base64", "has no comma"),
        ("data:", "has no comma"),
        ("data:image/png;base64,@@@@", "invalid base64: '@'"),
        ("data:image/png;base64,iVBO,Rw0K", "invalid base64: ','"),
        ("data:image/png;base64,iVBO=Rw0K", "invalid base64: '='"),
        ("data:image/png;base64,iVBO\xe4Rw0K", r"invalid base64: '\\xe4'"),
        ("data:image/png;base64,iVBOR", "last character is missing"),
        ("data:image/png;base64,%zz", "invalid base64: '%'"),
    ],
)
def test_an_invalid_uri_is_refused_with_a_reason(uri: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        data_of(uri, 1000)


def test_other_urls_and_types_are_recognized() -> None:
    assert not is_data_uri("https://a.example/data:")
    assert not is_data_uri("data")
    assert has_image_type("data:IMAGE/png;base64,")
    assert has_image_type("data:;base64,")
    assert not has_image_type("data:text/html;base64,")
