"""A pytest plugin for an emulated Python: a fifth of the examples that hypothesis would make.

All of them are made on this machine by ./check; an emulated processor is ten times slower, and what could go otherwise
there, the C core, has tests of its own that run whole.
"""

from __future__ import annotations

import hypothesis

SHARE = 5
USUAL = 100
"""What hypothesis makes where a test does not say."""

_made = hypothesis.settings.__init__


def _fewer(made: hypothesis.settings, parent: hypothesis.settings | None = None, **options: object) -> None:
    if "max_examples" in options:
        options["max_examples"] = max(1, options["max_examples"] // SHARE)
    _made(made, parent, **options)


# The constructor and not a profile: a profile yields to what a test's own decorator says.
hypothesis.settings.__init__ = _fewer
hypothesis.settings.register_profile("emulated", max_examples=USUAL)
hypothesis.settings.load_profile("emulated")
