"""
One piece of work at a time beside the training: a thread that writes while the next steps run.

    background = Background()
    background.start(write)            # waits for the one before, and raises what that one raised
    background.wait()                  # True when nothing is under way any more
    background.wait(seconds=20)        # False when it is not done by then

An error is kept until somebody waits, so none is lost unless the process fails of something else first.
"""

from collections.abc import Callable
from threading import Thread


class Background:
    """Work on a daemon thread: a process that leaves at once does not wait for it."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin once the work before is done."""
        self.wait()
        self._thread = Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether all work is done, after at most so many seconds; raises what it raised."""
        if not self.join(seconds):
            return False
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def join(self, seconds: float | None = None) -> bool:
        """`wait`, without raising."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # raised again in the thread that waits
            self._error = error
