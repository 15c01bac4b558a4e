"""Imported before every test module: importing xomni_rl first lets a CPU-only torch import torchvision."""

import xomni_rl as xomni_rl
