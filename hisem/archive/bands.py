"""A raster as it is read: the three chosen bands, and one rule for which of their pixels are valid.

Whatever a raster holds, `open_scene_raster` gives a dataset whose first three bands are red, green and
blue and whose masks say what is valid. Where the file is not like that itself it is seen through a VRT
that is made here, in memory, so that reading, decimating and warping it need no cases.
"""

from __future__ import annotations

import copy
import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np
from rasterio import Env
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader

from hisem.archive.encoding import sample_bits
from hisem.archive.gdal import gdal_env, raster_errors, vrt_of
from hisem.archive.options import ReadOptions
from hisem.archive.raster import open_raster
from hisem.errors import RasterError

DTYPES = ("uint8", "uint16", "int16", "float32", "float64")


class BandView(DatasetReader):
    """A VRT document of a raster, open under the raster's own name."""

    def __init__(self, document: str, raster: DatasetReader) -> None:
        super().__init__(document, driver=["VRT"], sharing=False)
        self.uri = raster.name
        self.stored = raster.block_shapes[0]

    @property
    def name(self) -> str:
        """The raster's path or URI."""
        return self.uri

    @property
    def block_shapes(self) -> list[tuple[int, int]]:
        """Height and width of the blocks that the raster's file is stored in; a VRT has others of its own."""
        return [self.stored] * self.count


@dataclass(frozen=True)
class Validity:
    """Where a raster says which of its pixels are valid: in a value, an alpha band, its mask band, or nowhere."""

    nodata: float | None = None
    alpha: int | None = None
    mask_band: bool = False


