"""Addresses of rasters: which kinds are opened. Catalogues and STAC items come from strangers."""

from __future__ import annotations

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
