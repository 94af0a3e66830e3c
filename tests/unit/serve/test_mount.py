"""The parts of Gradio that the page replaces must exist; otherwise it would not be safe."""

from types import SimpleNamespace

import pytest

from blip3o.core.errors import UsageError

pytest.importorskip("fastapi")


def test_an_unsupported_gradio_is_refused() -> None:
    from blip3o.serve.page.mount import _replace

    gradio = SimpleNamespace(fetch=1)
    _replace(gradio, "fetch", 2)
    assert gradio.fetch == 2
    with pytest.raises(UsageError, match=r"\(no fetch_all\).*--no-page"):
        _replace(gradio, "fetch_all", 2)