def open_scene_raster(uri: str, names: Sequence[str], options: ReadOptions) -> DatasetReader:
    """Open a raster of a scene; bands 1 to 3 are the bands `names`, one name being all three.

    Valid is what `options.nodata` leaves, where pixels of this type can have that value. Otherwise the
    first of these holds that the raster has: mask band, nodata value, alpha, NaN.

    Raises `RasterError` as `open_raster` does, for bands that are not there, and for pixels that
    `options.scaling` cannot make 8 bit.
    """
    with ExitStack() as stack, raster_errors(uri, "its metadata cannot be read"):
        raster = stack.enter_context(open_raster(uri))
        bands = tuple(_band(raster, name) for name in names) * (3 // len(names))
        _require_scalable(raster, bands, options)
        validity = _validity(raster, bands[0], options.nodata)
        if not _is_plain(raster, bands, validity):
            return _view(raster, bands, validity)
        stack.pop_all()
        return raster


def _validity(raster: DatasetReader, band: int, given: float | None) -> Validity:
    """What decides which pixels are valid; for nodata value and mask band the order is GDAL's own."""
    dtype, flags = raster.dtypes[band - 1], raster.mask_flag_enums[band - 1]
    if given is not None and _fits(given, dtype):
        return Validity(nodata=given)
    if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
        return Validity(mask_band=True)
    if MaskFlags.nodata in flags:
        return Validity(nodata=raster.nodatavals[band - 1])
    if ColorInterp.alpha in raster.colorinterp:
        return Validity(alpha=raster.colorinterp.index(ColorInterp.alpha) + 1)
    return Validity(nodata=math.nan if dtype.startswith("float") else None)


def _is_plain(raster: DatasetReader, bands: tuple[int, ...], validity: Validity) -> bool:
    """Whether the file itself is what a view of it would be. Of other alpha than 8 bit GDAL has several minds."""
    if validity.alpha:
        return (*bands, validity.alpha) == raster.indexes and raster.dtypes[0] == "uint8"
    same_nodata = str(raster.nodata) == str(validity.nodata)  # as text, where NaN equals itself
    has_mask_band = MaskFlags.per_dataset in raster.mask_flag_enums[0]
    return bands == raster.indexes and same_nodata and has_mask_band == validity.mask_band


def _band(raster: DatasetReader, name: str) -> int:
    """The number of the band that `name` means: a number, else a description, else a colour."""
    if name.isdigit() and 1 <= int(name) <= raster.count:
        return int(name)
    described = [text or "" for text in raster.descriptions]
    colours = [colour.name for colour in raster.colorinterp]
    for known in (described, colours):
        found = [number for number, text in enumerate(known, 1) if text.casefold() == name.casefold()]
        if len(found) == 1:
            return found[0]
    listed = ", ".join(
        f"{number} ({text or colour})" for number, text, colour in zip(raster.indexes, described, colours, strict=True)
    )
    raise RasterError(
        f"{raster.name}: band {name!r} is not there, or not alone of that name; found {raster.count} band(s): "
        f"{listed}. Choose with --bands and --after-bands; a single one is taken for red, green and blue."
    )


def _require_scalable(raster: DatasetReader, bands: Sequence[int], options: ReadOptions) -> None:
    """Raise `RasterError` for pixels that are no measurements, or that nobody said how to make 8 bit."""
    kinds = sorted({raster.dtypes[band - 1] for band in bands})
    if len(kinds) > 1 or kinds[0] not in DTYPES:
        raise RasterError(
            f"{raster.name}: bands {', '.join(map(str, bands))} hold {' and '.join(kinds)}; one of "
            f"{', '.join(DTYPES)} is needed. Convert it first (gdal_translate -ot)."
        )
    if any(_has_palette(raster, band) for band in bands):
        raise RasterError(
            f"{raster.name}: holds indexes into a palette; expand them first (gdal_translate -expand rgb)."
        )
    bits = {sample_bits(raster, band) for band in bands} - {None}
    if bits and (options.scaling == "dtype" or (options.scaling == "none" and kinds[0] == "uint8")):
        most = 2 ** max(found for found in bits if found) - 1
        raise RasterError(
            f"{raster.name}: declares values of {' and '.join(map(str, sorted(bits, key=str)))} bits in {kinds[0]}, "
            f"so that --scaling {options.scaling} would take {most} for less than white; choose --scaling range "
            f"--scale-range 0 {most}, or percentiles."
        )
    if (options.scaling == "none" and kinds[0] != "uint8") or (options.scaling == "dtype" and kinds[0][0] == "f"):
        whole = "" if kinds[0][0] == "f" else "--scaling dtype, "
        raise RasterError(
            f"{raster.name}: found pixels of {kinds[0]}, which --scaling {options.scaling} does not make 8 bit; "
            f"choose --scaling percentiles, {whole}or --scaling range --scale-range LO HI."
        )


def _has_palette(raster: DatasetReader, band: int) -> bool:
    """True if a band holds indexes of colors, whatever its declared meaning."""
    if raster.colorinterp[band - 1] == ColorInterp.palette:
        return True
    with suppress(ValueError):  # which rasterio raises where there is no color table
        return bool(raster.colormap(band))
    return False


def _fits(value: float, dtype: str) -> bool:
    """Whether pixels of `dtype` can have this value."""
    if dtype.startswith("float"):
        return True
    info = np.iinfo(dtype)
    return info.min <= value <= info.max and value == int(value)


def _view(raster: DatasetReader, bands: Sequence[int], validity: Validity) -> BandView:
    """`raster` with only `bands`, and masks from `validity` alone.

    Raises `RasterError` where the file is another format to GDAL at large than to `open_raster`.
    """
    with raster_errors(raster.name, "its bands cannot be chosen"), gdal_env(raster.name):
        # A VRT opens its source by whichever driver claims it, allowed here or not. Nothing else is asked for,
        # so that no file beside it is looked for.
        with Env(GDAL_PAM_ENABLED="NO"), DatasetReader(raster.name, sharing=False) as again:
            if again.driver != raster.driver:
                raise RasterError(f"{raster.name}: is {raster.driver} and {again.driver} at once; convert it.")
        return BandView(_document(vrt_of(raster), bands, validity), raster)


def _document(whole: ET.Element, bands: Sequence[int], validity: Validity) -> str:
    """The VRT document of a whole raster, with only `bands` and the masks of `validity`."""
    there = whole.findall("VRTRasterBand")
    for element in there if validity.mask_band else [*there, *whole.findall("MaskBand")]:
        whole.remove(element)
    for number, band in enumerate(bands, 1):
        element = _bare(there[band - 1])
        element.set("band", str(number))
        if validity.nodata is not None:
            ET.SubElement(element, "NoDataValue").text = repr(float(validity.nodata))
        whole.append(element)
    if validity.alpha:
        mask = _bare(there[validity.alpha - 1])
        mask.attrib.pop("band")
        mask.set("dataType", "Byte")
        ET.SubElement(whole, "MaskBand").append(mask)
    for source in whole.iter("SourceFilename"):
        source.set("shared", "0")
    return ET.tostring(whole, encoding="unicode")


def _bare(band: ET.Element) -> ET.Element:
    """A copy of a VRT's band without nodata value and colour."""
    band = copy.deepcopy(band)
    for child in [*band.findall("NoDataValue"), *band.findall("ColorInterp")]:
        band.remove(child)
    return band
