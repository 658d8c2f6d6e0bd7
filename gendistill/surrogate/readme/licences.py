"""Which licence a set is under: its images come from the data, and from a generator where there is one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

UNKNOWN, OTHER, AS_DATA = "unknown", "other", "as the data"
# may be put under further terms, so they add nothing to others, nor lift what is unknown
_PERMISSIVE = """
    apache-2.0 mit afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 etalab-2.0 isc ncsa
    odc-by pddl postgresql unlicense zlib
"""
_OTHERS = """
    openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m openrail++ cc
    cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 epl-1.0 epl-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0
    gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr lppl-1.3c ms-pl mpl-2.0 odbl osl-3.0 ofl-1.1 deepfloyd-if-license llama2
    gemma
"""
PERMISSIVE = frozenset(_PERMISSIVE.split())
HUB = PERMISSIVE | frozenset(_OTHERS.split())  # https://huggingface.co/docs/hub/repositories-licenses


@dataclass(frozen=True)
class Terms:
    """What is known: of generators (none for real images), of the data, and of the images that came from both."""

    generator: tuple[str, ...]
    data: tuple[str, ...]
    effective: tuple[str, ...]  # all of them apply; empty where it cannot be told

    @property
    def front_matter(self) -> dict[str, Any]:
        """``license`` for the Hub, with a ``license_name`` where it knows no such licence."""
        if not self.effective:
            return {"license": UNKNOWN}
        if set(self.effective) <= HUB:
            return {"license": self.effective[0] if len(self.effective) == 1 else list(self.effective)}
        return {"license": OTHER, "license_name": _slug("-and-".join(self.effective))}


def terms(manifests: Sequence[dict[str, Any]]) -> Terms:
    """Of sets. A restricting licence holds although another one is unknown; permissive ones then do not."""
    given = [manifest.get("licence") for manifest in manifests]
    generator = _distinct(_known(name) for name in given if name != AS_DATA)
    data = _distinct(_known((manifest.get("data") or {}).get("licence")) for manifest in manifests)
    found = _distinct((*generator, *data))
    told = tuple(name for name in found if name != UNKNOWN)
    certain = UNKNOWN not in found or any(name not in PERMISSIVE for name in told)
    return Terms(generator, data, told if certain else ())


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _known(name: Any) -> str:
    text = str(name or "").strip()
    return text.lower() if text.lower() in HUB else text or UNKNOWN


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:96] or UNKNOWN
