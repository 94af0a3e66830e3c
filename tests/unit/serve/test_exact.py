"""With several threads, batches of the bundled model are generated together and exactly."""

import os
import subprocess
import sys

import pytest
import torch

SIZES = """
import torch
from blip3o.generate.exact import steady_kernels
steady_kernels()
torch.set_num_threads(2)
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.serve.images import ImageMaker
from blip3o.generate.decoding import RowDecoder
pipe = Blip3oPipeline.from_pretrained("pocket", device="cpu", dtype="fp32")
maker = ImageMaker(pipe, 8)
print(maker.sampling_sizes[-1], maker.decoding_sizes[-1])
print(RowDecoder(pipe.model).num_equal_places() > 1)
"""
THREADS = """
import torch
from blip3o.serve.http.server import _use_one_thread
torch.set_num_threads(2)
_use_one_thread(["{device}"])
print(torch.get_num_threads())
"""

ENGINE = """
import types
import torch
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.serve.batching import JobQueue
from blip3o.serve.config import ServeConfig
from blip3o.serve.engine import Engine
from blip3o.serve.jobs import Job, ImageRequest
from blip3o.serve.images import ImageMaker

def make(maker, rows, on_step=None):
    torch.ones(300, 300) @ torch.ones(300, 300)
    print(torch.get_num_threads())
    return rows

ImageMaker.make = make
torch.set_num_threads(1)
pipe = Blip3oPipeline.from_pretrained("pocket", device="cpu", dtype="fp32")
queue = JobQueue(9, 8, 0.0)
silent = types.SimpleNamespace(batch=lambda *_: None, waited=lambda *_: None)
engine = Engine(pipe, queue, ServeConfig({options}), silent, 2)
engine.start()
engine.wait_until_ready()
torch.set_num_threads(1)
queue.put(Job(ImageRequest(kind="reconstruct"), lambda event: None))
queue.close()
engine.join()
"""


def output_of(script: str, **environment: str) -> str:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("MKL_")}
    return subprocess.run(
        [sys.executable, "-c", script],
        env=variables | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="other kernels, other sizes")
def test_two_threads_do_not_keep_images_apart() -> None:
    """A regression test: the server generated all images one by one without a message."""
    assert output_of(SIZES).split() == ["8", "8", "True"]


@pytest.mark.parametrize("options", ["", "unpadded_batches=True"])
def test_an_engine_keeps_its_threads(options: str) -> None:
    assert output_of(ENGINE.format(options=options)) == "2"


def test_a_users_own_setting_is_left() -> None:
    script = "from blip3o.generate.exact import steady_kernels as f; f(); import os; "
    script += "print(os.environ['MKL_CBWR'])"
    assert output_of(script) == "AUTO"
    assert output_of(script, MKL_CBWR="COMPATIBLE") == "COMPATIBLE"


@pytest.mark.parametrize(("device", "left"), [("cpu", "1"), ("cuda:0", "2")])
def test_the_cores_are_left_to_engines_on_them(device: str, left: str) -> None:
    assert output_of(THREADS.format(device=device)) == left
