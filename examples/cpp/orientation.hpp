// How a camera says that an image it stored turned or mirrored is to be shown: EXIF's tag Orientation.
//
// In:  the bytes of a JPEG or PNG file; an `Image` with its orientation.
// Out: 1 (upright) to 8, 1 where there is no EXIF or a damaged one; the `Image` turned upright.
#pragma once

#include <cstdint>
#include <vector>

#include "image.hpp"

int exif_orientation(const std::vector<std::uint8_t>& file);

Image upright(const Image& image);
