"""A tiny random Qwen2.5-VL in the published layout that gives answers in a wanted form: for dry runs and tests.

All weights are random but for one thing: the last token of the chat prompt, and then each token that ends a part of the
answer, leads to the tokens that may come next. Which of them it is (Yes or No, 1 to 5 points) depends on the image and on the
question, through the random weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

YES_NO = (("Yes", "yes", " Yes", "No", "no", " No"),)
"""A form of answer: in each part, the texts that it may be."""

_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_END = "<|im_end|>"
_LAST_OF_PROMPT = "\n"
_HIDDEN = 64
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_vlm(folder: Path, answers: Sequence[Sequence[str]] = YES_NO, seed: int = 0) -> Path:
    """Writes the model folder: configuration, safetensors, tokenizer with chat template, image and video processors.

    Args:
        folder: made if it is not there.
        answers: what each part of an answer may be, each text one token of the tokenizer; no text may come twice.
        seed: of the weights.
    Returns: the folder.
    """
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    tokenizer = _tokenizer(answers)
    pixels = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 64}
    for part in (tokenizer, Qwen2VLImageProcessor(size=pixels), Qwen2VLVideoProcessor(size=pixels)):
        part.save_pretrained(folder)
    _write_model(folder, tokenizer, answers, seed)
    return folder


def _tokenizer(answers: Sequence[Sequence[str]]) -> PreTrainedTokenizerBase:
    """Bytes, the special tokens, and one token per answer."""
    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    vocabulary = {letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], eos_token=_END, pad_token="<|endoftext|>", chat_template=_TEMPLATE)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL], special_tokens=True)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for part in answers for text in part])
    made: PreTrainedTokenizerBase = tokenizer
    return made


def _write_model(folder: Path, tokenizer: Any, answers: Sequence[Sequence[str]], seed: int) -> None:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(_config(tokenizer)).eval()
        with torch.no_grad():
            for name, weights in model.named_parameters():
                if weights.ndim > 1:  # the norms keep their ones, so that nothing fades or explodes
                    weights.normal_(std=0.5 if "embed" in name else weights[0].numel() ** -0.5)
            _lead(model, tokenizer, answers)
    # As published: other programs would sample with this, a reward must not.
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.9, repetition_penalty=1.05)
    model.save_pretrained(folder)


def _lead(model: Any, tokenizer: Any, answers: Sequence[Sequence[str]]) -> None:
    """Makes each part of the answer follow the one before it, along one direction of the hidden space per step."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    before: Sequence[str] = (_LAST_OF_PROMPT,)
    for step, part in enumerate([*answers, (_END,)]):
        for text in before:
            embedding[_only_token(tokenizer, text)] *= 0.1
            embedding[_only_token(tokenizer, text), step] = 12.0
        for text in part:
            head[_only_token(tokenizer, text), step] = 4.0
        before = part


def _only_token(tokenizer: Any, text: str) -> int:
    (token,) = tokenizer.encode(text, add_special_tokens=False)
    return int(token)


def _config(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _SPECIAL}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": _HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids[_END],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": _HIDDEN}
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**vision, "fullatt_block_indexes": [1]},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
