"""
Passwords and what is kept in their place: scrypt hashes (RFC 7914), in the form that passlib writes,
``$scrypt$ln=15,r=8,p=1$SALT$HASH``.

Each call that hashes takes some 0.1 s and 32 MB.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re

import attrs

PREFIX = "$scrypt$"
SALT_BYTES = 16
HASH_BYTES = 32

_MOST_MEMORY = 256 * 1024 * 1024
_FORM = re.compile(
    r"\$scrypt\$ln=(?P<ln>\d{1,2}),r=(?P<r>\d{1,2}),p=(?P<p>\d{1,2})"
    r"\$(?P<salt>[A-Za-z0-9+/]{11,86})\$(?P<hash>[A-Za-z0-9+/]{43,86})",
    re.ASCII,
)


@attrs.frozen(kw_only=True)
class Hashed:
    """
    A password's hash.

    :ivar ln: the logarithm of the cost.
    """

    salt: bytes = attrs.field(repr=False)
    digest: bytes = attrs.field(repr=False)
    ln: int = 15
    r: int = 8
    p: int = 1

    @classmethod
    def of(cls, password: str, salt: bytes) -> Hashed:
        """Hash a password."""
        return cls(salt=salt, digest=_scrypt(password, salt, 15, 8, 1, HASH_BYTES))

    @classmethod
    def parse(cls, text: str) -> Hashed:
        """
        :raises ValueError: it is no such hash, or one that would take more than 256 MB.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError("is no scrypt hash")
        ln, r, p = (int(match[name]) for name in ("ln", "r", "p"))
        if not (1 <= ln <= 22 and r >= 1 and 1 <= p <= 16) or 128 * r * (2**ln + p + 2) > _MOST_MEMORY:
            raise ValueError("is a scrypt hash that takes too much memory")
        return cls(salt=_decode(match["salt"]), digest=_decode(match["hash"]), ln=ln, r=r, p=p)

    def __str__(self) -> str:
        parameters = f"ln={self.ln},r={self.r},p={self.p}"
        return f"{PREFIX}{parameters}${_encode(self.salt)}${_encode(self.digest)}"

    def matches(self, password: str) -> bool:
        """Whether this is the password's hash."""
        made = _scrypt(password, self.salt, self.ln, self.r, self.p, len(self.digest))
        return hmac.compare_digest(made, self.digest)


def _scrypt(password: str, salt: bytes, ln: int, r: int, p: int, size: int) -> bytes:
    data = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(data, salt=salt, n=2**ln, r=r, p=p, maxmem=_MOST_MEMORY + 2**20, dklen=size)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii").rstrip("=")


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise ValueError("is no scrypt hash") from None
