"""A camera's transport buffer → an image of its own.

Rules kept here: one copy, after which the buffer may be given back; the padding at the end of lines is cut off, for an image
that still has it looks sheared; a buffer with too few bytes is no image. Which formats there are is left to the core's stages.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from linegate.stages import Image, PixelFormat

CHANNELS: Final = {PixelFormat.MONO8: 1, PixelFormat.RGB8: 3, PixelFormat.BGR8: 3}


def copy_image(data: NDArray[np.uint8], size_wh: tuple[int, int], pixel_format: PixelFormat, padding: int = 0) -> Image | None:
    """Return the image in a buffer, uint8 (H, W) or (H, W, 3), or None where the buffer has too few bytes for it.

    `data` is uint8 (N,); each line is followed by `padding` bytes, which the last one may lack.
    """
    (width, height), channels = size_wh, CHANNELS[pixel_format]
    line = width * channels
    pitch = line + padding
    if min(width, height) <= 0 or padding < 0 or data.size < pitch * (height - 1) + line:
        return None
    lines = np.lib.stride_tricks.as_strided(data, (height, line), (pitch * data.strides[0], data.strides[0]), writeable=False)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.array(lines, np.uint8, order="C").reshape(shape)
