"""Keeps the comparison blind: one secret seed decides the order, the sides and meaningless picture names."""

from __future__ import annotations

import hashlib
import hmac


def pair_order(seed: str, count: int) -> list[int]:
    """The pairs 0 .. count - 1 shuffled, the same for every voter: voters who stop early have the same pairs."""
    return sorted(range(count), key=lambda pair: _digest(seed, "order", pair))


def a_is_left(seed: str, voter: str, pair: int) -> bool:
    """Whether this voter sees A on the left; an independent fair coin for each voter and pair."""
    return bool(_digest(seed, "side", voter, pair)[0] & 1)


def picture_token(seed: str, pair: int, side: str) -> str:
    """A picture's address: 32 hex digits from which neither its pair nor its side can be told without the seed."""
    return _digest(seed, "picture", pair, side).hex()[:32]


def _digest(seed: str, *parts: str | int) -> bytes:
    return hmac.digest(seed.encode(), "\0".join(map(str, parts)).encode(), hashlib.sha256)
