"""GOT-OCR 2.0 as a reader, by the transformers package: whole images, formulas and long text included.

Each image is resized to 1024×1024 px whatever its shape, becomes 256 tokens, and is transcribed greedily in batches. The text
ends at `<|im_end|>`, which has to be asked for: the published generation configuration names no end, and a batch would go on
to its limit.

Weights  stepfun-ai/GOT-OCR-2.0-hf, 0.6 billion parameters, Apache-2.0, by path or from the model hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.models import Placement, SharedModel, Source, find_weights, shared_model
from xomni_rl.rewards.ocr_readers import Line, Pages

GOT = Source(
    what="the model folder GOT-OCR-2.0-hf",
    where="https://huggingface.co/stepfun-ai/GOT-OCR-2.0-hf",
    licence="Apache-2.0",
    repo="stepfun-ai/GOT-OCR-2.0-hf",
)
END = "<|im_end|>"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", END, "<img>", "</img>", "<imgpad>")
_MODEL_FILES = (".safetensors", ".json", ".txt", ".model")


@dataclass(frozen=True)
class GotReader:
    """Reads by GOT-OCR 2.0.

    Args:
        weights: model folder, or hub repository "owner/name"; None = the published ones.
        device, dtype, offload: see `Placement`.
        batch_size: images per call.
        max_new_tokens: longest transcription of an image, in tokens; what is longer is cut.
    Raises: ValueError for values out of range.
    """

    weights: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    offload: bool = False
    batch_size: int = 8
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        Placement(self.device, self.dtype, self.offload)
        for name in ("batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f'reward "ocr": {name} must be a whole number of at least 1, got {value!r}')

    def read(self, images: Sequence[np.ndarray]) -> Pages:
        """Lines of N uint8 [H, W, 3] images, and index → reason for failed ones; see `Reader`."""
        model = self._model()
        pages: list[list[Line]] = []
        failures: dict[int, str] = {}
        for start in range(0, len(images), self.batch_size):
            texts = self._transcribe(model, images[start : start + self.batch_size])
            failures |= {start + position: reason for position, (_, reason) in enumerate(texts) if reason}
            pages += [[Line(line.strip()) for line in text.split("\n") if line.strip()] for text, _ in texts]
        return pages, failures

    def load(self) -> None:
        """Reads the model; see `Reader`."""
        self._model()

    def files(self) -> tuple[Path, ...]:
        """The model folder's configuration, tokenizer and weights; see `Reader`."""
        return tuple(sorted(path for path in self._folder().iterdir() if path.is_file() and path.suffix in _MODEL_FILES))

    def _transcribe(self, model: SharedModel, images: Sequence[np.ndarray]) -> list[tuple[str, str]]:
        """(text, why it failed or "") of each image of one batch."""
        import torch

        from xomni_rl.rewards.vlm_local import FiniteRows

        module: Any = model.module
        processor, finite = model.extras["processor"], FiniteRows()
        end = processor.tokenizer.convert_tokens_to_ids(END)
        pictures = [Image.fromarray(image) for image in images]
        try:
            with model.use() as device:
                inputs = processor(pictures, num_image_tokens=model.extras["image_tokens"], return_tensors="pt")
                tokens = module.generate(
                    **inputs.to(device, model.placement.torch_dtype()),
                    do_sample=False,
                    num_beams=1,
                    max_new_tokens=self.max_new_tokens,
                    eos_token_id=end,
                    pad_token_id=end,
                    logits_processor=[finite],
                )
        except torch.OutOfMemoryError:
            return [("", f"out of memory; lower engine_options.batch_size (now {self.batch_size})")] * len(images)
        texts = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        reasons = ["" if fine else "the model's output is not finite; use dtype=bfloat16 or float32" for fine in finite.rows]
        return list(zip(texts, reasons, strict=True))

    def _folder(self) -> Path:
        folder = find_weights("ocr", self.weights, GOT, option="engine_options.weights")
        if not folder.is_dir():
            raise _unusable(folder, "it is a file, not a folder")
        return folder

    def _model(self) -> SharedModel:
        folder = self._folder()
        placement = Placement(self.device, self.dtype, self.offload)
        return shared_model(("got_ocr2", str(folder.resolve())), placement, lambda: _load(folder, placement))


def _load(folder: Path, placement: Placement) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoProcessor, GotOcr2ForConditionalGeneration

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        model, report = GotOcr2ForConditionalGeneration.from_pretrained(
            folder, dtype=placement.torch_dtype(), output_loading_info=True, use_safetensors=True, local_files_only=True
        )
        vision = model.config.vision_config
        # Two convolutions of stride 2 stand between the patches and the language model.
        image_tokens = (vision.image_size // vision.patch_size // 4) ** 2
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, RuntimeError and its own
        raise _unusable(folder, str(error).strip().partition("\n")[0] or type(error).__name__) from error
    for key in sorted(report["missing_keys"]):  # it has been filled with random numbers
        raise _unusable(folder, f"its weights lack {key}")
    return model, {"processor": processor, "image_tokens": image_tokens}


def _unusable(folder: Path, reason: str) -> RewardUnavailableError:
    return RewardUnavailableError(
        f'reward "ocr": {folder} cannot be used as GOT-OCR 2.0 ({reason}); {GOT.remedy("engine_options.weights")}'
    )


def write_tiny_got(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Writes a tiny random GOT-OCR 2.0 in the published layout, which reads random letters: for dry runs and tests.

    Returns: the `engine_options` that use it.
    """
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        GotOcr2Config,
        GotOcr2ForConditionalGeneration,
        GotOcr2ImageProcessor,
        GotOcr2Processor,
        Qwen2Tokenizer,
    )

    tokenizer = Qwen2Tokenizer(vocab={letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(_SPECIAL)})
    side = 128
    GotOcr2Processor(GotOcr2ImageProcessor(size={"height": side, "width": side}), tokenizer).save_pretrained(folder)
    vision: dict[str, Any] = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_dim": 32,
    }
    vision |= {"image_size": side, "global_attn_indexes": [1]}
    text: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"model_type": "qwen2", "num_key_value_heads": 2, "vocab_size": len(tokenizer), "tie_word_embeddings": True}
    config = GotOcr2Config(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<imgpad>")
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GotOcr2ForConditionalGeneration(config)
        with torch.no_grad():
            for weights in model.parameters():
                if weights.ndim > 1:  # the norms keep their ones; the default, 1e-10 for images, would make all images alike
                    weights.normal_(std=weights[0].numel() ** -0.5)
            model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(END)] *= 6  # some readings end early
    model.save_pretrained(folder)
    return {"weights": str(folder), "device": "cpu", "max_new_tokens": 12}
