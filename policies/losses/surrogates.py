"""Surrogates: what each algorithm makes of a token's log-probabilities and advantage. Plugged into `policy_loss`.

Each takes (logprobs, old_logprobs, advantages, mask), all [N, T] and 0 where masked, and returns the loss of each token
[N, T] and metrics. logprobs alone carries a gradient. Knobs are keywords, to be bound with `functools.partial`. In their
formulas r = exp(logprobs - old_logprobs) is the ratio of a token, A its advantage, and no gradient flows through sg[·].

`clip_fraction`, wherever there is a hard clip, is the share of the counted tokens that it touched.
"""

from xomni_rl.policies.losses.covariance import clip_cov as clip_cov
from xomni_rl.policies.losses.covariance import kl_cov as kl_cov
from xomni_rl.policies.losses.sequence_surrogates import gmpo as gmpo
from xomni_rl.policies.losses.sequence_surrogates import gspo as gspo
from xomni_rl.policies.losses.sequence_surrogates import gspo_token as gspo_token
from xomni_rl.policies.losses.token_surrogates import cispo as cispo
from xomni_rl.policies.losses.token_surrogates import clipped as clipped
from xomni_rl.policies.losses.token_surrogates import log_likelihood as log_likelihood
from xomni_rl.policies.losses.token_surrogates import reinforce as reinforce
from xomni_rl.policies.losses.token_surrogates import sapo as sapo
