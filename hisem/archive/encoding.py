"""Declarations of a raster about its numbers beyond their type: turned, inverted, or colors of another kind.

GDAL gives the stored numbers whatever a file declares. Where that changes what they mean the raster is refused, and the
message has the command that makes a plain one: another reader of the file might invert or turn it where GDAL does not.
"""

from __future__ import annotations

import binascii
import re
import struct
from collections.abc import Iterator
from functools import lru_cache

from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from hisem.archive.gdal import file_stamp, raw_bytes
from hisem.archive.tiff import EXTRA_SAMPLES, ORIENTATION, PHOTOMETRIC, BrokenDirectory, ReadBytes, directories
from hisem.errors import RasterError

PLAIN_PHOTOMETRICS = {1: "BlackIsZero", 2: "RGB", 3: "palette", 4: "mask", 6: "YCbCr"}
"""Values of TIFF's tag: a palette is refused where its indexes would be taken for intensities, YCbCr comes as RGB."""
OTHER_PHOTOMETRICS = {0: "WhiteIsZero", 5: "separated inks (CMYK)", 8: "CIELab", 9: "ICCLab", 10: "ITULab"}
ASSOCIATED_ALPHA = 1

PLAIN_JP2_SPACES = (16, 17)
"""sRGB and gray, of the enumerated color spaces of JPEG 2000."""

OTHER_COLORS = {
    getattr(ColorInterp, name)
    for name in ("hue", "saturation", "lightness", "cyan", "magenta", "yellow", "black", "Y", "Cb", "Cr")
}
"""Meanings of a band that no red, green, blue or measured intensity has."""

TURNED = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([2-8])\b")
"""The orientation in an XMP packet, where it is not the first row on top and the first column on the left."""

JP2_EXIF = b"JpgTiffExif->JP2"
MAX_BOXES = 1000
"""Boxes of a JPEG 2000, or chunks of a PNG with none but pixels between them, that are looked at."""
MAX_CHUNKS = 1_000_000
MAX_EXIF = 2**20
"""Bytes of Exif metadata that are looked at; JPEG allows 65,533."""


def require_intensities(raster: DatasetReader, uri: str) -> None:
    """Raise `RasterError` where the numbers of a raster are not what its bands and pixels say they are.

    Refused are inverted grays, colors that are not red, green and blue, colors multiplied by alpha, rows and columns in
    another order than on the ground, and a file of which directories (overviews, masks) are cut off. Call it within
    `gdal_env`.
    """
    _require_known_colors(raster, uri)
    exif = raster.tags().get("EXIF_Orientation", "1") if raster.driver == "JPEG" else "1"
    turned = int(exif) if exif.isdigit() and 2 <= int(exif) <= 8 else 0
    for packet in raster.tags(ns="xml:XMP").values():
        if found := TURNED.search(packet.encode(errors="replace")):
            turned = turned or int(found[1])
    turned = turned or stored_orientation(uri, file_stamp(uri), raster.driver)
    if turned:
        raise RasterError(
            f"{uri}: declares orientation {turned} (TIFF or Exif): readers that follow it turn or mirror the picture, "
            "GDAL does not. Where the stored order of pixels is the right one, drop the tag with gdal_translate; else "
            "store them turned (for example with magick -auto-orient)."
        )


def sample_bits(raster: DatasetReader, band: int) -> int | None:
    """Bits of each value of a band that the file declares; None where they are all bits of the type."""
    declared = raster.tags(band, ns="IMAGE_STRUCTURE").get("NBITS", "")
    whole = re.fullmatch(r"u?int(\d+)", raster.dtypes[band - 1])
    return int(declared) if declared.isdigit() and whole and int(declared) < int(whole[1]) else None


def _require_known_colors(raster: DatasetReader, uri: str) -> None:
    """Raise `RasterError` for inverted grays, and colors that are not red, green and blue, as GDAL shows them."""
    structure = raster.tags(ns="IMAGE_STRUCTURE")
    if structure.get("MINISWHITE") == "YES":
        raise _other_colors(uri, OTHER_PHOTOMETRICS[0])
    if (space := structure.get("SOURCE_COLOR_SPACE", "YCbCr")) not in ("YCbCr", "RGB"):
        raise _other_colors(uri, space)
    if others := [color.name for color in raster.colorinterp if color in OTHER_COLORS]:
        raise _other_colors(uri, f"bands of {', '.join(others)}")
    if any(raster.tags(band, ns="IMAGE_STRUCTURE").get("PIXELTYPE") == "SIGNEDBYTE" for band in raster.indexes):
        raise RasterError(f"{uri}: declares signed bytes; convert them first (gdal_translate -ot Int16).")


