"""The embedded held-out signs: text exact, characters, colour of the ground, what a second reader sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.suite import Figure, Row, Sample, Suite, number_or_none, reward_scores, suites
from xomni_rl.prompt_sets.signs import signs
from xomni_rl.prompts import Prompt, load_prompts
from xomni_rl.rewards.ocr import OcrReward
from xomni_rl.rewards.rules import RulesReward


@suites.register("signs")
class Signs(Suite):
    """Held-out signs of the embedded domain: exact text, characters, colour of the ground, second reader.

    Args:
        prompts: how many held-out prompts.
        seed: which ones; 0 are those of the shipped results.
        layout: line, as the embedded stack draws; auto finds lines in images of other generators.
    Raises: EvaluationError for less than one prompt; ValueError for another layout.
    """

    name = "signs"
    images_per_prompt = 1

    def __init__(self, prompts: int = 256, seed: int = 0, layout: str = "line") -> None:
        if type(prompts) is not int or prompts < 1:
            raise EvaluationError(f"option prompts of suite signs must be a whole number from 1, got {prompts!r}")
        self.count, self.seed = prompts, seed
        self.reader = OcrReward(metric="exact", layout=layout)
        self.second = OcrReward(metric="exact", layout=layout, engine="ppocrv4")
        self.rules = RulesReward()

    def prompts(self, path: Path | None) -> list[Prompt]:
        return signs("heldout", self.count, self.seed) if path is None else load_prompts(path)

    def facts(self, prompt: Prompt) -> Row:
        colours = [str(check["colour"]) for check in prompt.checks if check.get("kind") == "background"]
        return {"category": colours[0] if colours else "no colour asked", "target": " ".join(prompt.texts)}

    def load(self) -> None:
        for reward in (self.reader, self.second, self.rules):
            reward.load()

    def score(self, images: list[np.ndarray], samples: Sequence[Sample]) -> list[Row]:
        prompts = [sample.prompt for sample in samples]
        read, failed = reward_scores(self.reader, images, prompts)
        again, failed_again = reward_scores(self.second, images, prompts)
        ground, broken = reward_scores(self.rules, images, prompts)
        rows: list[Row] = []
        for index in range(len(images)):
            error = failed.get(index) or failed_again.get(index) or broken.get(index)
            if error:
                rows.append({"error": error})
                continue
            figures = {
                "exact": read.scores[index],
                "characters": read.metrics["char"][index],
                "instruction": ground.scores[index],
                "second_exact": again.scores[index],
                "second_characters": again.metrics["char"][index],
            }
            texts = {"read": read.details[index].get("read"), "second_read": again.details[index].get("read")}
            rows.append({name: number_or_none(value) for name, value in figures.items()} | texts)
        return rows

    def figures(self) -> tuple[Figure, ...]:
        names = ("exact", "characters", "instruction", "second_exact", "second_characters")
        return tuple(Figure(name.replace("_", " "), name) for name in names)
