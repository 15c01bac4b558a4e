"""X-Omni: the embedded stack, folders of `xomni-rl pretrain`, and the public checkpoint's classes."""

from xomni_rl.stack.family import families
from xomni_rl.stack.stack import Stack

families.register("xomni")(Stack)
