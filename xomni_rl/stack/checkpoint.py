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
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerFast, Qwen2TokenizerFast

from xomni_rl.stack.any_resolution import AnyResolution
from xomni_rl.stack.autoregressive import XOmniConfig, XOmniForCausalLM
from xomni_rl.stack.decoder import DiffusionDecoder
from xomni_rl.stack.flux import FLUX_PARTS, joined_tensors, load_flux_decoder, new_transformer, transformer_config
from xomni_rl.stack.image_tokenizer import SemanticImageTokenizer, VQProjector, load_exactly
from xomni_rl.stack.siglip import heads_of, new_vision, renamed, vision_config
from xomni_rl.stack.tensor_files import check_fits, compare_shapes, read_header, read_shapes, read_tensors

PIXELS_PER_TOKEN = 16


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
    except (OSError, ValueError, AttributeError):
        return False


def read_published(folder: str | Path, flux: str | Path | None = None) -> Published:
    """A checkpoint folder's description; nothing large is read.

    Raises: ValueError if config.json is damaged or lacks `vision_config`.
    """
    folder = Path(folder)
    try:
        config = XOmniConfig.from_pretrained(folder, local_files_only=True)
    except StrictDataclassError as error:
        raise ValueError(
            f"{folder / 'config.json'} is no X-Omni configuration: {str(error).splitlines()[-1].strip()}"
        ) from error
    vision = config.vision_config
    parts = ("encoder", "decoder")
    if not isinstance(vision, dict) or not all(isinstance(vision.get(part), dict) for part in parts):
        raise ValueError(
            f"{folder / 'config.json'} lacks vision_config with {' and '.join(parts)}: "
            "image tokenizer and decoder cannot be found without it"
        )
    known = AnyResolution.__dataclass_fields__
    transform = {name: value for name, value in (vision.get("transform") or {}).items() if name in known}
    return Published(
        folder, None if flux is None else Path(flux), config, vision["encoder"], vision["decoder"], AnyResolution(**transform)
    )


def problems(published: Published) -> Iterator[tuple[str, str | None]]:
    """Every part of a checkpoint with what is wrong with it; None = in order. Only headers are read."""
    yield "autoregressive model", _first_problem(lambda: _check_model(published))
    yield "text tokenizer", _first_problem(lambda: _check_tokenizer(published))
    yield "vision encoder", _first_problem(lambda: _check_vision(published))
    yield "projector", _first_problem(lambda: _check_projector(published))
    yield "decoder", _first_problem(lambda: _check_decoder(published))
    yield "FLUX.1-dev", _first_problem(lambda: _check_flux(published))


def load_model(published: Published, dtype: torch.dtype) -> XOmniForCausalLM:
    """Raises: OSError or ValueError for a missing, damaged or unfitting file."""
    _check_model(published)  # transformers would fill in what is missing with random numbers
    return XOmniForCausalLM.from_pretrained(published.folder, local_files_only=True, use_safetensors=True, dtype=dtype).eval()


def load_text_tokenizer(published: Published) -> PreTrainedTokenizerFast:
    """Raises: OSError or ValueError for a missing or damaged file."""
    _check_tokenizer(published)
    kind = PreTrainedTokenizerFast if (published.folder / "tokenizer.json").is_file() else Qwen2TokenizerFast
    return kind.from_pretrained(published.folder, local_files_only=True)


def load_image_tokenizer(published: Published) -> SemanticImageTokenizer:
    """Raises: OSError or ValueError for a missing, damaged or unfitting file."""
    state = renamed(read_tensors(published.vision_file))
    vision = new_vision(_vision_config(published, state))
    load_exactly(vision, state, str(published.vision_file))
    projector = VQProjector(**published.projector_sizes)
    load_exactly(projector, read_tensors(published.projector_file), str(published.projector_file))
    return SemanticImageTokenizer(vision.eval(), projector.eval())


def load_decoder(published: Published, projector: VQProjector, dtype: torch.dtype, **options: Any) -> DiffusionDecoder:
    """The decoder; `options` as in `load_flux_decoder`. Raises: OSError or ValueError as above."""
    _check_flux(published)
    _check_decoder(published)
    assert published.flux is not None
    return load_flux_decoder(published.decoder_folder, published.flux, projector, published.decoder, dtype, **options)


def _vision_config(published: Published, state: Mapping[str, Any]) -> Any:
    encoder = published.encoder
    heads = encoder.get("num_heads") or heads_of(str(encoder.get("siglip_name", "")))
    return vision_config(state, int(heads), str(encoder.get("activation", "gelu_pytorch_tanh")))


def _first_problem(check: Any) -> str | None:
    try:
        check()
    except (OSError, ValueError) as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None


def _shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _check_model(published: Published) -> None:
    with torch.device("meta"):
        model = XOmniForCausalLM(published.config)
    check_fits(published.folder, model, besides="image_tokenizer")


def _check_tokenizer(published: Published) -> None:
    folder = published.folder
    if not (folder / "tokenizer.json").is_file() and not all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    ):
        raise FileNotFoundError(f"{folder} lacks tokenizer.json, or vocab.json and merges.txt")


def _check_vision(published: Published) -> None:
    shapes = _file_shapes(published.vision_file)
    with torch.device("meta"):
        state = renamed({name: torch.empty(shape) for name, shape in shapes.items()})
        wanted = _shapes(new_vision(_vision_config(published, state)))
    compare_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, wanted, published.vision_file)


def _check_projector(published: Published) -> None:
    with torch.device("meta"):
        wanted = _shapes(VQProjector(**published.projector_sizes))
    compare_shapes(_file_shapes(published.projector_file), wanted, published.projector_file)


def _check_decoder(published: Published) -> None:
    _check_upscaling(published)
    folder, features = published.decoder_folder, published.projector_sizes["z_channels"]
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} lacks config.json")
    config = transformer_config(folder)
    plain = new_transformer(config)
    with torch.device("meta"):
        found = {name: torch.empty(shape) for name, shape in read_shapes(folder).items()}
        state = joined_tensors(found, set(plain.state_dict()), plain.inner_dim, features)
    compare_shapes({name: tuple(t.shape) for name, t in state.items()}, _shapes(new_transformer(config, features)), folder)


def _check_upscaling(published: Published) -> None:
    """The latents must stand on the tokens' grid: a factor of 16 px per token, or 1 in multiples of that."""
    factor = float(published.decoder.get("upscale_factor", 1))
    if factor not in (1.0, float(PIXELS_PER_TOKEN)):
        raise ValueError(
            f"vision_config.decoder.upscale_factor is {factor:g}: only pictures of {PIXELS_PER_TOKEN} px per token can be "
            f"decoded (1, or {PIXELS_PER_TOKEN})"
        )


def _check_flux(published: Published) -> None:
    if published.flux is None:
        raise FileNotFoundError("no folder given: give FLUX.1-dev's with flux=FOLDER (its own transformer is not needed)")
    missing = [part for part in FLUX_PARTS if not (published.flux / part).is_dir()]
    if missing:
        raise FileNotFoundError(f"{published.flux} lacks {', '.join(missing)}")
    for part in ("text_encoder", "text_encoder_2", "vae"):
        read_shapes(published.flux / part)


def _file_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Of a safetensors file its header's; a pickled one has to be read."""
    if path.suffix == ".safetensors" and path.is_file():
        return read_header(path)
    return {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}
