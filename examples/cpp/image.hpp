// An image file -> RGB bytes as they are stored, the same as those of runtime/images/decode.py; transparency is ignored.
//
// In:  a path to a PPM/PGM (always), JPEG (with libjpeg) or PNG (with libpng); the kind is told by the content.
// Out: an `Image`. Refused: CMYK JPEG, whose conversion is not repeated here, and 16-bit PPM.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Image {
    int width = 0, height = 0;
    std::vector<std::uint8_t> rgb;  // rows from the top, 3 bytes for a pixel
    int orientation = 1;            // EXIF's, 1 to 8: how the rows and columns are to be shown; 1 is as they are

    Image() = default;
    Image(int width_, int height_) : width(width_), height(height_), rgb(std::size_t{3} * width_ * height_) {}
    std::uint8_t* row(int y) { return rgb.data() + std::size_t{3} * width * y; }
    const std::uint8_t* row(int y) const { return rgb.data() + std::size_t{3} * width * y; }
};

// Throws Error: usage when the file is not there, broken, or of a kind that is not read; missing when a library was not built in.
Image read_image(const std::string& path);
