"""`transformers serve` as a program, also beside a torchvision without its compiled image reader: Pillow reads then."""

import io

import xomni_rl as xomni_rl  # lets a CPU-only torch import torchvision

import torchvision.io as torchvision_io  # isort: skip
from torchvision.io import image as compiled  # isort: skip


def read_with_pillow(data, mode=None, apply_exif_orientation=False):  # type: ignore[no-untyped-def]
    """torchvision's `decode_image`: uint8 bytes [n] → uint8 [3, H, W]."""
    import numpy as np
    import torch
    from PIL import Image

    return torch.from_numpy(np.array(Image.open(io.BytesIO(data.numpy().tobytes())).convert("RGB"))).permute(2, 0, 1)


if __name__ == "__main__":
    try:
        compiled._assert_has_image_ops()
    except RuntimeError:
        torchvision_io.decode_image = compiled.decode_image = read_with_pillow
    from transformers.cli.transformers import main

    main()
