"""Helpers for pools of worker processes."""

import os
import threading
import time


def exit_with_parent() -> None:
    """Make this worker end when its parent is gone; pass it to a pool as `initializer`.

    Without it, workers of a killed run go on with the queued work beside the restarted one, and then wait for ever.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
