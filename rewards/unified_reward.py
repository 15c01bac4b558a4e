"""How many points UnifiedReward gives an image: alignment with the caption, coherence, style.

Scores      (points − 1) / 4 of one aspect or of the mean of the three, in [0, 1]; higher is better. The judge's scale is 1 to
            5; projects that divide by 5 never go below 0.2, so that a worthless image still earns. The details hold the points.
Cost        one generation of about 40 tokens per image, in batches; the weights take 16.6 GB in bfloat16.
Weights     UnifiedReward-qwen-7b (a Qwen2.5-VL-7B-Instruct), MIT, from https://huggingface.co/CodeGoat24/UnifiedReward-qwen-7b.
Ways to hack it  glossy, saturated, centred pictures buy `style` whatever was asked for; painted captions buy `alignment`;
            points are coarse, so that many images of a group tie.
Source      arXiv 2503.05236. The three lines of the answer and the form of the caption are the published ones. Departures:
            the wording around them is ours (judge_prompts/unified_reward.txt), and it asks for no scores of single words,
            which the published prompt has the judge write first; for figures that compare with published ones give the
            model's own prompt as `judge_prompt`. An answer that cannot be read is a failure, not a 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import Reward, RewardError, RewardResult, RewardUnavailableError, rewards
from xomni_rl.rewards.models import Source
from xomni_rl.rewards.vlm import JUDGE_PROMPTS, VlmError, build_vlm, judge_options

UNIFIED_REWARD = Source(
    what="the model folder UnifiedReward-qwen-7b",
    where="https://huggingface.co/CodeGoat24/UnifiedReward-qwen-7b",
    licence="MIT",
    repo="CodeGoat24/UnifiedReward-qwen-7b",
)
ASPECTS = ("alignment", "coherence", "style")
CHOICES = (*ASPECTS, "mean")
LOWEST, HIGHEST = 1.0, 5.0
_LINE = r"^{aspect}\s+score\s*\(\s*1\s*-\s*5\s*\)\s*:\s*(\d+(?:\.\d+)?)(?:\s*/\s*5)?\.?$"
_LINES = {aspect: re.compile(_LINE.format(aspect=aspect), re.IGNORECASE) for aspect in ASPECTS}


@rewards.register("unified_reward")
class UnifiedReward(Reward):
    """Points that the UnifiedReward judge gives for alignment, coherence and style, as a score in [0, 1].

    Args:
        aspect: alignment, coherence, style, or the mean of the three.
        vlm: the judge, as in `vlm_alignment`; None = local.
        weights: of a local judge: model folder or hub repository; None = UnifiedReward-qwen-7b.
        device, dtype, offload: where a local judge runs.
        batch_size: images per generation of a local judge.
        judge_prompt: file with another prompt; {prompt} in it stands for the caption.
        max_new_tokens: most tokens of an answer; a prompt that asks for more than the three lines needs more.
    Raises: ValueError for an unknown aspect or values out of range.
    """

    name = "unified_reward"
    version = "1"
    range = (0.0, 1.0)
    higher_is_better = True
    needs = ("text",)
    cost = "about 40 generated tokens of a 7B judge"

    def __init__(
        self,
        aspect: str = "mean",
        vlm: Mapping[str, Any] | None = None,
        weights: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
        offload: bool = False,
        batch_size: int = 32,
        judge_prompt: str | None = None,
        max_new_tokens: int = 128,
    ) -> None:
        if aspect not in CHOICES:
            raise ValueError(unknown_name("aspect", str(aspect), CHOICES))
        if type(max_new_tokens) is not int or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}")
        self.aspect, self.max_new_tokens = aspect, max_new_tokens
        self.judge_prompt = Path(judge_prompt) if judge_prompt else JUDGE_PROMPTS / "unified_reward.txt"
        own = {"weights": weights, "device": device, "dtype": dtype, "offload": offload, "batch_size": batch_size}
        self.vlm = build_vlm(self.name, judge_options(self.name, vlm, **own), UNIFIED_REWARD)

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores of N images; details: `answer`, `points` (1 to 5 by aspect); metrics: the three aspects in [0, 1].

        Raises: RewardError for samples whose answer is missing or cannot be read, which it quotes.
        """
        answers, failures = self._answers(images, prompts)
        result = RewardResult(
            scores=np.full(len(images), np.nan, dtype=np.float32),
            details=[{"answer": answer} for answer in answers],
            metrics={aspect: np.full(len(images), np.nan, dtype=np.float32) for aspect in ASPECTS},
        )
        for index, detail in enumerate(result.details):
            try:
                points = read_points(answers[index]) if index not in failures else {}
            except ValueError as error:
                failures[index] = str(error)
            if index in failures:
                detail["reason"] = failures[index]
                continue
            detail["points"] = points
            shares = {aspect: (value - LOWEST) / (HIGHEST - LOWEST) for aspect, value in points.items()}
            for aspect, share in shares.items():
                result.metrics[aspect][index] = share
            result.scores[index] = np.mean(list(shares.values())) if self.aspect == "mean" else shares[self.aspect]
        if failures:
            raise RewardError(self.name, dict(sorted(failures.items())), result)
        return result

    def load(self) -> None:
        """Loads the judge and its prompt."""
        self._judge_prompt()
        self.vlm.load()

    def files(self) -> tuple[Path, ...]:
        """The judge's prompt, and a local judge's folder."""
        return (self.judge_prompt, *self.vlm.files())

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """A sign as it is asked for, and noise."""
        from xomni_rl.prompt_sets.signs import render_sign

        good = render_sign("K7AX", "blue").repeat(4, axis=0).repeat(4, axis=1)
        noise = np.random.default_rng(0).integers(0, 256, good.shape).astype(np.uint8)
        return good, noise, Prompt("self-check", 'a blue sign that says "K7AX"', texts=("K7AX",))

    @classmethod
    def write_tiny(cls, folder: Path) -> dict[str, Any]:
        """A tiny random Qwen2.5-VL that answers with the three lines; its points are random."""
        from xomni_rl.rewards.vlm_tiny import write_tiny_vlm

        lines = [f"{aspect.capitalize()} Score (1-5): " for aspect in ASPECTS]
        parts = [[f"{line}{points}\n" for points in range(1, 6)] for line in lines]
        return {"weights": str(write_tiny_vlm(folder, parts))}

    def _judge_prompt(self) -> str:
        try:
            text = self.judge_prompt.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RewardUnavailableError(f'reward "{self.name}": the judge\'s prompt cannot be read: {error}') from error
        if "{prompt}" not in text:
            raise RewardUnavailableError(
                f'reward "{self.name}": {self.judge_prompt} does not say where the caption goes; write {{prompt}} there'
            )
        return text

    def _answers(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> tuple[list[str], dict[int, str]]:
        """The judge's answers, "" where there is none, and its failures by index."""
        template = self._judge_prompt()
        questions = [template.replace("{prompt}", prompt.text) for prompt in prompts]
        try:
            return self.vlm.generate(images, questions, self.max_new_tokens), {}
        except VlmError as error:
            partial = [""] * len(images) if error.partial is None else [str(answer) for answer in error.partial]
            return partial, dict(error.failures)


def read_points(answer: str) -> dict[str, float]:
    """Points by aspect of an answer such as "Alignment Score (1-5): 4.5", with one line each for coherence and style.

    Other lines may stand around them, as may asterisks. Nothing is guessed: a line that is missing, or there twice with other
    points, or points outside 1 to 5, make the answer unreadable.

    Raises: ValueError quoting the answer.
    """
    lines = [line.replace("*", "").strip() for line in answer.splitlines()]
    points = {}
    for aspect, pattern in _LINES.items():
        found = {float(match[1]) for match in map(pattern.match, lines) if match}
        if len(found) != 1 or not LOWEST <= min(found) <= HIGHEST:
            shown = " ".join(answer.split())
            quoted = f'"{shown[:200]}…"' if len(shown) > 200 else f'"{shown}"'
            raise ValueError(f'the judge\'s answer has no clear "{aspect.capitalize()} Score (1-5): …" in it: {quoted}')
        points[aspect] = found.pop()
    return points
