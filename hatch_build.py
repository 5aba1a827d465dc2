"""What the build does: the package index gets README.md with links that work there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Readme(MetadataHookInterface):
    """Adds the readme to the metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text("utf-8")
        text = absolute(text, metadata["urls"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute(text: str, urls: dict[str, str]) -> str:
    """Return a text whose relative links begin with the project's addresses."""

    def link(found: re.Match[str]) -> str:
        picture, label, target = found.groups()
        page = re.fullmatch(r"docs/([\w-]+)\.rst(#.*)?", target)
        if page:
            target = f"{urls['Documentation']}/{page[1]}.html{page[2] or ''}"
        else:
            target = f"{urls['Source']}/{'raw' if picture else 'blob'}/main/{target}"
        return f"{picture}[{label}]({target})"

    return re.sub(r"(!?)\[([^]]*)\]\((?!\w+:)([^)]+)\)", link, text)
