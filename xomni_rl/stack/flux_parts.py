"""FLUX.1's VAE, text encoders, tokenizers and schedule from a folder in diffusers' layout.

Libraries would fill in a tensor that is missing with random numbers, and read files that nobody looked at. So every tensor is
compared with the configuration first, from the headers alone, and what was compared is what is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase, T5EncoderModel

from xomni_rl.stack.described import one_sentence, read_config
from xomni_rl.stack.prompt_encoder import FluxPromptEncoder
from xomni_rl.stack.tensor_files import check_fits, read_tensors

Each = TypeVar("Each")
FLUX_PARTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")
"""What is read of a FLUX.1 folder; its own transformer is not."""
TEXT_ENCODERS: dict[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel}
TIED = ("shared.weight", "encoder.embed_tokens.weight")
"""Names of T5's one embedding; FLUX.1-dev's files have the first alone."""


def check_flux(flux: Path) -> None:
    """Looks at every part of a FLUX.1 folder; weights by their headers alone.

    Raises: OSError or ValueError for the first part that is missing, damaged or not what its configuration describes.
    """
    missing = [part for part in FLUX_PARTS if not (flux / part).is_dir()]
    if missing:
        raise FileNotFoundError(f"{flux} lacks {', '.join(missing)}")
    for part in TEXT_ENCODERS:
        _checked_text_encoder(flux, part)
    _checked_vae(flux)
    load_schedule(flux)
    for part in ("tokenizer", "tokenizer_2"):
        _tokenizer(flux / part)


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
