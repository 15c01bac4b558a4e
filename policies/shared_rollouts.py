"""Rollouts shared between the processes of a run: each rolls out some of the prompts, and all get the whole scored batch.

A sample's random stream is keyed by seed, prompt id and index, so it is the same sample whichever process draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from xomni_rl.envs.groups import joined
from xomni_rl.envs.packing import packed, packed_pictures, unpacked
from xomni_rl.envs.rollout import RolloutBatch
from xomni_rl.policies.distributed import Team
from xomni_rl.policies.policy import Sampler
from xomni_rl.prompts import Prompt
from xomni_rl.stack.sampler import SamplingConfig


@dataclass(frozen=True)
class SharedRollouts:
    """A policy whose rollouts are shared between the processes of a team.

    Attributes:
        policy: rolls out this process's share.
        team: the processes.
        device: where tokens are wanted.
    """

    policy: Sampler
    team: Team
    device: torch.device

    def rollout(
        self,
        prompts: Sequence[Prompt],
        reward: Any,
        *,
        group_size: int,
        seed: int,
        sampling: SamplingConfig | None = None,
    ) -> RolloutBatch:
        """What the policy's `rollout` gives for all prompts; `times` are those of the slowest process.

        Images and details are in the first process alone; in the others images are [N, 0, 0, 3] and details empty.

        Raises: what the policy's `rollout` raises here; PeerError if it failed elsewhere.
        """

        def roll_out(chosen: Sequence[Prompt]) -> RolloutBatch:
            return self.policy.rollout(chosen, reward, group_size=group_size, seed=seed, sampling=sampling)

        if self.team.size == 1:
            return roll_out(prompts)
        mine = self.team.share(prompts)
        batch = self._whole(self.team.together(lambda: roll_out(mine) if mine else None), prompts, group_size)
        if "batch" in reward.normalised_by:
            batch.rewards.normalised = reward.normalised(batch.rewards.components, batch.group)
        return batch

    def _whole(self, mine: RolloutBatch | None, prompts: Sequence[Prompt], group_size: int) -> RolloutBatch:
        """All processes' batches as one."""
        team = self.team
        tensors, about = packed(mine) if mine is not None else ({}, None)
        everyones = zip(team.tensors(tensors), team.gathered(about), strict=True)
        pictures = team.tensors(packed_pictures(mine) if mine is not None else {}, only_first=True)
        parts = []
        for rank, (found, described) in enumerate(everyones):
            if described is not None:
                seen = pictures[rank] if team.leads else {}
                share = replace(team, rank=rank).share(prompts)
                parts.append(unpacked(found, described, seen, share, group_size, self.device))
        slowest = {name: max(part.times[name] for part in parts) for name in parts[0].times}
        return replace(joined(parts), times=slowest)
