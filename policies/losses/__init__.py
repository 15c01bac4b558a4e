"""Policy losses over image tokens: plain functions on tensors, no model and no configuration inside.

Conventions: N rollouts, T image tokens, log-probabilities in nats; `mask` is True where a token counts. A token that
does not count changes neither the loss, nor a metric, nor a gradient, whatever it holds, NaN included.
"""

from xomni_rl.policies.losses.common import Aggregation as Aggregation
from xomni_rl.policies.losses.common import KLEstimator as KLEstimator
from xomni_rl.policies.losses.common import aggregate as aggregate
from xomni_rl.policies.losses.common import kl_estimate as kl_estimate
from xomni_rl.policies.losses.common import sequence_kl as sequence_kl
from xomni_rl.policies.losses.correction import importance_weights as importance_weights
from xomni_rl.policies.losses.policy import Surrogate as Surrogate
from xomni_rl.policies.losses.policy import policy_loss as policy_loss
from xomni_rl.policies.losses.preference import dpo_loss as dpo_loss
