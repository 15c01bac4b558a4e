"""What tests of suites share: rendered signs in a folder, and how stacks draw."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xomni_rl.experiments.evaluation.pictures import Drawing
from xomni_rl.experiments.evaluation.suite import Suite, samples_of
from xomni_rl.prompts import Prompt
from xomni_rl.stack.distribution import SamplingConfig


@pytest.fixture
def drawing() -> Drawing:
    return Drawing(SamplingConfig(), batch=4)


@pytest.fixture
def rendered() -> Callable[..., Path]:
    """Writes an image for every sample of a suite: `picture(prompt, number)`."""

    def render(
        suite: Suite, prompts: Sequence[Prompt], count: int, folder: Path, picture: Callable[[Prompt, int], np.ndarray]
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for sample in samples_of(suite, prompts, count):
            Image.fromarray(picture(sample.prompt, sample.number)).save(folder / f"{sample.names[0]}.png")
        return folder

    return render
