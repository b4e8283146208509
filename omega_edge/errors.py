"""The error types of Omega Edge.

Every message says what was expected, what came and what to do about it.
"""


class OmegaError(Exception):
    """Base of every error that Omega Edge raises on purpose."""


class ProtocolError(OmegaError, ValueError):
    """A message, or the bytes of one, is outside what the protocol allows."""


class LineageError(ProtocolError):
    """Titles travel as numbers that the reader's catalogue does not know: of another lineage, or past its end."""


class ConfigError(OmegaError, ValueError):
    """An option or argument is unknown, or its value is not acceptable."""


class CatalogError(OmegaError):
    """A catalogue bundle is missing, damaged, foreign, or lacks what was asked of it."""


class SignatureError(OmegaError):
    """A signed object is changed, of another kind, or signed by no trusted key."""


class DatasetError(OmegaError, ValueError):
    """A data set is missing, of no known format, or has too many unusable lines to be trusted."""


class StoreError(OmegaError):
    """The household's store cannot do what was asked. The subclasses name the fault."""


class StoreBusyError(StoreError):
    """Another process holds the store."""


class StoreFullError(StoreError):
    """The disk, or the store's configured size, has no room for the write."""


class StoreReadOnlyError(StoreError):
    """The store lies on a read-only file system, or was opened read-only."""


class StoreDamagedError(StoreError):
    """A record or file of the store fails its checksum or has an unknown schema."""


class ModelUnavailable(OmegaError):
    """Text cannot be embedded: no runtime, no model, or a model that fails its checks."""
