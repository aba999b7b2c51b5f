"""Why an image cannot be had."""

from __future__ import annotations


class ImageError(Exception):
    """Something is wrong with an image; one line for people."""


class ImageInvalid(ImageError):
    """An archive is no image, or a hostile one; nothing of it was kept."""


class ImageTooLarge(ImageError):
    """An archive unpacks to more than images may have; nothing of it was kept."""


class ImageNotFound(ImageError):
    """There is no such image on this host."""
