"""What an engine is: it lets workers do the units of a ledger; and the registry that finds it."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from obliteratus.registry import Registry
from obliteratus.studies.work import Work


class Engine(ABC):
    """Lets workers do units until none is left.

    Workers, or whoever stands in for them, claim, beat and finish in the ledger
    (:mod:`obliteratus.studies.work`); nothing else is agreed on. An engine whose workers cannot
    reach the ledger claims for them where it is, beats while they run, and finishes with what they
    send back.
    """

    name: str

    @abstractmethod
    def work_off(self, work: Work, watch: Callable[[], None]) -> None:
        """Return when every unit is finished or failed.

        ``watch`` is to be called a few times a second, from the process that called this.
        Whatever ends the call early, by an exception or Ctrl-C, stops the workers and gives their
        claims back.

        Raises:
            StorageError: the ledger cannot be written, or workers die before they begin.
        """


ENGINES: Registry[Callable[[], Engine]] = Registry("engine", "obliteratus.studies.engines")
