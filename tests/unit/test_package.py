"""The package as a whole: the cost of importing it and its dependencies."""

import ast
import json
import pkgutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import blip3o

SOURCE = Path(blip3o.__file__).parent
WEB = ("fastapi", "prometheus_client", "pydantic", "python_multipart", "starlette", "uvicorn")
OPTIONAL = (
    "diffusers",
    "gradio",
    "matplotlib",
    "peft",
    "tensorboard",
    "timm",
    "torchvision",
    "webdataset",
    *WEB,
)
_REWARDS = (
    "app",
    "dispatcher",
    "errors",
    "geneval",
    "metrics",
    "requests",
    "scenes",
    "schemas",
    "server",
)
"""The HTTP side of the reward server; its client needs no extra."""
NEED_AN_EXTRA = (
    "blip3o.serve.http",
    "blip3o.serve.page",
    *(f"blip3o.eval.rewards.{name}" for name in _REWARDS),
)


def _run(code: str, *arguments: str) -> str:
    """Runs code in a new interpreter and returns its output."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = (
        "import json, sys, blip3o.cli\n"
        "try: blip3o.cli.main(sys.argv[1:])\n"
        "except SystemExit: print(json.dumps(list(sys.modules)))"
    )
    loaded = set(json.loads(_run(program, "--help").splitlines()[-1]))
    assert not {"torch", "numpy", "PIL", "transformers", "yaml", "httpx", "pydantic"} & loaded


def test_every_module_imports_offline_with_base_dependencies_only() -> None:
    names = [
        module.name
        for module in pkgutil.walk_packages([str(SOURCE)], "blip3o.")
        if not module.name.endswith("__main__") and not module.name.startswith(NEED_AN_EXTRA)
    ]
    assert len(names) > 50
    output = _run(
        "import importlib, socket, sys\n"
        "def refuse(*_, **__): raise OSError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print('transformers' in sys.modules)"
    )
    assert output.strip() == "False", "a module imports transformers outside an adapter function"


_POCKET = """
import dataclasses, json, sys
from pathlib import Path
from PIL import Image
from blip3o import Blip3oPipeline
from blip3o.models.backbones.pocket import PocketBackboneConfig
from blip3o.models.decoders.pocket import PocketDecoderConfig
from blip3o.models.encoders.normalizer import FeatureNormalizerConfig
from blip3o.models.encoders.pocket import PocketEncoderConfig
from blip3o.models.generators.lmfusion import LMFusionConfig
from blip3o.models.unified import SamplingConfig, UnifiedModelConfig
from blip3o.text.chat import ChatConfig
from blip3o.text.tokenizer import train_tokenizer
from blip3o.weights.folder import save_model

folder = Path(sys.argv[1])
tokenizer = train_tokenizer(["draw: a red cat"] * 3, 300)
backbone = PocketBackboneConfig.tiny()
config = UnifiedModelConfig(
    backbone=dataclasses.replace(backbone, image_token_id=tokenizer.image_pad_id),
    image_encoder=PocketEncoderConfig.tiny(),
    normalizer=FeatureNormalizerConfig(num_components=8),
    generator=LMFusionConfig(),
    image_decoder=PocketDecoderConfig.tiny(),
    chat=ChatConfig(system=None, generate="draw: {caption}"),
    sampling=SamplingConfig(num_inference_steps=2, num_decoder_steps=1, max_new_tokens=2),
)
save_model(config.build(), tokenizer, folder)
heavy = (
    *("diffusers", "fastapi", "gradio", "httpx", "matplotlib", "pydantic", "sympy", "tensorboard"),
    *("torch._dynamo", "transformers", "uvicorn", "yaml"),
    *("PIL.PdfImagePlugin", "PIL.TiffImagePlugin", "blip3o.imaging.load"),
    *("blip3o.weights.published", "blip3o.weights.siglip2_sana"),
)
from blip3o.cli import main
assert main(["generate", "a red cat", "--model", str(folder), "--out", str(folder / "out")]) == 0
loaded = [name for name in heavy if name in sys.modules]
pipe = Blip3oPipeline.from_pretrained(folder)
image = Image.open(folder / "out" / "0000-0.png")
assert isinstance(pipe.ask(image, "a cat?"), str)
slow = [name for name in ("diffusers", "sympy", "torch._dynamo", "transformers")]
print(json.dumps([image.size, loaded, [name for name in slow if name in sys.modules]]))
"""


def test_a_pocket_model_draws_and_answers_without_heavy_imports(tmp_path: Path) -> None:
    """Importing transformers or torch's compiler takes longer than drawing four images."""
    output = _run(_POCKET, str(tmp_path)).splitlines()[-1]
    assert json.loads(output) == [[16, 16], [], []]


def test_lower_layers_import_only_allowed_packages() -> None:
    allowed = set(sys.stdlib_module_names) | {"blip3o", "einops", "numpy", "torch", "yaml", "tqdm"}
    for layer in ("core", "nn", "flow"):
        for file in (SOURCE / layer).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                else:
                    continue
                for name in names:
                    assert name.split(".")[0] in allowed, f"{file} imports {name}"


def test_sources_are_ascii() -> None:
    for file in SOURCE.rglob("*.py"):
        assert file.read_text(encoding="utf-8").isascii(), file


def test_tests_can_connect_only_to_this_machine() -> None:
    with pytest.raises(RuntimeError, match="may not use the network"):
        socket.create_connection(("example.com", 80))
    with pytest.raises(RuntimeError, match="may not use the network"), socket.socket() as outward:
        outward.connect(("192.0.2.1", 80))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        socket.create_connection(server.getsockname()).close()
