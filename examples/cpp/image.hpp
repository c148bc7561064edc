// An image file -> RGB bytes, the same as Pillow's convert("RGB"): orientation tags are not applied, transparency is ignored.
//
// In:  a path to a PPM/PGM (always), JPEG (with libjpeg) or PNG (with libpng); the kind is told by the content.
// Out: an `Image`. Refused, because Pillow's conversion is not repeated here: CMYK JPEG, 16-bit PNG and PPM.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Image {
    int width = 0, height = 0;
    std::vector<std::uint8_t> rgb;  // rows from the top, 3 bytes for a pixel

    Image() = default;
    Image(int width_, int height_) : width(width_), height(height_), rgb(std::size_t{3} * width_ * height_) {}
    std::uint8_t* row(int y) { return rgb.data() + std::size_t{3} * width * y; }
    const std::uint8_t* row(int y) const { return rgb.data() + std::size_t{3} * width * y; }
};

// Throws Error: usage when the file is not there, broken, or of a kind that is not read; missing when a library was not built in.
Image read_image(const std::string& path);
