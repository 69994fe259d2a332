"""What a public page allows: one policy for uploads, tabs that expire, and a folder that is gone at exit."""

import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


MAX_UPLOAD = "20mb"  # of one file
MAX_PICTURES = 8  # of a conversation
MAX_QUESTION = 4000  # characters
MAX_TURNS = 40  # of a conversation
MAX_TABS = 64  # conversations that hold memory at the same time
MAX_WAITING = 32  # questions that wait for the model; more are refused
IDLE_SECONDS = 30 * 60  # after which a conversation ends and its files are removed
SWEEP_SECONDS = 60


def media_policy(folder: Path) -> dict[str, Any]:
    """Return the page's policy: files of its own folder, no URLs, the limits of "inline"."""
    return {
        "allowed_local_media_path": str(folder),
        "max_bytes_per_item": 20 << 20,
        "max_images_per_call": MAX_PICTURES,
    }


@contextmanager
def own_folder(examples: list[Path]) -> Iterator[Path]:
    """Give a temporary folder for uploads, the examples in it; it is removed at the end, SIGTERM included.

    Args:
        examples: The files that the page shows.

    Yields:
        The folder; the examples are in its folder `examples`.
    """

    def end(*_: Any) -> None:
        sys.exit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        with tempfile.TemporaryDirectory(prefix="internvl-demo-", ignore_cleanup_errors=True) as folder:
            (Path(folder) / "examples").mkdir()
            for example in examples:
                shutil.copy(example, Path(folder) / "examples")
            yield Path(folder)
    finally:
        signal.signal(signal.SIGTERM, before)


class Conversations:
    """The conversations of all tabs, by the tab's name; idle ones and too many end, which frees their memory.

    Args:
        limit: How many there may be; the one that was idle the longest ends for a new one.
        seconds: How long a conversation may be idle.
        clock: Gives the time in seconds.
    """

    def __init__(
        self, limit: int = MAX_TABS, seconds: float = IDLE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit, self.seconds, self.clock = limit, seconds, clock
        self._lock = threading.Lock()
        self._held: dict[str, tuple[Any, float]] = {}  # in the order of their last use

    def __len__(self) -> int:
        return len(self._held)

    def get(self, tab: str) -> Any:
        """Return a tab's conversation, which is used now; None if there is none."""
        with self._lock:
            conversation, _ = self._held.pop(tab, (None, 0.0))
            if conversation is not None:
                self._held[tab] = conversation, self.clock()
        return conversation

    def start(self, tab: str, conversation: Any) -> None:
        """Keep a tab's new conversation; what it had before ends."""
        with self._lock:
            ended = [self._held.pop(tab, None)]
            self._held[tab] = conversation, self.clock()
            ended += [self._held.pop(next(iter(self._held))) for _ in range(len(self._held) - self.limit)]
        _close(ended)

    def end(self, tab: str) -> None:
        """End a tab's conversation, if it has one."""
        with self._lock:
            ended = self._held.pop(tab, None)
        _close([ended])

    def sweep(self) -> None:
        """End the conversations that were idle for too long."""
        with self._lock:
            latest = self.clock() - self.seconds
            idle = [
                tab for tab, (conversation, used) in self._held.items() if used < latest and not conversation.is_busy
            ]
            ended = [self._held.pop(tab) for tab in idle]
        _close(ended)

    def sweep_for_ever(self, every: float = SWEEP_SECONDS) -> None:
        """Sweep now and then, in a thread that ends with the process."""

        def work() -> None:
            while True:
                time.sleep(every)
                self.sweep()

        threading.Thread(target=work, daemon=True, name="sweep").start()


def _close(held: list[tuple[Any, float] | None]) -> None:
    for one in held:
        if one is not None:
            one[0].close()
