"""Containers: the files below data/, one for each writer's changes to a large content.

A container is sparse and holds bytes at their logical offset (``journal.extents``). ``Containers``
belongs to the event loop's thread, but for ``shared``. It keeps a bounded number of descriptors
open besides those that somebody holds, and knows which files the disk has refused.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from unifs.errors import DiskFailed, NotFound
from unifs.ipfs.embedded.segment_file import Descriptor

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

#: Descriptors of containers kept open besides those of open files.
DESCRIPTORS_MAX = 512
#: Descriptors of containers kept open for the block store.
SHARED_MAX = 64


def is_container_name(name: str) -> bool:
    """Whether a file below data/ is a container: somebody else's file there is left alone."""
    return len(name) == 16 and all(digit in "0123456789abcdef" for digit in name)


class Containers:
    """The files below data/, and a bounded number of open descriptors of them."""

    def __init__(self, directory: Path, last_id: int) -> None:
        self._directory = directory
        #: The next one has a higher number.
        self.last_id = last_id
        #: To make the names of new containers durable.
        self.directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.has_new = False
        #: Containers whose data the disk refused: the kernel forgets what it could not write, so
        #: that a second fdatasync would lie.
        self.failed: set[int] = set()
        self._cold: OrderedDict[int, int] = OrderedDict()
        self._pinned: dict[int, list[int]] = {}
        self._lock = threading.Lock()
        self._shared: OrderedDict[int, Descriptor] = OrderedDict()

    def path(self, container: int) -> Path:
        return self._directory / f"{container:016x}"

    def create(self) -> int:
        """A new empty container, held open until ``release``."""
        self.last_id += 1
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(self.path(self.last_id), flags, 0o600)
        self._pinned[self.last_id] = [descriptor, 1]
        self.has_new = True
        return self.last_id

    def hold(self, container: int) -> int:
        """The descriptor, kept open until as many calls of ``release``.

        DiskFailed where its data can never be called durable.
        """
        if container in self.failed:
            raise DiskFailed(f"the disk refused data of container {container} before")
        held = self._pinned.get(container)
        if held is None:
            held = self._pinned[container] = [self.descriptor(container), 0]
            self._cold.pop(container, None)
        held[1] += 1
        return held[0]

    def release(self, container: int) -> None:
        held = self._pinned[container]
        held[1] -= 1
        if held[1] == 0:
            del self._pinned[container]
            self._cold[container] = held[0]
            self._trim()

    def descriptor(self, container: int) -> int:
        """A descriptor that stays valid until the next call."""
        held = self._pinned.get(container)
        if held is not None:
            return held[0]
        cold = self._cold.get(container)
        if cold is None:
            cold = os.open(self.path(container), os.O_RDWR | os.O_CLOEXEC)
            self._cold[container] = cold
            self._trim()
        else:
            self._cold.move_to_end(container)
        return cold

    def _trim(self) -> None:
        while len(self._cold) > DESCRIPTORS_MAX:
            os.close(self._cold.popitem(last=False)[1])

    def delete(self, container: int) -> None:
        """Remove the file; a descriptor that somebody holds stays valid.

        Never fails: a file that stays is one that no content names, and the next start removes it.
        """
        with self._lock:
            self._shared.pop(container, None)
        descriptor = self._cold.pop(container, None)
        if descriptor is not None:
            os.close(descriptor)
        try:
            self.path(container).unlink(missing_ok=True)
        except OSError as error:
            log.warning("a container stays until the next start: id=%d error=%s", container, error)

    def shared(self, container: int) -> Descriptor:
        """A descriptor for any thread, open as long as the object is referred to.

        NotFound if the container is gone.
        """
        with self._lock:
            descriptor = self._shared.get(container)
            if descriptor is None:
                try:
                    descriptor = Descriptor(
                        os.open(self.path(container), os.O_RDONLY | os.O_CLOEXEC)
                    )
                except FileNotFoundError:
                    raise NotFound(f"container {container} is gone") from None
                self._shared[container] = descriptor
                if len(self._shared) > SHARED_MAX:
                    self._shared.popitem(last=False)
            else:
                self._shared.move_to_end(container)
            return descriptor

    def close(self) -> None:
        self._shared.clear()
        for descriptor in self._cold.values():
            os.close(descriptor)
        self._cold.clear()
        for held in self._pinned.values():
            os.close(held[0])
        self._pinned.clear()
        os.close(self.directory)
