"""Seals what must not lie open in the database, with the installation's secret. Knows no table."""

from __future__ import annotations

import base64

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


class Unsealable(Exception):
    """Sealed with another secret, or damaged."""


class Seal:
    """Authenticated encryption (Fernet) under a key derived from the installation's secret by HKDF."""

    def __init__(self, secret: str) -> None:
        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"reservoir tokens").derive(secret.encode())
        self._fernet = Fernet(base64.urlsafe_b64encode(key))

    def close(self, plain: bytes) -> bytes:
        """The sealed form."""
        return self._fernet.encrypt(plain)

    def open(self, sealed: bytes) -> bytes:
        """The inverse of `close`. Raises Unsealable."""
        try:
            return self._fernet.decrypt(sealed)
        except InvalidToken:
            raise Unsealable("the token was sealed with another RESERVOIR_SECRET; log in again") from None
