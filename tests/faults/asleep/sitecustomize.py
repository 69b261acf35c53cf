"""In every interpreter that has this folder on its path, SIGUSR2 puts the main thread to sleep for ever: the process
lives, its other threads send heartbeats, and it never enters the next collective."""

import signal
import time

signal.signal(signal.SIGUSR2, lambda *_: time.sleep(10**6))
