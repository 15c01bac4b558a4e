"""A vision-language model as a judge on this machine, by the transformers package: Qwen2.5-VL and its like.

P(yes) takes one batched forward per `batch_size` questions and one row of logits per question. The settings that are easy to
lose, each of which would change the answers silently: padding goes on the left, the token types that tell image from text
are passed on, and generation is greedy whatever the checkpoint's own generation configuration says.

Any image-text-to-text model will do whose processor has a chat template; P(yes) needs a token for Yes and one for No.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.models import Placement, SharedModel, Source, find_weights, shared_model
from xomni_rl.rewards.vlm import QWEN, VlmError, check_questions

_MODEL_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model")
_NOT_FINITE = "the model's output is not finite; float16 overflows in many models: use dtype=bfloat16 or float32"

Answer = Callable[[SharedModel, Mapping[str, Any]], tuple[Sequence[Any], np.ndarray]]
"""(model, n encoded questions) -> (their answers, bool [n]: which of them come from finite numbers)."""


@dataclass(frozen=True)
class LocalVlm:
    """A judge that runs here.

    Args:
        reward: name of the reward that asks, for messages.
        weights: model folder, or hub repository "owner/name"; None = those of `source`.
        device, dtype, offload: see `Placement`.
        batch_size: questions per forward.
        min_pixels, max_pixels: an image of fewer (more) pixels is enlarged (reduced) to that, by processors of
            Qwen's family; None = the checkpoint's own.
        source: the published weights.
        option: the reward's option that `weights` was given as, for messages.
    Raises: ValueError for values out of range.
    """

    reward: str
    weights: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    offload: bool = False
    batch_size: int = 32
    min_pixels: int | None = None
    max_pixels: int | None = None
    source: Source = QWEN
    option: str = "weights"

    def __post_init__(self) -> None:
        Placement(self.device, self.dtype, self.offload)
        for name in ("batch_size", "min_pixels", "max_pixels"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f'reward "{self.reward}": {name} must be a whole number of at least 1, got {value!r}')

    def yes_probability(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> np.ndarray:
        """P(yes) of N questions: float64 [N]; see `Vlm`."""
        if questions and not all(self._model().extras[word] for word in ("yes", "no")):
            raise self._unusable(self._folder(), "its tokenizer has no single token for Yes or for No")
        answers, failures = self._ask(images, questions, _yes_probabilities, np.nan)
        probabilities = np.asarray(answers, dtype=np.float64)
        if failures:
            raise VlmError(failures, probabilities)
        return probabilities

    def generate(self, images: Sequence[np.ndarray], questions: Sequence[str], max_new_tokens: int = 256) -> list[str]:
        """N greedy answers; see `Vlm`."""
        answers, failures = self._ask(images, questions, partial(_greedy, max_new_tokens=max_new_tokens), "")
        if failures:
            raise VlmError(failures, answers)
        return answers

    def load(self) -> None:
        """Reads the model; see `Vlm`."""
        self._model()

    def files(self) -> tuple[Path, ...]:
        """The model folder's configuration, tokenizer and weights."""
        return tuple(sorted(path for path in self._folder().iterdir() if path.is_file() and path.suffix in _MODEL_FILES))

    def _folder(self) -> Path:
        folder = find_weights(self.reward, self.weights, self.source, self.option)
        if not folder.is_dir():
            raise self._unusable(folder, "it is a file, not a folder with config.json, weights and tokenizer")
        return folder

    def _unusable(self, folder: Path, reason: str) -> RewardUnavailableError:
        return RewardUnavailableError(
            f'reward "{self.reward}": {folder} cannot be used as an image-text-to-text model ({reason}); '
            f"{self.source.remedy(self.option)}"
        )

    def _model(self) -> SharedModel:
        folder = self._folder()
        placement = Placement(self.device, self.dtype, self.offload)
        key = ("image-text-to-text", str(folder.resolve()), self.min_pixels, self.max_pixels)
        return shared_model(key, placement, lambda: self._read(folder, placement))

    def _read(self, folder: Path, placement: Placement) -> tuple[Any, dict[str, Any]]:
        """The model on the CPU and what goes with it. Raises: RewardUnavailableError for an incomplete or another model."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        given = {name: value for name, value in limits.items() if value is not None}
        try:
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True, **given)
            model, report = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=placement.torch_dtype(), output_loading_info=True, use_safetensors=True, local_files_only=True
            )
            ids = {word: _token_ids(processor.tokenizer, word) for word in ("yes", "no")}
        except Exception as error:  # transformers raises OSError, ValueError, KeyError, RuntimeError and its own
            raise self._unusable(folder, str(error).strip().partition("\n")[0] or type(error).__name__) from error
        # Whatever is missing has been filled with random numbers.
        for key in sorted(report["missing_keys"]):
            raise self._unusable(folder, f"its weights lack {key}")
        if not processor.chat_template:
            raise self._unusable(folder, "it has no chat template")
        return model, {"processor": processor, **ids}

    def _ask(
        self, images: Sequence[np.ndarray], questions: Sequence[str], answer: Answer, none: Any
    ) -> tuple[list[Any], dict[int, str]]:
        """Every question's answer (`none` where there is none), and the failures by index."""
        import torch

        check_questions(images, questions)
        answers: list[Any] = [none] * len(questions)
        failures: dict[int, str] = {}
        if not questions:
            return answers, failures
        model = self._model()
        for batch in self._batches(images, questions):
            try:
                found, failed = _answer_batch(model, [images[i] for i in batch], [questions[i] for i in batch], answer)
            except torch.OutOfMemoryError:
                reason = f"out of memory; lower batch_size (now {self.batch_size}) or max_pixels"
                found, failed = {}, dict.fromkeys(range(len(batch)), reason)
            failures |= {batch[position]: reason for position, reason in failed.items()}
            for position, value in found.items():
                answers[batch[position]] = value
        return answers, dict(sorted(failures.items()))

    def _batches(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> Iterator[list[int]]:
        """Indices by size, so that little is padded: a long question meets long ones."""
        sizes = [image.shape[0] * image.shape[1] / 196 + len(text) for image, text in zip(images, questions, strict=True)]
        order = sorted(range(len(sizes)), key=sizes.__getitem__)
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]


