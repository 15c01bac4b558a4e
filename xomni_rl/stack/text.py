"""Text and image strings of the unified model: the byte-level tokenizer and the prompt formats.

An image prompt is `{prompt}<SOM>{h} {w}<IMAGE>`; an image inside a text is `<SOM>{h} {w}<IMAGE>` + tokens + `<EOM>`. What a
user writes is never read as a special token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

CHAT_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def train_text_tokenizer(
    corpus: Iterable[str], vocab_size: int, image_vocab_size: int, mm_special_tokens: Sequence[str]
) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which capital letters and digits stay single, so that a sign's text is spelled, never memorised.

    Ids as in the checkpoint: text first, then `image_vocab_size` image tokens, then the multimodal specials.

    Args:
        corpus: what to learn merges from.
        vocab_size: V, the exact number of text ids; reserved ones fill up what the corpus doesn't need.
        image_vocab_size: number of image tokens.
        mm_special_tokens: `<SOM>`, `<EOM>`, `<IMAGE>`, ….
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"[A-Z0-9]"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CHAT_SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    added = [f"<|reserved_{i}|>" for i in range(vocab_size - core.get_vocab_size())]
    added += [f"<MM-Token-{i}>" for i in range(image_vocab_size)] + list(mm_special_tokens)
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )


class PromptFormat:
    """Builds the id sequences that the model was trained on.

    Args:
        tokenizer: with the multimodal specials.
        vocab_size: V, where image ids begin.
    Raises: ValueError if the tokenizer lacks one of the special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> None:
        names = ("<SOM>", "<EOM>", "<IMAGE>", *CHAT_SPECIALS)
        vocabulary = tokenizer.get_vocab()
        missing = [name for name in names if name not in vocabulary]
        if missing:
            raise ValueError(f"the text tokenizer has no {', '.join(missing)}")
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.som, self.eom, self.image, self.pad, self.start, self.end = (vocabulary[name] for name in names)

    def text(self, text: str) -> list[int]:
        """Ids of plain text; special-looking spans in it stay text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids

    def image_prefix(self, grid: tuple[int, int]) -> list[int]:
        return [self.som, *self.text(f"{grid[0]} {grid[1]}"), self.image]

    def image_prompt(self, text: str, grid: tuple[int, int]) -> list[int]:
        """Ids of `{text}<SOM>{h} {w}<IMAGE>`; image tokens follow."""
        return self.text(text) + self.image_prefix(grid)

    def chat_prompt(self, tokens: Tensor, question: str) -> list[int]:
        """Ids of a user's turn with an image and a question, up to where the answer starts.

        Args:
            tokens: [h, w] int64 image tokens.
            question: plain text.
        """
        return self.conversation([("user", [tokens, question])])

    def conversation(self, turns: Sequence[tuple[str, Sequence[str | Tensor]]]) -> list[int]:
        """Ids of turns, up to where the assistant's next one starts.

        Args:
            turns: who speaks ("system", "user" or "assistant"), and texts and images [h, w] int64 in any order; a text after
                an image begins a line.
        """
        ids: list[int] = []
        for role, parts in turns:
            ids += [self.start, *self.text(f"{role}\n")]
            before: str | Tensor = ""
            for part in parts:
                after_image = "\n" if isinstance(before, Tensor) else ""
                ids += self.inner_image(part) if isinstance(part, Tensor) else self.text(after_image + part)
                before = part
            ids += [self.end, *self.text("\n")]
        return [*ids, self.start, *self.text("assistant\n")]

    def inner_image(self, tokens: Tensor) -> list[int]:
        """Ids of an image inside a text, from tokens [h, w] int64."""
        rows, columns = tokens.shape
        return [*self.image_prefix((rows, columns)), *(tokens.flatten() + self.vocab_size).tolist(), self.eom]

    def left_padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows of ids as a tensor [N, L] and its attention mask, padded on the left."""
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), self.pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, length - len(row) :] = torch.tensor(row)
            mask[i, length - len(row) :] = 1
        return ids, mask
