"""The published X-Omni layout: what a checkpoint folder must hold, what is wrong with one, and its parts loaded.

    config.json                     the autoregressive model's, with `vision_config`
    model-0000?-of-0000?.safetensors  its tensors, and their index
    tokenizer.json (or vocab.json and merges.txt), tokenizer_config.json
    <encoder.siglip_path>           the vision encoder, one file
    <encoder.projector_path>        the projector, one file
    <decoder.model_path>/           the decoder's transformer: config.json and safetensors

FLUX.1-dev's VAE and text encoders are a folder of their own, in diffusers' layout. What is wrong is found from file names and
headers alone, before anything large is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2TokenizerFast

from xomni_rl.stack.any_resolution import AnyResolution
from xomni_rl.stack.autoregressive import XOmniConfig, XOmniForCausalLM
from xomni_rl.stack.decoder import DiffusionDecoder
from xomni_rl.stack.described import first_problem, one_sentence, read_config
from xomni_rl.stack.flux import joined_tensors, load_flux_decoder, new_transformer, transformer_config
from xomni_rl.stack.flux_parts import check_flux
from xomni_rl.stack.image_tokenizer import SemanticImageTokenizer, VQProjector, load_exactly
from xomni_rl.stack.siglip import heads_of, new_vision, renamed, vision_config
from xomni_rl.stack.stack_folder import StackError
from xomni_rl.stack.tensor_files import (
    FLOATING,
    PICKLED,
    check_fits,
    compare_shapes,
    read_entries,
    read_tensors,
    refuse_whole_numbers,
)

PIXELS_PER_TOKEN = 16
BESIDES = "image_tokenizer"
"""In the names of tensors that may lie among the autoregressive model's and are not its own."""


@dataclass(frozen=True)
class Published:
    """A checkpoint folder and what its config.json says.

    Attributes:
        folder: of the checkpoint.
        flux: of FLUX.1-dev; None = not given.
        config: of the autoregressive model.
        encoder, decoder, transform: parts of its `vision_config`.
    """

    folder: Path
    flux: Path | None
    config: XOmniConfig
    encoder: Mapping[str, Any]
    decoder: Mapping[str, Any]
    transform: AnyResolution

    @property
    def vision_file(self) -> Path:
        return self.folder / str(self.encoder.get("siglip_path", "?"))

    @property
    def projector_file(self) -> Path:
        return self.folder / str(self.encoder.get("projector_path", "?"))

    @property
    def decoder_folder(self) -> Path:
        return self.folder / str(self.decoder.get("model_path", "?"))

    @property
    def projector_sizes(self) -> dict[str, int]:
        """z_channels, codebook_size, codebook_dim."""
        known = {"z_channels": 1536, "codebook_size": 16384, "codebook_dim": 2048}
        return {name: int(self.encoder.get(name, value)) for name, value in known.items()}