def _answer_batch(
    model: SharedModel, images: list[np.ndarray], questions: list[str], answer: Answer
) -> tuple[dict[int, Any], dict[int, str]]:
    """Position → answer, and position → reason where there is none."""
    with model.use() as device:  # the tokenizer, too, can serve one thread at a time only
        kept, inputs, failed = _encode(model, images, questions)
        if not kept:
            return {}, failed
        values, finite = answer(model, inputs.to(device, model.placement.torch_dtype()))
    failed |= {position: _NOT_FINITE for position, fine in zip(kept, finite, strict=True) if not fine}
    return {position: value for position, value in zip(kept, values, strict=True) if position not in failed}, failed


def _encode(model: SharedModel, images: list[np.ndarray], questions: list[str]) -> tuple[list[int], Any, dict[int, str]]:
    """Positions that can be asked, their encoding, and position → reason of the others."""
    module: Any = model.module
    processor = model.extras["processor"]
    texts = [_chat_text(processor, question) for question in questions]
    limit = module.config.get_text_config().max_position_embeddings
    options = {"return_mm_token_type_ids": True} if _takes(module, "mm_token_type_ids") else {}

    def encode(positions: Sequence[int]) -> Any:
        return processor(
            text=[texts[position] for position in positions],
            images=[[Image.fromarray(images[position])] for position in positions],
            padding=True,
            padding_side="left",
            return_tensors="pt",
            **options,
        )

    def refusal(position: int) -> str | None:
        try:
            length = encode([position])["input_ids"].shape[1]
        except ValueError as error:  # such as an image 200 times as long as it is wide
            return f"the model's processor refuses it: {error}"
        return f"image and question take {length} tokens, the model can take {limit}" if length > limit else None

    everything = range(len(texts))
    try:
        inputs = encode(everything)
        if inputs["input_ids"].shape[1] <= limit:
            return list(everything), inputs, {}
    except ValueError:
        pass
    reasons = {position: refusal(position) for position in everything}
    kept = [position for position, reason in reasons.items() if reason is None]
    return kept, encode(kept) if kept else None, {position: reason for position, reason in reasons.items() if reason}


def _chat_text(processor: Any, question: str) -> str:
    """The chat prompt of one image and one question, in which the question holds no special tokens.

    An <|image_pad|> in somebody's prompt would count as an image and break the whole batch.
    """
    for entry in processor.tokenizer.added_tokens_decoder.values():
        if entry.special and len(entry.content) > 1:
            question = question.replace(entry.content, f"{entry.content[0]} {entry.content[1:]}")
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text: str = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    return text


def _yes_probabilities(model: SharedModel, inputs: Mapping[str, Any]) -> tuple[Sequence[float], np.ndarray]:
    """p(yes) / (p(yes) + p(no)) of the next token, from float64 sums over the logits of their spellings."""
    import torch

    keep = {"logits_to_keep": 1} if _takes(model.module, "logits_to_keep") else {}
    logits = model.module(**inputs, use_cache=False, **keep).logits[:, -1].double()
    yes, no = (torch.logsumexp(logits[:, model.extras[word]], dim=-1) for word in ("yes", "no"))
    probabilities = torch.sigmoid(yes - no).cpu().numpy()
    return probabilities.tolist(), np.isfinite(probabilities)


class FiniteRows:
    """Watches the logits of a generation, as one of its `logits_processor`.

    `rows`: bool tensor [n], which rows never had a NaN; True before the first token.
    """

    rows: Any = True

    def __call__(self, _ids: Any, logits: Any) -> Any:
        self.rows = ~logits.isnan().any(dim=-1) & self.rows
        return logits


def _greedy(model: SharedModel, inputs: Mapping[str, Any], max_new_tokens: int) -> tuple[Sequence[str], np.ndarray]:
    module: Any = model.module
    processor, finite = model.extras["processor"], FiniteRows()
    # The checkpoint's own configuration may sample, or punish repetition, which would depend on the padding.
    greedy = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "temperature": None, "top_p": None, "top_k": None}
    tokens = module.generate(**inputs, **greedy, max_new_tokens=max_new_tokens, logits_processor=[finite])
    answers = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers], finite.rows.cpu().numpy()


def _token_ids(tokenizer: Any, word: str) -> list[int]:
    """Tokens that are a spelling of the word: lower case, capitalised, upper case; with and without a space before."""
    spellings = [space + form for form in (word, word.capitalize(), word.upper()) for space in ("", " ")]
    encoded = [tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings]
    return sorted({tokens[0] for tokens in encoded if len(tokens) == 1})


def _takes(module: Any, name: str) -> bool:
    return name in inspect.signature(module.forward).parameters
