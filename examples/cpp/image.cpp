#include "image.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string_view>

#include "error.hpp"
#include "orientation.hpp"

#if defined(WITH_JPEG) || defined(WITH_PNG)
#include <csetjmp>
#endif
#ifdef WITH_JPEG
#include <jpeglib.h>
#include <jerror.h>
#endif
#ifdef WITH_PNG
#include <png.h>
#endif

namespace {

constexpr long most_pixels = 1 << 26;  // as the runtime, so that a small file does not take gigabytes

using Bytes = std::vector<std::uint8_t>;

[[noreturn]] void broken(const std::string& reason) { throw Error(Exit::usage, "not a readable image (" + reason + ")"); }

Image sized(long width, long height) {
    if (width < 1 || height < 1 || width > most_pixels / height) {
        broken(std::to_string(width) + " x " + std::to_string(height) + " pixels");
    }
    return Image(static_cast<int>(width), static_cast<int>(height));
}

// netpbm's P5 (gray) and P6 (color), 8 bits: three numbers between white space and comments, one white space, the pixels.
class Pnm {
public:
    explicit Pnm(const Bytes& file) : file_(file), place_(2) {}

    Image read() {
        const int bands = file_[1] == '6' ? 3 : 1;
        const long width = number(), height = number(), most = number();
        if (most != 255) broken("a PPM of " + std::to_string(most) + " levels, expected 255");
        ++place_;  // one white space
        Image image = sized(width, height);
        const std::size_t needed = image.rgb.size() / 3 * bands;
        if (place_ > file_.size() || file_.size() - place_ < needed) broken("truncated");
        for (std::size_t i = 0; i < image.rgb.size(); ++i) image.rgb[i] = file_[place_ + (bands == 3 ? i : i / 3)];
        return image;
    }

private:
    long number() {
        while (place_ < file_.size() && (std::isspace(file_[place_]) || file_[place_] == '#')) {
            if (file_[place_] == '#') {
                while (place_ < file_.size() && file_[place_] != '\n') ++place_;
            } else {
                ++place_;
            }
        }
        const std::size_t start = place_;
        long value = 0;
        while (place_ < file_.size() && std::isdigit(file_[place_]) && place_ - start < 9) value = 10 * value + file_[place_++] - '0';
        if (place_ == start) broken("a damaged PPM header");
        return value;
    }

    const Bytes& file_;
    std::size_t place_;
};

#ifdef WITH_JPEG
// libjpeg reports errors by a call that must not return. Everything that owns memory lives outside of the function that jumps.
struct JpegErrors {
    jpeg_error_mgr manager;  // first: libjpeg hands back its address
    std::jmp_buf escape;
    char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void jpeg_failed(j_common_ptr info) {
    auto* errors = reinterpret_cast<JpegErrors*>(info->err);
    info->err->format_message(info, errors->message);
    std::longjmp(errors->escape, 1);
}

void jpeg_warned(j_common_ptr info, int level) {
    if (level < 0 && info->err->msg_code == JWRN_JPEG_EOF) jpeg_failed(info);  // libjpeg would fill up with gray
}

struct JpegReader {
    jpeg_decompress_struct info{};
    JpegErrors errors{};

    JpegReader() {
        info.err = jpeg_std_error(&errors.manager);
        errors.manager.error_exit = jpeg_failed;
        errors.manager.emit_message = jpeg_warned;
    }
    JpegReader(const JpegReader&) = delete;
    JpegReader& operator=(const JpegReader&) = delete;
    ~JpegReader() { jpeg_destroy_decompress(&info); }

    bool header(const Bytes& file) {
        if (setjmp(errors.escape)) return false;
        jpeg_create_decompress(&info);
        jpeg_mem_src(&info, file.data(), static_cast<unsigned long>(file.size()));
        jpeg_read_header(&info, TRUE);
        return true;
    }

    bool pixels(Image& image) {
        if (setjmp(errors.escape)) return false;
        info.out_color_space = JCS_RGB;
        jpeg_start_decompress(&info);
        while (info.output_scanline < info.output_height) {
            JSAMPROW row = image.row(static_cast<int>(info.output_scanline));
            jpeg_read_scanlines(&info, &row, 1);
        }
        return true;
    }
};

Image read_jpeg(const Bytes& file) {
    JpegReader reader;
    if (!reader.header(file)) broken(reader.errors.message);
    if (reader.info.num_components != 1 && reader.info.num_components != 3) {
        throw Error(Exit::usage, "a CMYK JPEG; expected RGB or gray. Convert it: convert IN.jpg -colorspace sRGB OUT.jpg");
    }
    Image image = sized(reader.info.image_width, reader.info.image_height);
    if (!reader.pixels(image)) broken(reader.errors.message);
    return image;
}
#endif

#ifdef WITH_PNG
struct PngReader {
    const Bytes& file;
    std::size_t place = 0;
    char message[200] = "";
    png_structp png = nullptr;
    png_infop info = nullptr;
    std::vector<png_bytep> rows;

