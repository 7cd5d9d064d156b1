"""What can go wrong between two machines, as sentences."""

from obliteratus.errors import ObliteratusError, UsageError


class AddressError(UsageError):
    """The text after ``--remote`` is not an address."""


class RemoteError(ObliteratusError):
    """The other machine cannot be reached, lacks something, or lost the job."""


class HostKeyError(RemoteError):
    """The other machine's key is unknown, was not accepted, or is not the one that is known."""


class RemoteUsageError(UsageError):
    """The program on the other machine says that the request is wrong."""


class RemoteRunError(RemoteError):
    """The program on the other machine ended with an error; the message is its own."""
