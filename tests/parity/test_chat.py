"""Prompts, labels and processed images against recorded values (family `chat`)."""

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from blip3o.core.types import IGNORE_LABEL, IMAGE_MARK, Message
from blip3o.imaging.fit import ImageFitConfig, aspect_pixels
from blip3o.models.backbones.vision import VisionTowerConfig, to_vision_inputs
from blip3o.text.chat import ChatConfig, ChatTemplate
from blip3o.text.tokenizer import IMAGE_PAD, IMAGE_START, VISION_END, VISION_START, Tokenizer

PIXEL_TOLERANCE = 1e-5
CONFIGS = {"qwen": ChatConfig(), "llama3": ChatConfig.llama3()}
RELEASED_TRAINING = ChatConfig(close_image_turn=True, learn_whole_turns=True)
ROLES = {"human": "user", "gpt": "assistant"}

each_recording = pytest.mark.parity_cases("chat/chat.json")


def template(case: Any, config: ChatConfig, num_image_tokens: int = 1) -> ChatTemplate:
    return ChatTemplate(Tokenizer.load(case.path.parent), config, num_image_tokens)


def user(text: str) -> Message:
    return Message(role="user", text=text)


def prompt_string(chat: ChatTemplate, messages: list[Message]) -> str:
    """Returns a text prompt as a string, with special tokens by their names."""
    pieces = [piece for piece, _ in chat._prompt(messages)]
    return "".join(one if isinstance(one, str) else one.name * one.count for one in pieces)


def without_marks(text: str, num_image_tokens: int) -> str:
    return text.replace(IMAGE_MARK, f"{VISION_START}{IMAGE_PAD * num_image_tokens}{VISION_END}")


@each_recording
def test_prompt_strings_and_ids(case: Any) -> None:
    compared = 0
    for one in case.settings()["prompt_strings"]:
        chat = template(case, CONFIGS[one["conv"]], num_image_tokens=2)
        turns = [one["user_text"]] if "user_text" in one else [t for t in one["turns"] if t]
        messages = [
            Message(role=("user", "assistant")[place % 2], text=text)
            for place, text in enumerate(turns)
        ]
        assert prompt_string(chat, messages) == without_marks(one["string"], 2)
        if one["token_ids"] is not None and IMAGE_MARK not in one["string"]:
            assert chat.text_prompt(messages) == one["token_ids"]
            compared += 1
        caption = one.get("user_text", "").partition("caption: ")[2]
        if caption:
            assert list(chat.generate_messages(caption)) == messages
    assert compared


@each_recording
def test_training_rows_labels_and_masks(case: Any) -> None:
    tensors = case.neighbor("batches.safetensors").tensors()
    settings = case.settings()
    for name, one in settings["batches"].items():
        chat = template(case, RELEASED_TRAINING, one["n_und_query"])
        ids, mask = tensors[f"{name}.input_ids"], tensors[f"{name}.attention_mask"]
        assert torch.equal(mask, ids != chat.tokenizer.pad_id)
        for row, turns in enumerate(one["conversations"]):
            sample = f"{name}.sample{row}"
            text, start = turns[0]["value"], int(tensors[f"{name}.i_s_pos"][row])
            asked = [user(text), Message(role="assistant", text="")]
            made, labels = chat.conversation(asked)
            assert made == tensors[f"{sample}.input_ids_before_collate"].tolist()
            expected = tensors[f"{sample}.labels_before_collate"].tolist()
            assert labels == expected
            # Rows with query tokens are cut to the longest prompt, then get [IMG] and placeholders.
            prompt = chat.image_prompt([user(text)])
            assert prompt == [*made, chat.tokenizer.image_start_id]
            assert prompt[: start - 1] == ids[row, : start - 1].tolist()
            assert_tail(tensors, name, row, start, len(made))
            written = int(ids[row, start - 1])  # the original writes a fixed id for any vocabulary
            if written < chat.tokenizer.vocab_size:
                assert written == chat.tokenizer.special_id(IMAGE_START)


def assert_tail(tensors: dict[str, Tensor], name: str, row: int, start: int, num_made: int) -> None:
    """Checks the additions of the collator: one placeholder per query token, then padding."""
    ids, labels = tensors[f"{name}.input_ids"][row], tensors[f"{name}.labels"][row]
    mask = tensors[f"{name}.attention_mask"][row]
    assert start - 1 <= num_made
    length = int(mask.sum())
    assert len(set(ids[start:length].tolist())) == 1
    assert bool((labels[length:] == IGNORE_LABEL).all())


@each_recording
def test_understanding_prompts_and_patches(case: Any) -> None:
    tensors = case.neighbor("batches.safetensors").tensors()
    sizes = VisionTowerConfig()
    vision = {"patch_px": sizes.patch_px, "merge": sizes.merge, "num_frames": sizes.num_frames}
    for index, one in enumerate(case.settings()["understanding_processor"]):
        chat = template(case, ChatConfig(), one["image_tokens"])
        message = user(IMAGE_MARK + one["question"])
        short = one["string_before_image_expansion"]
        expanded = short.replace(IMAGE_PAD, IMAGE_PAD * one["image_tokens"])
        assert prompt_string(chat, [message]) == expanded
        ids = tensors[f"und{index}.input_ids"][0].tolist()
        assert chat.text_prompt([message]) == ids
        with Image.open(case.path.with_name(one["image"])) as opened:
            image = opened.convert("RGB")
        limits = {name: one[name] for name in ("min_pixels", "max_pixels")}
        pixels = aspect_pixels(
            image, sizes.patch_px * sizes.merge, ImageFitConfig(mode="aspect", **limits)
        )
        assert list(pixels.shape[:0:-1]) == one["via_qwen_vl_utils"]["resized_to"]
        images = to_vision_inputs(pixels[None], **vision)
        assert images.grid_thw.tolist() == one["grid_thw"]
        recorded = tensors[f"und{index}.pixel_values"]
        torch.testing.assert_close(images.patches, recorded, rtol=0, atol=PIXEL_TOLERANCE)