    explicit PngReader(const Bytes& file_) : file(file_) {
        png = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, failed, [](png_structp, png_const_charp) {});
        if (png) info = png_create_info_struct(png);
        if (!info) throw std::bad_alloc();
        png_set_read_fn(png, this, read);
    }
    PngReader(const PngReader&) = delete;
    PngReader& operator=(const PngReader&) = delete;
    ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }

    [[noreturn]] static void failed(png_structp png, png_const_charp text) {
        auto* self = static_cast<PngReader*>(png_get_error_ptr(png));
        std::snprintf(self->message, sizeof self->message, "%s", text);
        std::longjmp(png_jmpbuf(png), 1);
    }

    static void read(png_structp png, png_bytep out, png_size_t count) {
        auto* self = static_cast<PngReader*>(png_get_io_ptr(png));
        if (self->file.size() - self->place < count) png_error(png, "truncated");
        std::memcpy(out, self->file.data() + self->place, count);
        self->place += count;
    }

    bool header() {
        if (setjmp(png_jmpbuf(png))) return false;
        png_set_crc_action(png, PNG_CRC_DEFAULT, PNG_CRC_ERROR_QUIT);  // as Pillow, which looks at every chunk
        png_read_info(png, info);
        if (png_get_bit_depth(png, info) == 16) eight_bits();
        png_set_palette_to_rgb(png);
        png_set_expand_gray_1_2_4_to_8(png);
        png_set_gray_to_rgb(png);
        png_set_strip_alpha(png);
        png_set_interlace_handling(png);
        return true;
    }

    // Gray is scaled to the nearest of 256 levels, of colors the higher byte is taken, as the runtime does.
    void eight_bits() {
        if (png_get_color_type(png, info) == PNG_COLOR_TYPE_GRAY) png_set_scale_16(png);
        else png_set_strip_16(png);
    }

    bool pixels() {
        if (setjmp(png_jmpbuf(png))) return false;
        png_read_update_info(png, info);
        png_read_image(png, rows.data());
        return true;
    }
};

Image read_png(const Bytes& file) {
    PngReader reader(file);
    if (!reader.header()) broken(reader.message);
    Image image = sized(png_get_image_width(reader.png, reader.info), png_get_image_height(reader.png, reader.info));
    for (int y = 0; y < image.height; ++y) reader.rows.push_back(image.row(y));
    if (!reader.pixels()) broken(reader.message);
    return image;
}
#endif

bool starts(const Bytes& file, std::string_view with) {
    return file.size() >= with.size() && std::equal(with.begin(), with.end(), reinterpret_cast<const char*>(file.data()));
}

Image decode(const Bytes& file) {
    if (starts(file, "P6") || starts(file, "P5")) return Pnm(file).read();
    if (starts(file, "\xFF\xD8\xFF")) {
#ifdef WITH_JPEG
        return read_jpeg(file);
#else
        throw Error(Exit::missing, "a JPEG, and this program was built without libjpeg. Install libjpeg-dev and build again");
#endif
    }
    if (starts(file, "\x89PNG\r\n\x1A\n")) {
#ifdef WITH_PNG
        return read_png(file);
#else
        throw Error(Exit::missing, "a PNG, and this program was built without libpng. Install libpng-dev and build again");
#endif
    }
    broken("neither JPEG, PNG nor PPM");
}

}  // namespace

Image read_image(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    if (!stream) throw Error(Exit::usage, path + ": no such image");
    std::error_code ignored;
    if (std::filesystem::is_directory(path, ignored)) throw Error(Exit::usage, path + ": is a folder, not an image");
    try {
        const Bytes file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
        Image image = decode(file);
        image.orientation = exif_orientation(file);
        return image;
    } catch (const Error& error) {
        throw Error(error.code, path + ": " + error.what());
    } catch (const std::ios_base::failure& error) {
        throw Error(Exit::usage, path + ": cannot be read (" + error.what() + ")");
    }
}
