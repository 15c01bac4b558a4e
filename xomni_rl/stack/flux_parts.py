"""FLUX.1's VAE, text encoders, tokenizers and schedule from a folder in diffusers' layout.

Libraries would fill in a tensor that is missing with random numbers, and read files that nobody looked at. So every tensor is
compared with the configuration first, from the headers alone, and what was compared is what is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase, T5EncoderModel

from xomni_rl.stack.described import first_problem, one_sentence, read_config
from xomni_rl.stack.prompt_encoder import FluxPromptEncoder
from xomni_rl.stack.stack_folder import StackError
from xomni_rl.stack.tensor_files import check_fits, read_tensors

Each = TypeVar("Each")
FLUX_PARTS = {
    "scheduler": ("scheduler_config.json",),
    "text_encoder": ("config.json", "*.safetensors"),
    "text_encoder_2": ("config.json", "*.safetensors"),
    "tokenizer": ("tokenizer_config.json", "tokenizer.json or vocab.json"),
    "tokenizer_2": ("tokenizer_config.json", "tokenizer.json or spiece.model"),
    "vae": ("config.json", "*.safetensors"),
}
"""What is read of a FLUX.1 folder, and the files that each part cannot do without; its own transformer is not read."""
TEXT_ENCODERS: dict[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel}
TIED = ("shared.weight", "encoder.embed_tokens.weight")
"""Names of T5's one embedding; FLUX.1-dev's files have the first alone."""


def check_flux(flux: Path) -> None:
    """Looks at every part of a FLUX.1 folder; weights by their headers alone.

    Raises: StackError naming all that is missing, damaged or not what its configuration describes.
    """
    if not flux.is_dir():
        raise StackError(f"there is no folder {flux}: give FLUX.1-dev's, as it is downloaded")
    missing = {part: lacking for part in FLUX_PARTS if (lacking := _missing_files(flux, part))}
    wrong = [f"{flux} lacks {', '.join(chain(*missing.values()))}: copy it again"] if missing else []
    complete = [part for part in FLUX_PARTS if part not in missing]
    wrong += [problem for part in complete if (problem := first_problem(partial(_check_part, flux, part)))]
    if wrong:
        raise StackError("; ".join(wrong))


def load_vae(flux: Path, dtype: torch.dtype) -> AutoencoderKL:
    """Raises: OSError or ValueError for a missing, damaged or unfitting file."""
    vae = _checked_vae(flux)
    vae.load_state_dict({name: tensor.to(dtype) for name, tensor in read_tensors(flux / "vae").items()}, assign=True)
    return vae.eval()


def load_prompt_encoder(flux: Path, dtype: torch.dtype) -> FluxPromptEncoder:
    """Raises: OSError or ValueError for a missing, damaged or unfitting file."""
    clip, t5 = (_text_encoder(flux, part, dtype) for part in TEXT_ENCODERS)
    return FluxPromptEncoder(clip, _tokenizer(flux / "tokenizer"), t5, _tokenizer(flux / "tokenizer_2"))


def load_schedule(flux: Path) -> FlowMatchEulerDiscreteScheduler:
    """Raises: OSError or ValueError for a missing or damaged file."""
    path = flux / "scheduler" / "scheduler_config.json"
    config = read_config(path, _class_name="FlowMatchEulerDiscreteScheduler")
    with one_sentence(path):
        return FlowMatchEulerDiscreteScheduler.from_config(config)


def own_names(found: Mapping[str, Each]) -> dict[str, Each]:
    """Tensors of a published text encoder, or anything said of them, under the names of transformers' class.

    CLIP's published names begin with `text_model.`, and old files hold its table of positions, which is no weight. T5's
    embedding has two names, of which a file may leave out one.
    """
    named = {name.removeprefix("text_model."): entry for name, entry in found.items()}
    named.pop("embeddings.position_ids", None)
    for name, other in (TIED, TIED[::-1]):
        if name in named:
            named.setdefault(other, named[name])
    return named


def new_vae(config: Mapping[str, Any]) -> AutoencoderKL:
    """The VAE that a configuration describes, on the meta device."""
    with torch.device("meta"):
        return AutoencoderKL.from_config(dict(config))


def new_text_encoder(part: str, config: Mapping[str, Any]) -> PreTrainedModel:
    """The text encoder of a part of FLUX.1 that a configuration describes, on the meta device."""
    kind = TEXT_ENCODERS[part]
    with torch.device("meta"):
        return kind(kind.config_class.from_dict(dict(config)))


def _missing_files(flux: Path, part: str) -> list[str]:
    """The part if it is not there, else which of its files are not."""
    if not (flux / part).is_dir():
        return [part]
    present = {file: any(any((flux / part).glob(name)) for name in file.split(" or ")) for file in FLUX_PARTS[part]}
    return [f"{part}/{file}" for file, there in present.items() if not there]


def _check_part(flux: Path, part: str) -> None:
    """Raises: whatever is wrong with a part whose files are there."""
    if part in TEXT_ENCODERS:
        _checked_text_encoder(flux, part)
    elif part == "vae":
        _checked_vae(flux)
    elif part == "scheduler":
        load_schedule(flux)
    else:
        _tokenizer(flux / part)


def _checked_vae(flux: Path) -> AutoencoderKL:
    path = flux / "vae" / "config.json"
    config = read_config(path, _class_name="AutoencoderKL")
    with one_sentence(path):
        vae = new_vae(config)
    check_fits(flux / "vae", vae)
    return vae


def _checked_text_encoder(flux: Path, part: str) -> PreTrainedModel:
    path = flux / part / "config.json"
    config = read_config(path, model_type=TEXT_ENCODERS[part].config_class.model_type)
    with one_sentence(path):
        encoder = new_text_encoder(part, config)
    check_fits(flux / part, encoder, renamed=own_names)
    return encoder


def _text_encoder(flux: Path, part: str, dtype: torch.dtype) -> Any:
    empty = _checked_text_encoder(flux, part)
    state = own_names(read_tensors(flux / part))
    return type(empty).from_pretrained(None, config=empty.config, state_dict=state, dtype=dtype).eval()


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    with one_sentence(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        raise ValueError(f"{folder / 'tokenizer_config.json'} is damaged, it names no pad_token: copy it again")
    return tokenizer
