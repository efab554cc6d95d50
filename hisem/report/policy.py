"""What a page of ours may load and run: a Content-Security-Policy, which browsers enforce."""

from __future__ import annotations

import base64
import hashlib


def content_policy(style: str, script: str | None = None) -> str:
    """Nothing but pictures inside the page, and these texts of a style and a script element; without one, no script."""
    allowed = f"; script-src {_digest(script)}" if script is not None else ""
    return (
        f"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; style-src {_digest(style)}{allowed}"
    )


def _digest(text: str) -> str:
    """What lets this text alone pass, so that nothing that data bring in ever runs."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
