"""A tiny judge for tests, and the same judge computed another way: one question at a time, straight through transformers."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

SPELLINGS = {"yes": ("Yes", "yes", " Yes"), "no": ("No", "no", " No")}
QUESTIONS = ("Is it blue?", "Does this image show a very long row of blue houses by the sea?", "No?", "Is it blue?")


def pictures() -> list[np.ndarray]:
    """Four pictures of different sizes: uint8 [H, W, 3]."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (height, width, 3)).astype(np.uint8) for height, width in ((32, 96), (64, 64))]
    return [np.zeros((32, 96, 3), np.uint8), noise[0], np.full((200, 100, 3), (30, 60, 180), np.uint8), noise[1]]


class Reference:
    """The model of a folder, asked one question at a time: no padding, no batch, none of our code."""

    def __init__(self, folder: Path) -> None:
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def inputs(self, image: np.ndarray, question: str) -> dict[str, torch.Tensor]:
        text = (
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
            f"{question}<|im_end|>\n<|im_start|>assistant\n"
        )  # fmt: skip
        return dict(self.processor(text=[text], images=[Image.fromarray(image)], return_tensors="pt"))

    def logits(self, image: np.ndarray, question: str) -> torch.Tensor:
        """Logits of the first token of the answer: float32 [V]."""
        with torch.inference_mode():
            logits: torch.Tensor = self.model(**self.inputs(image, question)).logits[0, -1]
        return logits

    def yes_probability(self, image: np.ndarray, question: str) -> float:
        chances = self.logits(image, question).double().softmax(-1)
        ids = {word: self.processor.tokenizer.convert_tokens_to_ids(list(texts)) for word, texts in SPELLINGS.items()}
        yes, no = (chances[ids[word]].sum().item() for word in ("yes", "no"))
        return yes / (yes + no)

    def answer(self, image: np.ndarray, question: str, most: int = 16) -> str:
        """The greedy answer, token by token and without a cache."""
        inputs = self.inputs(image, question)
        start = inputs["input_ids"].shape[1]
        end = self.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        for _ in range(most):
            with torch.inference_mode():
                best = self.model(**inputs, use_cache=False).logits[0, -1].argmax()
            if best == end:
                break
            more = {"input_ids": best, "attention_mask": torch.tensor(1), "mm_token_type_ids": torch.tensor(0)}
            inputs |= {name: torch.cat([inputs[name], value.view(1, 1)], dim=1) for name, value in more.items()}
        text: str = self.processor.tokenizer.decode(inputs["input_ids"][0, start:])
        return text.strip()


@cache
def reference(folder: Path) -> Reference:
    return Reference(folder)
