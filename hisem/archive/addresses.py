"""Addresses of rasters: which kinds are opened. Catalogues and STAC items come from strangers."""

from __future__ import annotations

from hisem.object_store import has_secret, masked
from hisem.storage import is_remote

SCHEMES = ("s3", "gs", "https")
"""Of URIs of rasters. Plain http can be changed on its way, and is how machines of a cloud are asked for their keys."""


def objection(uri: str) -> str | None:
    """Why a raster of this name is not opened, as a sentence without its secrets; None where it may be.

    Where GDAL's own names for archives, web services and pipes led, no rule below would hold.
    """
    if uri.startswith("/vsi"):
        what = f"/{uri.split('/')[1]}/... is a file system of GDAL's own"
    elif is_remote(uri) and (scheme := uri.partition("://")[0]) not in SCHEMES:
        what = f"{scheme}:// is not opened"
    else:
        return None
    return f"{what}; a raster is named by its path, or by a URI of {', '.join(f'{name}://' for name in SCHEMES)}"


LONGEST = 8192
"""Characters of a path or URI at most."""


def path_defect(path: str) -> str | None:
    """Why `path` can be the name of no raster, without its secrets: a password in it, NUL, its length; else None."""
    if has_secret(path):
        return f"{masked(path)} holds a password, key or signature; put credentials into the environment instead"
    if len(path) > LONGEST:
        return f"a path has {len(path)} characters, more than {LONGEST}"
    if "\0" in path or _has_surrogate(path):
        return f"{path!r} holds a character that no path can have"
    return None


def _has_surrogate(text: str) -> bool:
    """True where `text` cannot be written as UTF-8, as JSON with half of a pair of surrogates gives it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
