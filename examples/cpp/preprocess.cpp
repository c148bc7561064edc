#include "preprocess.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>
#include <utility>

#include "error.hpp"
#include "json.hpp"
#include "orientation.hpp"

namespace {

// ---- resize: two passes, each output pixel a weighted sum of input pixels, weights in fixed point ----

constexpr double pi = 3.14159265358979323846;
constexpr int fraction_bits = 32 - 8 - 2;  // of the weights: 8 bits for the pixel, 2 for sums above 255 and below 0

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double triangle(double x) { return std::max(1.0 - std::abs(x), 0.0); }

double hamming(double x) {
    x = std::abs(x);
    if (x == 0.0) return 1.0;
    if (x >= 1.0) return 0.0;
    x *= pi;
    return std::sin(x) / x * (0.54f + 0.46f * std::cos(x));  // Pillow's constants are floats
}

double cubic(double x) {  // Keys' kernel with a = -0.5
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

double sinc(double x) { return x == 0.0 ? 1.0 : std::sin(x * pi) / (x * pi); }

double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

struct Filter {
    const char* name;
    double (*weight)(double);
    double support;  // input pixels each side when nothing shrinks
};

constexpr Filter filters[] = {{"box", box, 0.5}, {"bilinear", triangle, 1.0}, {"hamming", hamming, 1.0},
                              {"bicubic", cubic, 2.0}, {"lanczos", lanczos, 3.0}};

struct Window {  // of one output pixel
    int first;   // input pixel
    std::vector<int> weights;
};

std::vector<Window> windows(int in, int out, const Filter& filter) {
    const double scale = static_cast<double>(in) / out;
    const double stretch = std::max(scale, 1.0);  // shrinking, the filter covers all input pixels: that is the antialiasing
    const double support = filter.support * stretch, narrow = 1.0 / stretch;
    std::vector<Window> result;
    for (int i = 0; i < out; ++i) {
        const double center = (i + 0.5) * scale;
        const int first = std::max(static_cast<int>(center - support + 0.5), 0);
        const int end = std::min(static_cast<int>(center + support + 0.5), in);
        std::vector<double> exact;
        double sum = 0;
        for (int j = 0; j < end - first; ++j) {
            exact.push_back(filter.weight((j + first - center + 0.5) * narrow));
            sum += exact.back();
        }
        Window window{first, {}};
        for (double weight : exact) {
            if (sum != 0.0) weight /= sum;
            window.weights.push_back(static_cast<int>((weight < 0 ? -0.5 : 0.5) + weight * (1 << fraction_bits)));
        }
        result.push_back(std::move(window));
    }
    return result;
}

std::uint8_t rounded(int sum) { return static_cast<std::uint8_t>(std::clamp(sum >> fraction_bits, 0, 255)); }

// One output pixel from `weights.size()` input pixels that are `step` bytes apart.
void blend(const std::uint8_t* in, std::ptrdiff_t step, const std::vector<int>& weights, std::uint8_t* out) {
    constexpr int half = 1 << (fraction_bits - 1);
    int sums[3] = {half, half, half};
    for (const int weight : weights) {
        for (int c = 0; c < 3; ++c) sums[c] += in[c] * weight;
        in += step;
    }
    for (int c = 0; c < 3; ++c) out[c] = rounded(sums[c]);
}

Image resized_across(const Image& in, int width, const Filter& filter) {
    const auto all = windows(in.width, width, filter);
    Image out(width, in.height);
    for (int y = 0; y < out.height; ++y) {
        for (int x = 0; x < width; ++x) blend(in.row(y) + 3 * all[x].first, 3, all[x].weights, out.row(y) + 3 * x);
    }
    return out;
}

Image resized_down(const Image& in, int height, const Filter& filter) {
    const auto all = windows(in.height, height, filter);
    Image out(in.width, height);
    for (int y = 0; y < height; ++y) {
        for (int x = 0; x < in.width; ++x) {
            blend(in.row(all[y].first) + 3 * x, std::ptrdiff_t{3} * in.width, all[y].weights, out.row(y) + 3 * x);
        }
    }
    return out;
}

// The input pixel for each output pixel; the place is summed up step by step, as Pillow does, so that ties fall the same way.
std::vector<int> nearest_places(int in, int out) {
    const double step = static_cast<double>(in) / out;
    double place = step * 0.5;
    std::vector<int> places;
    for (int i = 0; i < out; ++i, place += step) places.push_back(std::min(static_cast<int>(place), in - 1));
    return places;
}

Image resized_nearest(const Image& in, int width, int height) {
    const auto xs = nearest_places(in.width, width), ys = nearest_places(in.height, height);
    Image out(width, height);
    for (int y = 0; y < height; ++y) {
        for (int x = 0; x < width; ++x) std::memcpy(out.row(y) + 3 * x, in.row(ys[y]) + 3 * xs[x], 3);
    }
    return out;
}

// ---- sizes and crop, as torchvision and timm round them ----

constexpr double most_pixels = 1 << 26;  // of a resized image: a strip whose short side is scaled up would take gigabytes

int to_even(double value) { return static_cast<int>(std::nearbyint(value)); }  // Python's round()

void require_between(const char* name, double value, double least, double most) {  // not a number is refused, too
    if (value >= least && value <= most) return;
    std::ostringstream text;
    text << name << " is " << value << "; expected " << least << " to " << most;
    throw Error(Exit::artifact, text.str());
}

// Whole numbers, as double: those of a long strip are too large for int.
std::pair<double, double> resized_size(int height, int width, double target_h, double target_w, const std::string& crop_mode) {
    if (crop_mode == "squash") return {target_h, target_w};
    const double ratio_h = height / target_h, ratio_w = width / target_w;
    if (crop_mode == "border" || target_h != target_w) {
        const double ratio = crop_mode == "border" ? std::max(ratio_h, ratio_w) : std::min(ratio_h, ratio_w);
        return {std::nearbyint(height / ratio), std::nearbyint(width / ratio)};
    }
    if (width <= height) return {std::floor(target_h * height / width), target_h};
    return {target_h, std::floor(target_h * width / height)};
}

void copy_rows(const Image& from, int from_x, int from_y, Image& to, int to_x, int to_y, int width, int height) {
    for (int y = 0; y < height; ++y) {
        std::memcpy(to.row(to_y + y) + 3 * to_x, from.row(from_y + y) + 3 * from_x, std::size_t{3} * width);
    }
}

Image padded(const Image& image, int width, int height, const std::array<std::uint8_t, 3>& color) {
    Image canvas(std::max(width, image.width), std::max(height, image.height));
    for (std::size_t i = 0; i < canvas.rgb.size(); ++i) canvas.rgb[i] = color[i % 3];
    copy_rows(image, 0, 0, canvas, std::max(width - image.width, 0) / 2, std::max(height - image.height, 0) / 2, image.width,
              image.height);
    return canvas;
}

}  // namespace

Image resize(const Image& image, int width, int height, const std::string& name, bool rows_first_when_tall) {
    if (name == "nearest") return resized_nearest(image, width, height);
    const auto filter = std::find_if(std::begin(filters), std::end(filters), [&](const Filter& f) { return name == f.name; });
    if (filter == std::end(filters)) throw Error(Exit::artifact, "interpolation " + json_quoted(name) + " is unknown to this program");
    const auto across = [&](const Image& in) { return in.width == width ? in : resized_across(in, width, *filter); };
    const auto down = [&](const Image& in) { return in.height == height ? in : resized_down(in, height, *filter); };
    const int rows_lost = image.height - height, columns_lost = image.width - width;
    const bool rows_first = rows_first_when_tall && rows_lost > 0 && rows_lost > 2 * columns_lost;
    return rows_first ? across(down(image)) : down(across(image));
}

void Preprocess::check() const {
    const bool known = interpolation == "nearest" ||
        std::any_of(std::begin(filters), std::end(filters), [&](const Filter& f) { return interpolation == f.name; });
    if (!known) throw Error(Exit::artifact, "interpolation " + json_quoted(interpolation) + " is unknown to this program");
    if (crop_mode != "center" && crop_mode != "squash" && crop_mode != "border") {
        throw Error(Exit::artifact, "crop_mode " + json_quoted(crop_mode) + " is unknown to this program");
    }
    if (height < 1 || width < 1 || height > 16384 || width > 16384 || height * width > 1 << 24) throw Error(Exit::artifact, "input_size is not a size");
    require_between("crop_pct", crop_pct, 0.01, 100);
    for (int c = 0; c < 3; ++c) {
        require_between("mean", mean[c], -1000, 1000);
        require_between("std", std[c], 1e-6, 1e6);
    }
    if (std::min(height, width) < crop_pct) throw Error(Exit::artifact, "crop_pct leaves less than a pixel of input_size");
}

void Preprocess::apply(Image image, float* out) const {
    if (turns) image = upright(image);
    const double target_h = std::floor(height / crop_pct), target_w = std::floor(width / crop_pct);
    const auto [exact_h, exact_w] = resized_size(image.height, image.width, target_h, target_w, crop_mode);
    if (exact_h < 1 || exact_w < 1) throw Error(Exit::usage, "nothing is left of the image when it is resized");
    const bool stays = exact_h == image.height && exact_w == image.width;
    if (!stays && exact_h * exact_w > most_pixels) throw Error(Exit::usage, "the image has too many pixels when it is resized");
    const int new_h = static_cast<int>(exact_h), new_w = static_cast<int>(exact_w);
    if (new_h != image.height || new_w != image.width) image = resize(image, new_w, new_h, interpolation, rows_first_when_tall);
    if (image.width < width || image.height < height) {
        std::array<std::uint8_t, 3> color{};
        for (int c = 0; c < 3 && crop_mode == "border"; ++c) {
            color[c] = static_cast<std::uint8_t>(std::clamp(to_even(255 * mean[c]), 0, 255));
        }
        image = padded(image, width, height, color);
    }
    const int top = to_even((image.height - height) / 2.0), left = to_even((image.width - width) / 2.0);
    const std::size_t plane = std::size_t{1} * height * width;
    for (int y = 0; y < height; ++y) {
        const std::uint8_t* pixel = image.row(top + y) + 3 * left;
        for (int x = 0; x < width; ++x, ++out) {
            for (int c = 0; c < 3; ++c) {
                out[c * plane] = (*pixel++ / 255.0f - static_cast<float>(mean[c])) / static_cast<float>(std[c]);
            }
        }
    }
}
