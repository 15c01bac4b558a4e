"""Imported before every test module: importing xomni_rl first lets a CPU-only torch import torchvision."""

import signal
import threading

import xomni_rl as xomni_rl

if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs deaf to Ctrl-C, and they would start deaf processes, which tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
