"""T2I-CompBench, what a VLM or CLIP can score: colours, shapes, textures, non-spatial relations (arXiv:2307.06350).

Departs from the published scripts: a VLM answers for BLIP-VQA, and a prompt is cut into its phrases at commas and "and" instead
of spaCy's noun chunks, so figures are not comparable with published ones. Left out, because they need other models: spatial and
3d_spatial relations, numeracy (UniDet) and complex prompts (all of them together).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.questions import Question, ask
from xomni_rl.experiments.evaluation.suite import Figure, Row, Sample, Suite, published_file, suites
from xomni_rl.prompts import Prompt, line_rows, usable_prompts
from xomni_rl.rewards.clip import ClipReward
from xomni_rl.rewards.vlm import build_vlm, judge_options

ORIGIN = (
    "T2I-CompBench's are examples/dataset/{color,shape,texture,non_spatial}_val.txt of github.com/Karine-Huang/T2I-CompBench"
)
ATTRIBUTES = ("color", "shape", "texture")
PARTS = (*ATTRIBUTES, "non_spatial")


@suites.register("t2i_compbench")
class T2iCompBench(Suite):
    """T2I-CompBench's colours, shapes and textures by a VLM, and non-spatial relations by CLIP; the other parts are left out.

    Args:
        vlm: the judge of attributes: {backend: local, weights: …} or {backend: server, url: …, model: …}; None = Qwen2.5-VL.
        clip: options of the reward `clip`, as {model: ViT-B-32-quickgelu, weights: openai}; None = the embedded one, which
            knows signs alone.
    Raises: ValueError for values that there are not.
    """

    name = "t2i_compbench"
    images_per_prompt = 10
    origin = ORIGIN

    def __init__(self, vlm: Mapping[str, Any] | None = None, clip: Mapping[str, Any] | None = None) -> None:
        self.vlm = build_vlm(self.name, judge_options(self.name, vlm))
        self.clip = ClipReward(**(clip or {}))
        self.parts: set[str] = set()

    def prompts(self, path: Path | None) -> list[Prompt]:
        """Of one file, or of a folder's PART_val.txt files."""
        place = published_file(self.name, path, self.origin)
        files = [place / f"{part}_val.txt" for part in PARTS] if place.is_dir() else [place]
        files = [file for file in files if file.is_file()]
        if not files:
            raise EvaluationError(f"{place}: holds none of {', '.join(f'{part}_val.txt' for part in PARTS)}; {ORIGIN}")
        return [prompt for file in files for prompt in self._of_file(file)]

    def facts(self, prompt: Prompt) -> Row:
        return {"category": prompt.metadata["part"]}

    def load(self) -> None:
        if self.parts & set(ATTRIBUTES):
            self.vlm.load()
        if "non_spatial" in self.parts:
            self.clip.load()

    def score(self, images: list[np.ndarray], samples: Sequence[Sample]) -> list[Row]:
        by_vlm = [index for index, sample in enumerate(samples) if sample.prompt.metadata["part"] in ATTRIBUTES]
        by_clip = [index for index in range(len(samples)) if index not in by_vlm]
        rows: dict[int, Row] = {}
        graphs = [phrase_questions(samples[index].prompt.text) for index in by_vlm]
        answers, failures = ask(self.vlm, [images[index] for index in by_vlm], graphs)
        for position, (index, graph) in enumerate(zip(by_vlm, graphs, strict=True)):
            chances = [answers[position][question.number] for question in graph]
            said = {question.text: round(chance, 4) for question, chance in zip(graph, chances, strict=True)}
            rows[index] = {"attributes": float(np.prod(chances)), "answers": json.dumps(said, ensure_ascii=False)}
            if position in failures:
                rows[index] = {"error": failures[position]}
        if by_clip:
            cosines = self.clip([images[index] for index in by_clip], [samples[index].prompt for index in by_clip]).scores
            rows |= {index: {"clip": float(cosine)} for index, cosine in zip(by_clip, cosines, strict=True)}
        return [rows[index] for index in range(len(samples))]

    def figures(self) -> tuple[Figure, ...]:
        attributes = (Figure("attributes", "attributes", by="category"),) if self.parts & set(ATTRIBUTES) else ()
        return (*attributes, *((Figure("clip", "clip"),) if "non_spatial" in self.parts else ()))

    def _of_file(self, file: Path) -> list[Prompt]:
        part = next((part for part in PARTS if re.fullmatch(rf"{part}(_val)?(_seen|_unseen)?", file.stem)), None)
        if part is None:
            raise EvaluationError(f"{file}: this suite scores {', '.join(PARTS)} and tells them by the file's name; {ORIGIN}")
        self.parts.add(part)
        found = usable_prompts(line_rows(file))
        return [Prompt(id=f"{part}-{prompt.id}", text=prompt.text, metadata={"part": part}) for prompt in found]


def phrase_questions(prompt: str) -> list[Question]:
    """A question for each phrase of a prompt, which end at commas and "and".

    >>> [question.text for question in phrase_questions("a red book and a yellow vase.")]
    ['Does this image show a red book?', 'Does this image show a yellow vase?']
    """
    phrases = [part.strip(" .") for part in re.split(r",|\band\b", prompt)]
    kept = [phrase for phrase in phrases if phrase] or [prompt]
    return [Question(number, f"Does this image show {phrase}?") for number, phrase in enumerate(kept, start=1)]
