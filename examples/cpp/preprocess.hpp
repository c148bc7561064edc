// Image -> float32 (3, H, W), equal to large2small's runtime/preprocess.py bit for bit, which equals timm's evaluation transform.
//
// In:  RGB bytes, and the settings an artifact carries.
// Out: the network's input.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "image.hpp"

struct Preprocess {
    int height = 0, width = 0;  // pixels the network takes
    std::string interpolation;  // nearest, bilinear, bicubic, box, hamming or lanczos
    double crop_pct = 0;        // side of the crop divided by the side resized to, 0.01 to 100
    std::string crop_mode;      // center, squash or border
    std::array<double, 3> mean{}, std{};  // per channel, of pixels divided by 255; -1000 to 1000, 1e-6 to 1e6
    bool turns = false;  // whether an image is turned upright first, as its EXIF says
    bool rows_first_when_tall = true;  // order of the resize's two passes, as in Pillow 13 and later; see resize()

    void check() const;  // throws Error (artifact) for a value outside of what the comments say
    std::size_t size() const { return std::size_t{3} * height * width; }
    void apply(Image image, float* out) const;  // out: size() floats
};

// Antialiased resize in 8-bit fixed point with Pillow's results; `filter` as in Preprocess::interpolation.
//
// The result is rounded after each of two passes, so their order shows (by one or two levels in a few pixels). Pillow goes across
// first; since Pillow 13 (its pull request 9549) it goes down first when much more height than width is lost. An artifact names the
// Pillow it was verified with, and that one's order is used.
Image resize(const Image& image, int width, int height, const std::string& filter, bool rows_first_when_tall);
