"""A person's name in everything that is learnt from: a keyed hash, never the id the application knows them by.

`training` writes it into data sets, a ranker looks a user up by it, `palate forget` recognises a person by it. Without
the home's secret (`serving.store.people.ensure_people_secret`) it leads back to nobody, and lists of guessed ids do not
help. The same person has the same pseudonym in every app of a home.
"""

from __future__ import annotations

import hashlib

DIGEST_BYTES = 16


def pseudonym(secret: bytes, user: str) -> str:
    """32 hex digits of BLAKE2b (RFC 7693) keyed with `secret`, 16 to 64 bytes; "" for "", which is nobody."""
    if not user:
        return ""
    return hashlib.blake2b(
        user.encode("utf-8", "surrogatepass"), key=secret, digest_size=DIGEST_BYTES, person=b"palate.person"
    ).hexdigest()
