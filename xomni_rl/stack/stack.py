"""The whole stack behind one object: prompts → image tokens → pixels, pixels → tokens, image and question → text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xomni_rl.prompts import Prompt
from xomni_rl.weights import EMBEDDED

from . import embedded
from .any_resolution import AnyResolution
from .autoregressive import XOmniConfig, XOmniForCausalLM
from .checkpoint import (
    check_flux_given,
    is_published,
    load_decoder,
    load_image_tokenizer,
    load_model,
    load_text_tokenizer,
    read_published,
)
from .decoder import DiffusionDecoder
from .generation import Generation as Generation
from .generation import check_room, generate
from .image_tokenizer import SemanticImageTokenizer, to_pixels
from .sampler import SamplingConfig
from .stack_folder import LAYOUT, explained, other_parts, read_description, weight_hash
from .stack_folder import StackError as StackError
from .tensor_files import check_fits
from .text import PromptFormat, train_text_tokenizer


class Stack:
    """Autoregressive model, image tokenizer and diffusion decoder.

    Args:
        model, text_tokenizer, image_tokenizer, decoder: the parts; they must agree on the image vocabulary.
        name: where it came from, for records.
        default_size: (height, width) px of an image where nobody says.
        transform: how pictures of any size are resized for the image tokenizer; None = they must have a size that fits.
    Raises: StackError if the parts don't fit each other.
    """

    def __init__(
        self,
        model: XOmniForCausalLM,
        text_tokenizer: PreTrainedTokenizerFast,
        image_tokenizer: SemanticImageTokenizer,
        decoder: DiffusionDecoder,
        name: str,
        default_size: tuple[int, int],
        transform: AnyResolution | None = None,
    ) -> None:
        if model.config.image_vocab_size != image_tokenizer.codebook_size:
            raise StackError(
                f"{name}: the model knows {model.config.image_vocab_size} image tokens, "
                f"but the image tokenizer has {image_tokenizer.codebook_size}"
            )
        self.model = model.eval()
        self.text_tokenizer = text_tokenizer
        self.image_tokenizer = image_tokenizer.eval().requires_grad_(False)
        self.decoder = decoder.eval().requires_grad_(False)
        self.name = name
        self.default_size = default_size
        self.transform = transform
        self.format = PromptFormat(text_tokenizer, model.config.vocab_size)

    @property
    def token_size(self) -> int:
        """Pixels per token, along each side."""
        return self.image_tokenizer.patch_size

    @property
    def image_vocab_size(self) -> int:
        return self.model.config.image_vocab_size

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "embedded",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        flux: str | Path | None = None,
        decoder: Mapping[str, Any] | None = None,
    ) -> Stack:
        """Loads a stack.

        Args:
            source: "embedded", or "embedded_long" (larger signs); a folder written by `save_pretrained` or by
                `xomni-rl pretrain`; or a published X-Omni checkpoint's folder.
            device: where the parts go.
            dtype: of the parts' weights.
            flux: FLUX.1-dev's folder, for a published checkpoint: its VAE and text encoders are used.
            decoder: options of a published checkpoint's decoder: batch, tiling, quantisation, and offload (its parts stay
                in main memory and go to the device in turns).
        Raises: StackError naming the folder and what is missing or damaged.
        """
        if str(source) in EMBEDDED:
            with as_file(files("xomni_rl.weights") / EMBEDDED[str(source)]) as folder:
                return cls._load(folder, str(source)).to(device, dtype)
        if is_published(Path(source)):
            return cls._load_published(Path(source), flux, torch.device(device), dtype, dict(decoder or {}))
        return cls._load(Path(source), str(source)).to(device, dtype)

    @classmethod
    def _load_published(
        cls, folder: Path, flux: str | Path | None, device: torch.device, dtype: torch.dtype, options: dict[str, Any]
    ) -> Stack:
        offload = options.pop("offload", False)
        with explained(folder):
            published = read_published(folder, flux)
            check_flux_given(published)  # before gigabytes are read
            image_tokenizer = load_image_tokenizer(published)
            works_on = device if offload else None
            decoder = load_decoder(published, image_tokenizer.projector, dtype, works_on=works_on, **options)
            model = load_model(published, dtype)
            text_tokenizer = load_text_tokenizer(published)
        side = published.transform.long_size
        stack = cls(model, text_tokenizer, image_tokenizer, decoder, str(folder), (side, side), published.transform)
        return stack.to(device, dtype)

    @classmethod
    def _load(cls, folder: Path, name: str) -> Stack:
        description = read_description(folder)
        with other_parts(folder, description) as rest, explained(folder):
            with torch.device("meta"):  # a damaged configuration may be one of gigabytes
                check_fits(folder / "autoregressive", XOmniForCausalLM(XOmniConfig.from_pretrained(folder / "autoregressive")))
            model = XOmniForCausalLM.from_pretrained(folder / "autoregressive", local_files_only=True, use_safetensors=True)
            text_tokenizer = PreTrainedTokenizerFast.from_pretrained(rest / "text_tokenizer", local_files_only=True)
            image_tokenizer = SemanticImageTokenizer.from_pretrained(rest)
            decoder = DiffusionDecoder.from_pretrained(
                rest / "decoder",
                image_tokenizer.projector,
                patch=image_tokenizer.patch_size,
                steps=description["decoder_steps"],
            )
            height, width = description["default_size"]
        return cls(model, text_tokenizer, image_tokenizer, decoder, name, (height, width))

    def save_pretrained(self, folder: str | Path, *, shares: Literal["embedded"] | None = None) -> None:
        """Writes everything `from_pretrained` needs, as safetensors and JSON.

        Args:
            folder: where to.
            shares: "embedded" writes the autoregressive model alone; loading takes the rest from the embedded stack.
        """
        folder = Path(folder)
        description = {"layout": LAYOUT, "default_size": list(self.default_size), "decoder_steps": self.decoder.steps}
        self.model.save_pretrained(folder / "autoregressive")
        if shares:
            description["shares"] = shares
        else:
            self.text_tokenizer.save_pretrained(folder / "text_tokenizer")
            self.image_tokenizer.save_pretrained(folder)
            self.decoder.save_pretrained(folder / "decoder")
        (folder / "stack.json").write_text(json.dumps(description, indent=1) + "\n")

    @classmethod
    def tiny_random(cls, seed: int = 0) -> Stack:
        """The embedded configuration with random weights and one layer less of everything: for tests and dry runs."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = XOmniConfig(**{**embedded.AUTOREGRESSIVE, "num_hidden_layers": 3, "initializer_range": 0.1})
            image_tokenizer = SemanticImageTokenizer.from_config(embedded.VISION, embedded.PROJECTOR)
            decoder = DiffusionDecoder.from_config(
                {**embedded.DECODER, "num_single_layers": 1},
                image_tokenizer.projector,
                embedded.TOKEN_SIZE,
                embedded.DECODER_STEPS,
            )
            text = train_text_tokenizer(
                ["a red sign"], config.vocab_size, config.image_vocab_size, config.mm_special_tokens or ()
            )
            return cls(XOmniForCausalLM(config), text, image_tokenizer, decoder, "tiny_random", embedded.DEFAULT_SIZE)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Stack:
        """Moves every part, an offloaded decoder only while it works; returns itself."""
        self.model.to(device=device, dtype=dtype)
        self.image_tokenizer.to(device=device, dtype=dtype)
        if self.decoder.works_on is None:
            self.decoder.to(device=device, dtype=dtype)
        else:
            self.decoder.works_on = torch.device(device)
            self.decoder.to(dtype=dtype)
        return self

    def weight_hashes(self) -> dict[str, str]:
        """SHA-256 of each part's tensors, by part."""
        parts = {"autoregressive": self.model, "image_tokenizer": self.image_tokenizer, "decoder": self.decoder}
        return {name: weight_hash(part) for name, part in parts.items()}

    def grid(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Token grid (h, w) of an image size (height, width) px.

        Raises: StackError if the size is no positive multiple of the token size.
        """
        height, width = size or self.default_size
        step = self.token_size
        if height < step or width < step or height % step or width % step:
            near = [max(step, round(side / step) * step) for side in (height, width)]
            raise StackError(
                f"image size {height}x{width} is no multiple of the token size {step} px; the nearest is {near[0]}x{near[1]}"
            )
        return height // step, width // step

    def encode_prompts(self, texts: Sequence[str], size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Image prompts as ids.

        Args:
            texts: P prompts.
            size: (height, width) px.
        Returns: input_ids [P, L], left-padded, ending with `<IMAGE>`; attention_mask [P, L].
        Raises: StackError for no prompts, a bad size, or a context longer than the model's.
        """
        grid = self.grid(size)
        if not texts:
            raise StackError("no prompts given")
        rows = [self.format.image_prompt(text, grid) for text in texts]
        check_room(texts, list(map(len, rows)), grid, grid[0] * grid[1], self.model.config.max_position_embeddings)
        ids, mask = self.format.left_padded(rows)
        return ids.to(self.device), mask.to(self.device)

    def encode_negative(self, count: int, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """The negative prompt of guidance, the image prefix alone, `count` times: [P, L'] and its mask."""
        ids, mask = self.format.left_padded([self.format.image_prefix(self.grid(size))] * count)
        return ids.to(self.device), mask.to(self.device)

    def negative_prompts(
        self, input_ids: Tensor, attention_mask: Tensor, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """What guidance moves away from, for prompts [P, L]: `encode_negative`, whatever they say."""
        return self.encode_negative(len(input_ids), size)

    def generate(
        self,
        prompts: Sequence[str | Prompt],
        *,
        size: tuple[int, int] | None = None,
        group_size: int = 1,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        on_tokens: Callable[[Tensor], None] | None = None,
    ) -> Generation:
        """Generates images.

        Args:
            prompts: P texts or prompts.
            size: (height, width) px of all of them; None = each prompt's own, else the stack's default.
            group_size: G images a prompt; N = P·G, group-major.
            seed: same seed, prompt and index, same image, whatever the batch.
            sampling: temperature, truncation, guidance.
            on_tokens: given N tokens at every step as soon as they are drawn; see `xomni_rl.stack.generation.generate`.
        Raises: StackError for input it can't take.
        """
        return generate(self, prompts, size=size, group_size=group_size, seed=seed, sampling=sampling, on_tokens=on_tokens)

    @torch.no_grad()
    def decode(self, tokens: Tensor, size: tuple[int, int] | None = None, texts: Sequence[str] | None = None) -> np.ndarray:
        """Pixels of tokens.

        Args:
            tokens: [N, T] or [N, h, w] int64.
            size: (height, width) px, for [N, T].
            texts: N prompts; a decoder with text encoders (FLUX.1) looks at them too, others don't.
        Returns: uint8 [N, H, W, 3]; depends on nothing but the tokens and, with text encoders, the prompts.
        Raises: StackError if T doesn't fill the grid, a token is outside the codebook, or texts are missing.
        """
        if tokens.dim() == 2:
            h, w = self.grid(size)
            if tokens.shape[1] != h * w:
                raise StackError(f"{tokens.shape[1]} tokens don't fill an image of {h}x{w} tokens")
            tokens = tokens.view(-1, h, w)
        try:
            return self.decoder(tokens.to(self.device), None if texts is None else list(texts)).cpu().numpy()
        except ValueError as error:
            raise StackError(str(error)) from error

    @torch.no_grad()
    def encode(self, images: Any) -> Tensor:
        """Tokens of images: uint8 [N, H, W, 3] → [N, h, w] int64. Raises: StackError for another shape or size."""
        try:
            pixels = to_pixels(images, self.device, next(self.image_tokenizer.parameters()).dtype)
            return self.image_tokenizer(pixels)
        except ValueError as error:
            raise StackError(str(error)) from error

    def fitting(self, image: Any) -> np.ndarray:
        """A picture (PIL's, or uint8 [H, W, 3]) as the image tokenizer takes it: resized, if the stack takes any size.

        Raises: StackError for a picture that is too small or too long.
        """
        if self.transform is None:
            return np.asarray(image)
        try:
            return self.transform.resize(image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image)))
        except ValueError as error:
            raise StackError(str(error)) from error

    @torch.no_grad()
    def chat(self, image: Any, question: str, max_new_tokens: int = 64) -> str:
        """Answers a question about an image, greedily.

        Args:
            image: uint8 [H, W, 3] (array or PIL), sides multiples of the token size.
            question: plain text.
            max_new_tokens: where an answer is cut.
        Raises: StackError for an image or a question that doesn't fit.
        """
        return self.answer(self.encode(self.fitting(image)[None]), question, max_new_tokens)[0]

    @torch.no_grad()
    def answer(self, tokens: Tensor, question: str, max_new_tokens: int = 64) -> list[str]:
        """Answers one question about each tokenised image: [N, h, w] int64 → N texts."""
        return self._written([self.format.chat_prompt(t.cpu(), question) for t in tokens], max_new_tokens)

    @torch.no_grad()
    def reply(self, messages: Sequence[Mapping[str, Any]], max_new_tokens: int = 64) -> str:
        """What the model says next in a conversation with images anywhere, greedily.

        Args:
            messages: {"role": "system", "user" or "assistant", "content": a text, or a list of {"type": "text", "text": …} and
                {"type": "image", "image": as for `chat`}}, as transformers lays them out.
            max_new_tokens: where an answer is cut.
        Raises: StackError for a message of another form, an image that doesn't fit, or more than the context holds.
        """
        turns = [(_role(message), [self._part(part) for part in _content(message)]) for message in messages]
        return self._written([self.format.conversation(turns)], max_new_tokens)[0]

    def _part(self, part: Any) -> str | Tensor:
        """A text, or an image's tokens [h, w]."""
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image" and "image" in part:
            return self.encode(self.fitting(part["image"])[None])[0].cpu()
        if kind == "text" and isinstance(part.get("text"), str):
            return part["text"]
        raise StackError('a part of a message must be {"type": "text", "text": …} or {"type": "image", "image": …}')

    def _written(self, rows: Sequence[list[int]], max_new_tokens: int) -> list[str]:
        """Texts that follow N rows of ids, by transformers' `generate`."""
        ids, mask = self.format.left_padded(rows)
        room = self.model.config.max_position_embeddings - ids.shape[1]
        if room < 1:
            raise StackError(f"images and texts have {ids.shape[1]} tokens, more than the model's context holds")
        out = self.model.generate(
            ids.to(self.device),
            attention_mask=mask.to(self.device),
            max_new_tokens=min(max_new_tokens, room),
            do_sample=False,
            eos_token_id=self.format.end,
            pad_token_id=self.format.pad,
        )
        return [text.strip() for text in self.text_tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)]


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role")
    if role not in ("system", "user", "assistant"):
        raise StackError(f"a message's role must be system, user or assistant, not {role!r}")
    return str(role)


def _content(message: Mapping[str, Any]) -> Sequence[Any]:
    content = message.get("content", ())
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
