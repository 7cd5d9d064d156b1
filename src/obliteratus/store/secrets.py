"""Credentials taken out of texts before anybody sees or keeps them."""

import os
import re
import sys

NAMES = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
"""Environment variables that hold a credential, by how their names end."""
SHORTEST = 8  # characters: a shorter value is no credential, and may be a word of any text
PATTERNS = (
    (re.compile(r"(?<=://)[^\s/@]+@"), "[credentials]@"),
    (re.compile(r"\b(hf|sk|ghp|gho|glpat|xoxb|api_org)[_-][A-Za-z0-9_\-]{12,}"), "[credentials]"),
    (
        re.compile(r"\b(bearer|authorization: basic)\s+[\w.~+/=\-]{8,}", re.IGNORECASE),
        r"\1 [credentials]",
    ),
    (
        re.compile(r"\b(token|api_?key|password|secret)=[^\s&'\"]+", re.IGNORECASE),
        r"\1=[credentials]",
    ),
)
"""What a credential looks like: in an address, with the prefix of its kind, in a header, as a
parameter."""


def without_secrets(text: str) -> str:
    """Return ``text`` with every credential in it replaced.

    These are the values of environment variables whose names end like one that holds a credential,
    the token that `hf auth login` has stored, and whatever looks like a credential.
    """
    values = {value for name, value in os.environ.items() if NAMES.search(name)}
    values = {value for value in values | _stored_tokens() if len(value) >= SHORTEST}
    for value in sorted(values, key=len, reverse=True):  # one may be a part of another
        text = text.replace(value, "[credentials]")
    for pattern, instead in PATTERNS:
        text = pattern.sub(instead, text)
    return text


def _stored_tokens() -> set[str]:
    """Return the Hub's token; without its client, which is slow to import, none was ever sent."""
    client = sys.modules.get("huggingface_hub")
    token = None if client is None else client.get_token()
    return set() if token is None else {token}
