"""Imported before every test module: importing xomni_rl first lets a CPU-only torch import torchvision."""

import signal
import threading
from collections import Counter

import pytest

import xomni_rl as xomni_rl

if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs deaf to Ctrl-C, and they would start deaf processes, which tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests first: of processes side by side none should be left with a long one at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