def is_published(folder: Path) -> bool:
    """Whether a folder is in the published layout: its config.json is an X-Omni model's."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == XOmniConfig.model_type
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def read_published(folder: str | Path, flux: str | Path | None = None) -> Published:
    """A checkpoint folder's description; nothing large is read.

    Raises: ValueError if config.json is damaged or lacks `vision_config`.
    """
    folder = Path(folder)
    described = read_config(folder / "config.json", model_type=XOmniConfig.model_type)
    with one_sentence(folder / "config.json"):
        config = XOmniConfig.from_dict(described)
    vision = config.vision_config
    parts = ("encoder", "decoder")
    if not isinstance(vision, dict) or not all(isinstance(vision.get(part), dict) for part in parts):
        raise ValueError(
            f"{folder / 'config.json'} lacks vision_config with {' and '.join(parts)}: "
            "image tokenizer and decoder cannot be found without it"
        )
    with one_sentence(folder / "config.json"):
        known = AnyResolution.__dataclass_fields__
        transform = AnyResolution(**{name: each for name, each in (vision.get("transform") or {}).items() if name in known})
    return Published(folder, None if flux is None else Path(flux), config, vision["encoder"], vision["decoder"], transform)


def problems(published: Published) -> Iterator[tuple[str, str | None]]:
    """Every part of a checkpoint with what is wrong with it; None = in order. Only headers are read."""
    yield "autoregressive model", first_problem(lambda: _check_model(published))
    yield "text tokenizer", first_problem(lambda: load_text_tokenizer(published))
    yield "vision encoder", first_problem(lambda: _check_vision(published))
    yield "projector", first_problem(lambda: _check_projector(published))
    yield "decoder", first_problem(lambda: _check_decoder(published))
    yield "FLUX.1-dev", first_problem(lambda: check_flux_given(published))


def check_flux_given(published: Published) -> None:
    """Raises: StackError if no folder of FLUX.1-dev was given, or naming everything that is wrong with it."""
    if published.flux is None:
        raise StackError(
            f"{published.folder} needs FLUX.1-dev's VAE and text encoders: say where they lie with --flux FOLDER, in a "
            "configuration with model.options.flux=FOLDER (FLUX.1-dev's own transformer is not needed)"
        )
    check_flux(published.flux)


def load_model(published: Published, dtype: torch.dtype) -> XOmniForCausalLM:
    """Raises: OSError or ValueError for a missing, damaged or unfitting file."""
    _check_model(published)  # transformers would fill in what is missing with random numbers
    folder = published.folder
    state = {name: tensor for name, tensor in read_tensors(folder).items() if BESIDES not in name}
    model: Any = XOmniForCausalLM.from_pretrained(None, config=published.config, state_dict=state, dtype=dtype)
    model.config.name_or_path = str(folder)
    if (folder / "generation_config.json").is_file():
        with one_sentence(folder / "generation_config.json"):
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()


def load_text_tokenizer(published: Published) -> PreTrainedTokenizerFast:
    """Raises: OSError or ValueError for a missing or damaged file."""
    folder = published.folder
    if not (folder / "tokenizer.json").is_file() and not all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    ):
        raise FileNotFoundError(f"{folder} lacks tokenizer.json, or vocab.json and merges.txt")
    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else Qwen2TokenizerFast
    with one_sentence(folder / ("tokenizer.json" if kind is PreTrainedTokenizerFast else "vocab.json")):
        return kind.from_pretrained(folder, local_files_only=True)


def load_image_tokenizer(published: Published) -> SemanticImageTokenizer:
    """Raises: OSError or ValueError for a missing, damaged or unfitting file."""
    _check_vision(published)
    _check_projector(published)
    state = renamed(read_tensors(published.vision_file))
    vision = new_vision(_vision_config(published, state))
    load_exactly(vision, state, str(published.vision_file))
    projector = VQProjector(**published.projector_sizes)
    load_exactly(projector, read_tensors(published.projector_file), str(published.projector_file))
    return SemanticImageTokenizer(vision.eval(), projector.eval())


def load_decoder(published: Published, projector: VQProjector, dtype: torch.dtype, **options: Any) -> DiffusionDecoder:
    """The decoder; `options` as in `load_flux_decoder`. Raises: OSError or ValueError as above.

    Args:
        published: whose FLUX.1 folder `check_flux_given` has found in order.
    """
    _check_decoder(published)
    assert published.flux is not None
    return load_flux_decoder(published.decoder_folder, published.flux, projector, published.decoder, dtype, **options)


def _vision_config(published: Published, state: Mapping[str, Any]) -> Any:
    encoder = published.encoder
    heads = encoder.get("num_heads") or heads_of(str(encoder.get("siglip_name", "")))
    return vision_config(state, int(heads), str(encoder.get("activation", "gelu_pytorch_tanh")))


def _shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _check_model(published: Published) -> None:
    with one_sentence(published.folder / "config.json"), torch.device("meta"):
        model = XOmniForCausalLM(published.config)
    check_fits(published.folder, model, besides=BESIDES)


def _check_vision(published: Published) -> None:
    shapes = _weights(published.vision_file)
    with one_sentence(published.vision_file), torch.device("meta"):
        state = renamed({name: torch.empty(shape) for name, shape in shapes.items()})
        wanted = _shapes(new_vision(_vision_config(published, state)))
    compare_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, wanted, published.vision_file)


def _check_projector(published: Published) -> None:
    with one_sentence(published.folder / "config.json"), torch.device("meta"):
        wanted = _shapes(VQProjector(**published.projector_sizes))
    compare_shapes(_weights(published.projector_file), wanted, published.projector_file)


def _check_decoder(published: Published) -> None:
    _check_upscaling(published)
    folder, features = published.decoder_folder, published.projector_sizes["z_channels"]
    config, shapes = transformer_config(folder), _weights(folder)
    with one_sentence(folder), torch.device("meta"):
        plain, wanted = new_transformer(config), _shapes(new_transformer(config, features))
        found = {name: torch.empty(shape) for name, shape in shapes.items()}
        state = joined_tensors(found, set(plain.state_dict()), plain.inner_dim, features)
    compare_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, wanted, folder)


def _check_upscaling(published: Published) -> None:
    """The latents must stand on the tokens' grid: a factor of 16 px per token, or 1 in multiples of that."""
    factor = float(published.decoder.get("upscale_factor", 1))
    if factor not in (1.0, float(PIXELS_PER_TOKEN)):
        raise ValueError(
            f"vision_config.decoder.upscale_factor is {factor:g}: only pictures of {PIXELS_PER_TOKEN} px per token can be "
            f"decoded (1, or {PIXELS_PER_TOKEN})"
        )


def _weights(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of floating point tensors, from headers; a pickled file has to be read.

    Raises: OSError or ValueError for a missing or damaged file, or one with whole numbers.
    """
    if path.suffix in PICKLED or not path.exists():
        read = read_tensors(path)
        whole = [name for name, tensor in read.items() if not tensor.is_floating_point()]
        shapes = {name: tuple(tensor.shape) for name, tensor in read.items()}
    else:
        entries = read_entries(path)
        whole = [name for name, (kind, _) in entries.items() if kind not in FLOATING]
        shapes = {name: shape for name, (_, shape) in entries.items()}
    refuse_whole_numbers(whole, path)
    return shapes
