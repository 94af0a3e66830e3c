"""Devices and precisions by name; devices that this machine lacks are refused."""

import pytest
import torch

from blip3o.core.device import Precision, cpu_has_fast_bf16, resolve_device, resolve_dtype
from blip3o.core.errors import UsageError


def test_the_cpu_is_always_available() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cpu:-3"])
def test_unknown_device_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"unknown device .*use auto, cpu, cuda"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["cuda:99", "xpu"])
def test_devices_this_machine_lacks_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"no device '{name}'; use cpu"):
        resolve_device(name)


def test_precisions_by_name() -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype("fp32", cpu) == torch.float32
    assert resolve_dtype("bf16", cpu) == torch.bfloat16
    assert resolve_dtype("fp16", cpu) == torch.float16
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert resolve_dtype(dtype, cpu) == resolve_dtype(str(dtype)[6:], cpu) == dtype
    expected = torch.bfloat16 if cpu_has_fast_bf16() else torch.float32
    assert resolve_dtype("auto", cpu) == expected
    with pytest.raises(UsageError, match="unknown precision 'int8'; use one of auto, fp32"):
        resolve_dtype("int8", cpu)


@pytest.mark.parametrize(("amx", "avx512"), [(True, False), (False, True), (False, False)])
def test_either_cpu_extension_makes_bf16_fast(
    amx: bool, avx512: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    expected = torch.bfloat16 if amx or avx512 else torch.float32
    assert resolve_dtype("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize("is_new", [True, False])
def test_a_gpu_that_only_emulates_bf16_uses_fp16(
    is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return is_new or including_emulation  # as torch reports for a GPU before Ampere

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    expected = torch.bfloat16 if is_new else torch.float16
    assert resolve_dtype("auto", torch.device("cuda")) == expected


def test_autocast_computes_in_its_type_and_keeps_weights() -> None:
    layer, numbers = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with Precision(torch.device("cpu"), torch.bfloat16).autocast():
        assert layer(numbers).dtype == torch.bfloat16
    with Precision(torch.device("cpu"), torch.float32).autocast():
        assert layer(numbers).dtype == torch.float32
    assert layer.weight.dtype == torch.float32