def _other_colors(uri: str, found: str) -> RasterError:
    advice = (
        "gdal_translate -scale 0 255 255 0 -co PHOTOMETRIC=MINISBLACK for 8 bit"
        if found == OTHER_PHOTOMETRICS[0]
        else "for example with magick -colorspace sRGB"
    )
    return RasterError(
        f"{uri}: stores its values as {found}, not as red, green and blue or as intensities that grow with "
        f"brightness; convert them first ({advice})."
    )


@lru_cache(maxsize=65536)
def stored_orientation(uri: str, stamp: tuple[int, ...], driver: str) -> int:
    """The orientation, 2 to 8, that a file's own metadata declares, 0 for none, read once for each `stamp`.

    Raises `RasterError` for what GDAL does not show of TIFF and JPEG 2000: colors of other kinds or multiplied by
    alpha, and directories that are cut off.
    """
    with raw_bytes(uri) as read:
        if driver == "GTiff":
            return _tiff_orientation(read, uri, stamp)
        if driver == "PNG":
            return _exif_orientation(_png_exif(read))
        if driver == "JP2OpenJPEG":
            return _exif_orientation(_jp2_exif(read, uri))
    return 0


def _tiff_orientation(read: ReadBytes, uri: str, stamp: tuple[int, ...]) -> int:
    try:
        found = list(directories(read, stamp[1] if stamp else None))
    except BrokenDirectory as error:
        raise RasterError(
            f"{uri}: {error}, so that overviews or masks may be missing; the file is damaged or incomplete: "
            "copy it again."
        ) from error
    for directory in found:
        photometric = directory.first(PHOTOMETRIC, 1)
        if photometric not in PLAIN_PHOTOMETRICS:
            raise _other_colors(uri, OTHER_PHOTOMETRICS.get(photometric, f"photometric interpretation {photometric}"))
        if ASSOCIATED_ALPHA in directory.values.get(EXTRA_SAMPLES, ()):
            raise RasterError(
                f"{uri}: its colors are multiplied by its alpha (ExtraSamples 1); where alpha is only 0 and full, "
                "declare so with gdal_translate -co ALPHA=NON-PREMULTIPLIED, else divide by it first."
            )
    orientation = found[0].first(ORIENTATION, 1) if found else 1
    return orientation if 2 <= orientation <= 8 else 0


def _exif_orientation(payloads: Iterator[bytes]) -> int:
    """The orientation in the first block of Exif metadata that declares one, 0 for none."""
    for payload in payloads:
        content = payload.removeprefix(b"Exif\0\0")

        def read(offset: int, count: int, content: bytes = content) -> bytes:
            return content[offset : offset + count].ljust(count, b"\0")

        try:
            first = next(directories(read), None)
        except BrokenDirectory:
            continue  # no reader can follow it
        if first and 2 <= first.first(ORIENTATION, 1) <= 8:
            return first.first(ORIENTATION, 1)
    return 0


def _png_exif(read: ReadBytes) -> Iterator[bytes]:
    """Exif metadata of a PNG: its own chunk, or the text as which ImageMagick stores it."""
    offset = 8
    for _ in range(MAX_CHUNKS):
        length, kind = struct.unpack(">I4s", read(offset, 8))
        if kind == b"eXIf" and length <= MAX_EXIF:
            yield read(offset + 8, length)
        if kind == b"tEXt" and length <= 3 * MAX_EXIF:
            keyword, _, text = read(offset + 8, length).partition(b"\0")
            if keyword in (b"Raw profile type exif", b"Raw profile type APP1"):
                yield _unhexed(text)
        if kind == b"IEND" or not kind.isalpha():
            return
        offset += length + 12


def _unhexed(text: bytes) -> bytes:
    """The bytes in ImageMagick's text: a name, a count, and hexadecimal digits."""
    try:
        return binascii.unhexlify(b"".join(text.split()[2:]))
    except binascii.Error:
        return b""


def _jp2_exif(read: ReadBytes, uri: str) -> Iterator[bytes]:
    """Exif metadata of a JPEG 2000. Raises `RasterError` for color spaces that GDAL takes for others."""
    if read(4, 4) != b"jP  ":
        return  # a bare codestream
    offset = 0
    for _ in range(MAX_BOXES):
        length, kind = struct.unpack(">I4s", read(offset, 8))
        head = 8
        if length == 1:
            (length,), head = struct.unpack(">Q", read(offset + 8, 8)), 16
        if kind == b"colr" and read(offset + head, 1) == b"\1":
            (space,) = struct.unpack(">I", read(offset + head + 3, 4))
            if space not in PLAIN_JP2_SPACES:
                raise _other_colors(uri, f"color space {space} of JPEG 2000")
        if kind == b"uuid" and read(offset + head, 16) == JP2_EXIF:
            yield read(offset + head + 16, min(max(length - head - 16, 0), MAX_EXIF))
        if length == 0 or length < head or kind == b"\0\0\0\0":
            return
        offset += head if kind == b"jp2h" else length  # whose boxes follow its head
