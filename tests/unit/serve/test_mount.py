"""What the page takes out of Gradio must be there: without it the page would not be safe."""

from types import SimpleNamespace

import pytest

from blip3o.core.errors import UsageError

pytest.importorskip("fastapi")


def test_a_gradio_that_is_made_otherwise_is_refused() -> None:
    from blip3o.serve.page.mount import _replace

    gradio = SimpleNamespace(fetch=1)
    _replace(gradio, "fetch", 2)
    assert gradio.fetch == 2
    with pytest.raises(UsageError, match=r"\(no fetch_all\).*--no-page"):
        _replace(gradio, "fetch_all", 2)
