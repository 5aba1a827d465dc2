"""``flask mysqlpool``: arguments in, lines out."""

from . import shell, wait
from .commands import group

__all__ = ["group", "shell", "wait"]
