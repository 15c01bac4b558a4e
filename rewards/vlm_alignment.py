"""Does the image show what was asked for? A vision-language model answers Yes or No to questions about it.

Scores      the mean of P(yes) over the questions, in [0, 1]; higher is better. P(yes) = p(yes) / (p(yes) + p(no)) as the first
            token of the answer, each over its usual spellings. (Others return the logit difference, or 0 and 1 from the
            answer's words: unbounded, or without a slope to climb.)
Questions   `facts`: one per text that must be legible and per checked colour of the background, class, count, colour and
            position; `prompt`: whether the image shows all that the prompt says; `both` (default) averages over all of them,
            so that every prompt has a score and stated facts count one by one.
Not applicable (NaN)  with `questions: facts`, to a prompt that states none.
Cost        one row of a forward per question, all questions of a batch together; the 7B judge's weights take 16.6 GB in
            bfloat16.
Weights     Qwen2.5-VL-7B-Instruct, Apache-2.0, from https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct; or any model that the
            transformers package loads or an OpenAI-compatible server serves.
Ways to hack it  a caption or "Yes" painted into the image; bold symbols instead of scenes; whatever this judge mistakes for the
            thing. It reads long or small text badly: use `ocr` for text. Watch it with a held-out reward and `audit`.
Source      the judge of X-Omni (arXiv 2507.22058) is the same model; its prompt is not published. The questions are ours:
            judge_prompts/vlm_alignment.txt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import Reward, RewardError, RewardResult, rewards
from xomni_rl.rewards.facts import FactError, Question, fact_questions, prompt_question, read_questions
from xomni_rl.rewards.vlm import JUDGE_PROMPTS, VlmError, build_vlm, judge_options

QUESTIONS = ("both", "facts", "prompt")
_NO_FACTS = "the prompt states no facts to ask about (texts, or checks of a background, class, count, colour or position)"


@rewards.register("vlm_alignment")
class VlmAlignment(Reward):
    """Instruction following: the judge's P(yes) to questions about the prompt's facts and the whole prompt.

    Args:
        questions: both, facts or prompt.
        vlm: the judge: {backend: local, …} with the fields of `LocalVlm`, or {backend: server, url, model, …} with those of
            `ServerVlm`; None = local.
        weights: of a local judge: model folder or hub repository; None = Qwen2.5-VL-7B-Instruct.
        device, dtype, offload: where a local judge runs.
        batch_size: questions per forward of a local judge.
        judge_prompt: file with other questions, in the form of judge_prompts/vlm_alignment.txt.
    Raises: ValueError for an unknown choice or values out of range.
    """

    name = "vlm_alignment"
    version = "1"
    range = (0.0, 1.0)
    higher_is_better = True
    needs = ("text", "texts", "checks")
    cost = "one row of a forward of a 7B judge per question"

    def __init__(
        self,
        questions: str = "both",
        vlm: Mapping[str, Any] | None = None,
        weights: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
        offload: bool = False,
        batch_size: int = 32,
        judge_prompt: str | None = None,
    ) -> None:
        if questions not in QUESTIONS:
            raise ValueError(unknown_name("questions", str(questions), QUESTIONS))
        self.questions = questions
        self.judge_prompt = Path(judge_prompt) if judge_prompt else JUDGE_PROMPTS / "vlm_alignment.txt"
        own = {"weights": weights, "device": device, "dtype": dtype, "offload": offload, "batch_size": batch_size}
        self.vlm = build_vlm(self.name, judge_options(self.name, vlm, **own))

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores of N images; details: `questions` (kind, question, P(yes)), `skipped` checks; metrics: `facts`, `prompt`.

        Raises: RewardError for samples with a malformed check or a question that the judge failed on.
        """
        result = RewardResult(
            scores=np.full(len(images), np.nan, dtype=np.float32),
            details=[{} for _ in images],
            metrics={kind: np.full(len(images), np.nan, dtype=np.float32) for kind in ("facts", "prompt")},
        )
        failures: dict[int, str] = {}
        asked: list[tuple[int, Question]] = []
        for index, prompt in enumerate(prompts):
            try:
                found, skipped = self._questions(prompt)
            except FactError as error:
                failures[index] = str(error)
                continue
            asked += [(index, question) for question in found]
            result.details[index] = {"questions": [], **({"skipped": skipped} if skipped else {})}
            if not found:
                result.details[index]["reason"] = _NO_FACTS
        self._judge(images, asked, result, failures)
        self._average(result, failures)
        if failures:
            raise RewardError(self.name, dict(sorted(failures.items())), result)
        return result

    def load(self) -> None:
        """Loads the judge and its questions."""
        read_questions(self.name, self.judge_prompt)
        self.vlm.load()

    def files(self) -> tuple[Path, ...]:
        """The questions, and a local judge's folder."""
        return (self.judge_prompt, *self.vlm.files())

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """A sign as it is asked for, and a grey picture."""
        from xomni_rl.prompt_sets.signs import render_sign, sign_prompt

        good = render_sign("K7AX", "blue")
        return good, np.full_like(good, 127), sign_prompt("K7AX", "blue", 'a {colour} sign that says "{text}"', "self-check")

    @classmethod
    def write_tiny(cls, folder: Path) -> dict[str, Any]:
        """A tiny random Qwen2.5-VL that answers Yes or No."""
        from xomni_rl.rewards.vlm_tiny import YES_NO, write_tiny_vlm

        return {"weights": str(write_tiny_vlm(folder, YES_NO))}

    def _questions(self, prompt: Prompt) -> tuple[list[Question], list[Mapping[str, Any]]]:
        """The questions of a sample, and its checks that nothing is asked about. Raises: FactError."""
        templates = read_questions(self.name, self.judge_prompt)
        whole = [prompt_question(prompt, templates)] if self.questions != "facts" else []
        facts, skipped = fact_questions(prompt, templates) if self.questions != "prompt" else ([], [])
        return facts + whole, skipped

    def _judge(
        self, images: list[np.ndarray], asked: list[tuple[int, Question]], result: RewardResult, failures: dict[int, str]
    ) -> None:
        """Puts all questions in one call; fills the details and the failures."""
        failed: dict[int, str] = {}
        try:
            chances = self.vlm.yes_probability([images[i] for i, _ in asked], [question.text for _, question in asked])
        except VlmError as error:
            failed, chances = error.failures, np.full(len(asked), np.nan)
            if error.partial is not None:
                chances = np.asarray(error.partial, dtype=np.float64)
        for position, (index, question) in enumerate(asked):
            if position in failed:
                failures.setdefault(index, f'question "{question.text:.80}": {failed[position]}')
                continue
            answer = {"kind": question.kind, "question": question.text, "yes": float(chances[position])}
            result.details[index]["questions"].append(answer)

    def _average(self, result: RewardResult, failures: Mapping[int, str]) -> None:
        for index, detail in enumerate(result.details):
            if index in failures:
                detail["reason"] = failures[index]
                continue
            answers = detail["questions"]
            whole = [answer["yes"] for answer in answers if answer["kind"] == "prompt"]
            facts = [answer["yes"] for answer in answers if answer["kind"] != "prompt"]
            for values, chances in ((result.metrics["prompt"], whole), (result.metrics["facts"], facts)):
                if chances:
                    values[index] = np.mean(chances)
            if answers:
                result.scores[index] = np.mean(facts + whole)
