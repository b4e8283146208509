"""Omega Edge: television recommendations made on the television, private, offline, explained.

The public names below are loaded when they are first used; importing this package loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omega_edge.brain import Explanation, OmegaBrain
    from omega_edge.catalog import Catalog
    from omega_edge.config import BrainConfig
    from omega_edge.errors import (
        CatalogError,
        ConfigError,
        DatasetError,
        LineageError,
        ModelUnavailable,
        OmegaError,
        ProtocolError,
        SignatureError,
        StoreBusyError,
        StoreDamagedError,
        StoreError,
        StoreFullError,
        StoreReadOnlyError,
    )
    from omega_edge.inference import InferenceEngine
    from omega_edge.memory import Recorded
    from omega_edge.protocol import (
        FeedbackKind,
        GlobalPatterns,
        PatternDelta,
        Profile,
        ReasonEvent,
        Recommendation,
        TimeOfDay,
        TrendSignal,
        ViewContext,
        ViewingEvent,
        ViewingPattern,
    )
    from omega_edge.sync import RetryPolicy, SyncClient, SyncConfig
    from omega_edge.vectors import VectorStore

__version__ = "0.1.0"

__all__ = [
    "BrainConfig",
    "Catalog",
    "CatalogError",
    "ConfigError",
    "DatasetError",
    "Explanation",
    "FeedbackKind",
    "GlobalPatterns",
    "InferenceEngine",
    "LineageError",
    "ModelUnavailable",
    "OmegaBrain",
    "OmegaError",
    "PatternDelta",
    "Profile",
    "ProtocolError",
    "ReasonEvent",
    "Recommendation",
    "Recorded",
    "RetryPolicy",
    "SignatureError",
    "StoreBusyError",
    "StoreDamagedError",
    "StoreError",
    "StoreFullError",
    "StoreReadOnlyError",
    "SyncClient",
    "SyncConfig",
    "TimeOfDay",
    "TrendSignal",
    "VectorStore",
    "ViewContext",
    "ViewingEvent",
    "ViewingPattern",
    "__version__",
]

_MODULES = {
    "brain": ("Explanation", "OmegaBrain"),
    "catalog": ("Catalog",),
    "config": ("BrainConfig",),
    "inference": ("InferenceEngine",),
    "memory": ("Recorded",),
    "sync": ("RetryPolicy", "SyncClient", "SyncConfig"),
    "vectors": ("VectorStore",),
    "protocol": (
        "FeedbackKind",
        "GlobalPatterns",
        "PatternDelta",
        "Profile",
        "ReasonEvent",
        "Recommendation",
        "TimeOfDay",
        "TrendSignal",
        "ViewContext",
        "ViewingEvent",
        "ViewingPattern",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """The public name, from its module; those in no other module are errors."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
