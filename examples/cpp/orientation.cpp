#include "orientation.hpp"

#include <cstddef>
#include <cstring>
#include <string_view>

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::string_view exif_mark("Exif\0\0", 6);
constexpr std::uint32_t orientation_tag = 274;

// Numbers at places of a block of bytes; a place outside of it sets `damaged` and gives 0.
struct Block {
    const Bytes& bytes;
    bool big_endian = true;
    bool damaged = false;

    std::uint32_t number(std::uint64_t place, int count) {
        if (place + count > bytes.size()) {
            damaged = true;
            return 0;
        }
        std::uint32_t value = 0;
        for (int i = 0; i < count; ++i) value = value << 8 | bytes[place + (big_endian ? i : count - 1 - i)];
        return value;
    }

    bool holds(std::uint64_t place, std::string_view text) const {
        return place + text.size() <= bytes.size() && std::memcmp(bytes.data() + place, text.data(), text.size()) == 0;
    }
};

void append(Bytes& to, const Bytes& from, std::uint64_t start, std::uint64_t end) {
    to.insert(to.end(), from.begin() + static_cast<std::ptrdiff_t>(start), from.begin() + static_cast<std::ptrdiff_t>(end));
}

// Segments are 0xFF, a kind, and a length that counts itself. EXIF is in APP1, in several if it is long.
Bytes exif_of_jpeg(const Bytes& file) {
    Bytes found;
    Block block{file};
    for (std::uint64_t place = 2; place + 1 < file.size();) {
        if (file[place] != 0xFF || file[place + 1] == 0xFF || file[place + 1] == 0) {
            ++place;
            continue;
        }
        const std::uint8_t kind = file[place + 1];
        place += 2;
        if (kind == 0xDA || kind == 0xD9) break;                            // the pixels begin; the end
        if (kind == 0x01 || (kind >= 0xD0 && kind <= 0xD8)) continue;       // without a length
        const std::uint64_t length = block.number(place, 2), end = place + length;
        if (length < 2 || end > file.size()) break;
        if (kind == 0xE1 && length >= 2 + exif_mark.size() && block.holds(place + 2, exif_mark)) {
            append(found, file, place + 2 + exif_mark.size(), end);
        }
        place = end;
    }
    return found;
}

// Chunks are a length, a kind, the content and a checksum. eXIf may stand before or behind the pixels; the last one counts.
Bytes exif_of_png(const Bytes& file) {
    Bytes found;
    Block block{file};
    for (std::uint64_t place = 8; place + 12 <= file.size();) {
        if (block.holds(place + 4, "IEND")) break;
        const std::uint64_t start = place + 8, end = start + block.number(place, 4);
        if (end > file.size()) break;
        if (block.holds(place + 4, "eXIf")) {
            found.clear();
            append(found, file, start, end);
        }
        place = end + 4;
    }
    if (Block{found}.holds(0, exif_mark)) found.erase(found.begin(), found.begin() + exif_mark.size());
    return found;
}

// The first directory of a TIFF header: entries of 12 bytes, each a tag, a type, a count and a value.
int orientation_in(const Bytes& exif) {
    Block tiff{exif};
    if (!tiff.holds(0, "MM") && !tiff.holds(0, "II")) return 1;
    tiff.big_endian = exif[0] == 'M';
    if (tiff.number(2, 2) != 42) return 1;
    const std::uint64_t directory = tiff.number(4, 4);
    const std::uint32_t entries = tiff.number(directory, 2);
    for (std::uint32_t i = 0; i < entries && !tiff.damaged; ++i) {
        const std::uint64_t entry = directory + 2 + std::uint64_t{12} * i;
        if (tiff.number(entry, 2) != orientation_tag) continue;
        const std::uint32_t type = tiff.number(entry + 2, 2), count = tiff.number(entry + 4, 4);
        const std::uint32_t value = tiff.number(entry + 8, type == 4 ? 4 : 2);
        const bool usable = !tiff.damaged && (type == 3 || type == 4) && count == 1 && value >= 1 && value <= 8;
        return usable ? static_cast<int>(value) : 1;
    }
    return 1;
}

}  // namespace

int exif_orientation(const std::vector<std::uint8_t>& file) {
    const Block block{file};
    if (block.holds(0, "\xFF\xD8\xFF")) return orientation_in(exif_of_jpeg(file));
    if (block.holds(0, "\x89PNG\r\n\x1A\n")) return orientation_in(exif_of_png(file));
    return 1;
}

Image upright(const Image& image) {
    const int n = image.orientation;
    if (n == 1) return image;
    const bool exchanged = n >= 5;  // stored rows are shown as columns
    const bool from_bottom = n == 3 || n == 4 || n == 6 || n == 7, from_right = n == 2 || n == 3 || n == 7 || n == 8;
    Image out = exchanged ? Image(image.height, image.width) : Image(image.width, image.height);
    for (int y = 0; y < out.height; ++y) {
        for (int x = 0; x < out.width; ++x) {
            int row = exchanged ? x : y, column = exchanged ? y : x;
            if (from_bottom) row = image.height - 1 - row;
            if (from_right) column = image.width - 1 - column;
            std::memcpy(out.row(y) + 3 * x, image.row(row) + 3 * column, 3);
        }
    }
    return out;
}
