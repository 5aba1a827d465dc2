"""The settings: what each is, how they are read and validated."""

from __future__ import annotations

from .settings import PoolConfig

__all__ = ["PoolConfig"]
