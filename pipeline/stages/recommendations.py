"""What to do about a level, plainest first."""

from __future__ import annotations

from typing import Final

_RECOMMENDATIONS: Final[dict[str, tuple[str, ...]]] = {
    "normal": (),
    "suspicious": ("Watch the next events of this session.",),
    "threat": (
        "Ask the person to prove who they are before they go on.",
        "Hold back transfers, exports and changes of rights until they have.",
    ),
    "critical": (
        "Lock the session now and ask for a fresh sign-in with a second factor.",
        "Review what the session did since its score began to rise.",
        "Tell the account's owner over another channel.",
    ),
}


def recommendations_for(level: str) -> tuple[str, ...]:
    """Recommendations for a level of `LEVELS`.

    Raises:
        KeyError: there is no such level.
    """
    return _RECOMMENDATIONS[level]
