"""Objects in images by any detector of transformers: `Detector.detect`. Closed vocabularies and zero-shot ones, in batches.

The default is RT-DETR v2 on COCO. GenEval's 80 classes are COCO's, and a detector trained on them needs one forward pass
whatever is asked, is trained to give one box per object, and its scores mean the same for every class. It resizes to a fixed
square, so that a batch's padding cannot change an image's boxes. Zero-shot detectors (Grounding DINO, OWL-ViT, OWLv2) find
any class, one pass per class asked, with scores that must be calibrated per class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.models import Placement, SharedModel, Source, find_weights, shared_model
from xomni_rl.rewards.pretrained import load_pretrained, model_files
from xomni_rl.rewards.rule_checks import Box

if TYPE_CHECKING:
    import torch
    from torch import nn

SOURCE = Source(
    what="RT-DETR v2 R101 on COCO (config.json, model.safetensors, preprocessor_config.json)",
    where="https://huggingface.co/PekingU/rtdetr_v2_r101vd",
    licence="Apache-2.0",
    repo="PekingU/rtdetr_v2_r101vd",
)
# How each zero-shot family wants to be asked for a class.
_QUESTIONS = {
    "grounding-dino": "{}.",
    "mm-grounding-dino": "{}.",
    "owlvit": "a photo of a {}",
    "owlv2": "a photo of a {}",
}
# Names of one class in GenEval, COCO and the published detectors, some of which use Pascal VOC's words.
_SAME_CLASS = (
    {"computer mouse", "mouse"},
    {"computer keyboard", "keyboard"},
    {"tv remote", "remote", "remote control"},
    {"tv", "tvmonitor", "television"},
    {"cell phone", "mobile phone", "cellphone"},
    {"airplane", "aeroplane"},
    {"motorcycle", "motorbike"},
    {"couch", "sofa"},
    {"potted plant", "pottedplant"},
    {"dining table", "diningtable"},
    {"hair drier", "hair dryer"},
    {"donut", "doughnut"},
)


@dataclass
class Detections:
    """What was found in N images.

    Args:
        objects: N mappings class → boxes in any order, for the classes that were asked.
        failures: image → reason, for those whose objects are not known.
    """

    objects: list[dict[str, list[Box]]]
    failures: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Detector:
    """A detector of transformers, closed-set or zero-shot; holds options only.

    Args:
        reward: name of the reward, for messages.
        weights: folder in transformers' layout, or a name on the model hub; None = PekingU/rtdetr_v2_r101vd.
        placement: device, dtype and offloading.
        batch_size: images per forward pass.
    """

    reward: str
    weights: str | None = None
    placement: Placement = field(default_factory=Placement)
    batch_size: int = 32

    def detect(self, images: Sequence[np.ndarray], wanted: Sequence[Sequence[str]], threshold: float) -> Detections:
        """Boxes of the wanted classes.

        Args:
            images: N uint8 [H, W, 3] of any sizes; images of one size share a forward pass.
            wanted: N lists of class names.
            threshold: confidence that a box must exceed.
        Raises: RewardUnavailableError if the detector cannot be had.
        """
        shared = self._model()
        found = Detections([{name: [] for name in names} for names in wanted])
        classes = shared.extras["classes"]
        passes = _closed_passes(images, wanted, classes, found) if classes else _open_passes(images, wanted)
        with shared.use() as device:
            for (_, question), indices in passes.items():
                for start in range(0, len(indices), self.batch_size):
                    self._fill(shared, images, indices[start : start + self.batch_size], question, threshold, found, device)
        return found

    def load(self) -> None:
        """Loads the detector. Raises: RewardUnavailableError."""
        self._model()

    def files(self) -> tuple[Path, ...]:
        """Weights and configurations. Raises: RewardUnavailableError."""
        return model_files(find_weights(self.reward, self.weights, SOURCE))

    def _fill(
        self,
        shared: SharedModel,
        images: Sequence[np.ndarray],
        indices: Sequence[int],
        question: str | None,
        threshold: float,
        found: Detections,
        device: torch.device,
    ) -> None:
        """Enters the boxes of one forward pass; `question` is the class of a zero-shot pass."""
        batch = [images[index] for index in indices]
        try:
            rows = _forward(shared, batch, question, threshold, device)
        except ValueError as error:  # some processors make a side of 0 px out of a strip, which models then refuse
            height, width = batch[0].shape[:2]
            reason = f"the detector cannot take an image of {width}×{height} px ({str(error).splitlines()[0]})"
            found.failures |= dict.fromkeys(indices, reason)
            return
        for index, row in zip(indices, rows, strict=True):
            if row is None:
                found.failures[index] = "the detector returned NaN"
                continue
            for name, boxes in found.objects[index].items():
                label = shared.extras["classes"].get(_key(name)) if question is None else None
                if question is None or question == name:
                    boxes.extend(box for box, found_label in row if label is None or found_label == label)

    def _model(self) -> SharedModel:
        folder = find_weights(self.reward, self.weights, SOURCE)
        return shared_model(("detector", str(folder)), self.placement, lambda: self._loaded(folder))

    def _loaded(self, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
        import transformers as hf

        try:
            kind = hf.AutoConfig.from_pretrained(folder, local_files_only=True).model_type
            if kind in _QUESTIONS:
                processor = hf.AutoProcessor.from_pretrained(folder, local_files_only=True)
            else:
                processor = hf.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers' and JSON errors share no base class
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RewardUnavailableError(
                f'reward "{self.reward}": {folder} is not the folder of a detector ({reason}); {SOURCE.remedy("weights")}'
            ) from error
        family = hf.AutoModelForZeroShotObjectDetection if kind in _QUESTIONS else hf.AutoModelForObjectDetection
        module: Any = load_pretrained(self.reward, family, folder, SOURCE)
        labels = {} if kind in _QUESTIONS else {_key(name): int(label) for label, name in module.config.id2label.items()}
        return module, {"processor": processor, "classes": labels, "question": _QUESTIONS.get(kind)}


def write_tiny_detector(folder: Path, classes: Sequence[str]) -> None:
    """Writes an RT-DETR v2 with two small layers and random weights for the given classes, in transformers' layout."""
    import torch
    from transformers import RTDetrImageProcessor, RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection

    layers = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32], "embedding_size": 16, "layer_type": "basic"}
    width = {"d_model": 32, "encoder_hidden_dim": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    config = RTDetrV2Config(
        backbone_config=RTDetrResNetConfig(**layers, out_features=["stage2", "stage3", "stage4"]),
        **width,
        encoder_in_channels=[16, 32, 32],
        decoder_in_channels=[32, 32, 32],
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        decoder_layers=2,
        num_queries=20,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        RTDetrV2ForObjectDetection(config).save_pretrained(folder)
    RTDetrImageProcessor(size={"height": 96, "width": 96}).save_pretrained(folder)


def _closed_passes(
    images: Sequence[np.ndarray], wanted: Sequence[Sequence[str]], classes: Mapping[str, int], found: Detections
) -> dict[tuple[Hashable, str | None], list[int]]:
    """(image size, None) → images, each once; an image of which an unknown class is asked fails."""
    passes: dict[tuple[Hashable, str | None], list[int]] = defaultdict(list)
    for index, (image, names) in enumerate(zip(images, wanted, strict=True)):
        unknown = [name for name in names if _key(name) not in classes]
        if unknown:
            reason = unknown_name("class of this detector", unknown[0], classes)
            found.failures[index] = f"{reason}; a zero-shot detector, given as the option weights, finds any class"
        else:
            passes[image.shape, None].append(index)
    return passes


def _open_passes(images: Sequence[np.ndarray], wanted: Sequence[Sequence[str]]) -> dict[tuple[Hashable, str | None], list[int]]:
    """(image size, class) → images."""
    passes: dict[tuple[Hashable, str | None], list[int]] = defaultdict(list)
    for index, (image, names) in enumerate(zip(images, wanted, strict=True)):
        for name in dict.fromkeys(names):
            passes[image.shape, name].append(index)
    return passes


def _forward(
    shared: SharedModel, images: Sequence[np.ndarray], question: str | None, threshold: float, device: torch.device
) -> list[list[tuple[Box, int]] | None]:
    """Boxes with their labels for each image of one size; None where the model returned NaN."""
    import torch

    processor, module = shared.extras["processor"], shared.module
    pictures = [Image.fromarray(np.ascontiguousarray(image)) for image in images]
    inputs = processor(images=pictures, return_tensors="pt", **_texts(shared, question, len(images)))
    dtype = next(module.parameters()).dtype
    sizes = torch.tensor([image.shape[:2] for image in images], device=device)
    moved = {key: value.to(device, dtype if value.is_floating_point() else None) for key, value in inputs.items()}
    outputs = module(**moved)
    outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
    if question is None:
        results = processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)
    else:
        results = processor.post_process_grounded_object_detection(outputs, threshold=threshold, target_sizes=sizes)
    # Not all that is not finite: Grounding DINO's logits are −inf where there is no word.
    broken = outputs.logits.flatten(1).isnan().any(1) | outputs.pred_boxes.flatten(1).isnan().any(1)
    return [None if bad else _boxes(result, question) for bad, result in zip(broken.tolist(), results, strict=True)]


def _texts(shared: SharedModel, question: str | None, count: int) -> dict[str, Any]:
    if question is None:
        return {}
    text = shared.extras["question"].format(question)
    is_owl = shared.module.config.model_type.startswith("owl")  # it takes a list of questions per image
    return {"text": [[text] if is_owl else text] * count, "padding": "max_length" if is_owl else True}


def _boxes(result: Mapping[str, Any], question: str | None) -> list[tuple[Box, int]]:
    """A zero-shot result's labels are of no use: it was asked for one class."""
    labels = result["labels"].tolist() if question is None else [0] * len(result["scores"])
    corners, scores = result["boxes"].tolist(), result["scores"].tolist()
    return [
        (Box(corner[0], corner[1], corner[2], corner[3], score), label)
        for corner, score, label in zip(corners, scores, labels, strict=True)
    ]


def _key(name: str) -> str:
    """One spelling for all names of a class."""
    folded = " ".join(name.casefold().replace("_", " ").split())
    return next((min(names) for names in _SAME_CLASS if folded in names), folded)
