"""Owns what all pages share: pictures inside the file, one style, strict templates.  Knows nothing of what they say."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Literal

import jinja2


@dataclass(frozen=True)
class Picture:
    """A figure with the sentence that says what to see in it."""

    name: str
    caption: str
    content: bytes
    kind: Literal["svg", "png"]

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.name}.{self.kind}"

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        media = "image/svg+xml" if self.kind == "svg" else "image/png"
        return f"data:{media};base64," + base64.b64encode(self.content).decode()


def render(package: str, template: str, **values: object) -> str:
    """Return a package's page as HTML; a name that the template uses and nobody gave is an error.

    Templates may include ``page.css`` and ``picture.html.j2`` of this package.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, "."), jinja2.PackageLoader("bandits.runs", ".")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(values)
