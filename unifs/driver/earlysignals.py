"""Signals that come while no tree is served: noted, so that the state is closed as after any stop.

From opening the state directory on until the tree answers, and while the state is closed again, the
handlers of Python and of the kernel would end the process with the state open: the next start would
have to recover, and `unifs fsck` could not judge before. Inside this context the first signal is
noted: who is opening closes again instead of mounting, who is closing goes on. A second one has the
effect that it always had. While a tree is served, the session hears signals itself.

Entered by the composition root, in the main thread. It never raises, and waits for nothing.
"""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from types import FrameType

log = logging.getLogger(__name__)

#: What ends a session.
ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class EarlySignals:
    """A context in which the first signal that ends the process is only noted."""

    def __init__(self) -> None:
        #: The signal that came; 0: none did.
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in ENDING}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def has_come(self) -> bool:
        """Whether the process is to end."""
        return self.number != 0

    def pass_on(self) -> None:
        """Outside of the context: let the signal have its effect, now that all is closed."""
        if self.number:
            signal.raise_signal(self.number)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        log.info("signal=%s ends it as soon as it can", signal.Signals(number).name)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            # None: it was not installed by Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
