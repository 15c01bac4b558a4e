"""Advantages from rewards: plain functions on numpy arrays, one number per rollout (or per token, with a critic).

Shared conventions: `rewards` is [N, K], one column per reward component, NaN where a component does not apply to a
rollout (or failed on it); `weights` is [K], 0 for a component that is only logged; `group` is [N], any integers, equal
for the rollouts of one prompt, in any order. A rollout to which no weighted component applies has no advantage: NaN.
Statistics are of the rollouts that have a reward, in float64. Knobs are checked whatever the rewards, an empty batch's too.
"""

from xomni_rl.policies.advantages.batch import Baseline as Baseline
from xomni_rl.policies.advantages.batch import BatchScale as BatchScale
from xomni_rl.policies.advantages.batch import batch_advantages as batch_advantages
from xomni_rl.policies.advantages.batch import reinforce_pp_advantages as reinforce_pp_advantages
from xomni_rl.policies.advantages.choices import best_indicator_advantages as best_indicator_advantages
from xomni_rl.policies.advantages.choices import preference_advantages as preference_advantages
from xomni_rl.policies.advantages.common import combine_rewards as combine_rewards
from xomni_rl.policies.advantages.common import rewards_with_kl as rewards_with_kl
from xomni_rl.policies.advantages.components import gdpo_advantages as gdpo_advantages
from xomni_rl.policies.advantages.gae import gae_advantages as gae_advantages
from xomni_rl.policies.advantages.gae import gae_returns as gae_returns
from xomni_rl.policies.advantages.greedy import remax_advantages as remax_advantages
from xomni_rl.policies.advantages.groups import Scale as Scale
from xomni_rl.policies.advantages.groups import group_advantages as group_advantages
from xomni_rl.policies.advantages.groups import opo_advantages as opo_advantages
from xomni_rl.policies.advantages.groups import pass_at_k_advantages as pass_at_k_advantages
from xomni_rl.policies.advantages.groups import rloo_advantages as rloo_advantages
