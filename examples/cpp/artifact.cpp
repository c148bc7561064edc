#include "artifact.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "error.hpp"
#include "json.hpp"

namespace {

constexpr long schema = 2;
constexpr const char* key = "large2small";
constexpr std::uint64_t most_metadata = 64 << 20;  // bytes; a damaged length must not ask for all memory

[[noreturn]] void damaged(const std::string& reason) { throw Error(Exit::artifact, "damaged (" + reason + "). Export it again"); }

// The few words of protobuf that an ONNX file needs (protobuf.dev, encoding): the fields of a message one after the other.
class Fields {
public:
    Fields(std::istream& stream, std::uint64_t size) : stream_(stream), left_(size) {}

    // The next field's number; 0 at the end. Its content must then be taken with one of the two calls below.
    std::uint64_t next() {
        if (left_ == 0) return 0;
        const std::uint64_t tag = varint();
        wire_ = tag & 7;
        switch (wire_) {
            case 0: length_ = 0; varint(); break;
            case 1: length_ = 8; break;
            case 2: length_ = varint(); break;
            case 5: length_ = 4; break;
            default: damaged("not an ONNX file");
        }
        if (length_ > left_ || tag >> 3 == 0) damaged("cut short, or not an ONNX file");
        left_ -= length_;
        return tag >> 3;
    }

    void skip() { stream_.seekg(static_cast<std::streamoff>(length_), std::ios::cur); }

    std::string text() {
        if (wire_ != 2 || length_ > most_metadata) damaged("a metadata field of another type");
        std::string content(length_, '\0');
        if (!stream_.read(content.data(), static_cast<std::streamsize>(length_))) damaged("cut short");
        return content;
    }

    std::istream& stream() { return stream_; }
    std::uint64_t length() const { return length_; }

private:
    std::uint64_t varint() {
        std::uint64_t value = 0;
        for (int shift = 0; shift < 64; shift += 7) {
            const int byte = left_ ? stream_.get() : -1;
            if (byte < 0) damaged("cut short, or not an ONNX file");
            --left_;
            value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
            if (byte < 0x80) return value;
        }
        damaged("not an ONNX file");
    }

    std::istream& stream_;
    std::uint64_t left_, length_ = 0, wire_ = 0;
};

// ModelProto.metadata_props is field 14, a StringStringEntryProto with key = 1 and value = 2. The weights are skipped, not read.
std::string onnx_metadata(std::istream& file, std::uint64_t size) {
    std::string found;
    Fields model(file, size);
    while (const auto number = model.next()) {
        if (number != 14) {
            model.skip();
            continue;
        }
        std::string name, value;
        Fields entry(file, model.length());
        while (const auto part = entry.next()) {
            if (part == 1) name = entry.text();
            else if (part == 2) value = entry.text();
            else entry.skip();
        }
        if (name == key) found = value;
    }
    return found;
}

std::uint64_t size_of(std::istream& file) {
    file.seekg(0, std::ios::end);
    const auto size = file.tellg();
    file.seekg(0);
    if (size < 1) damaged("empty");
    return static_cast<std::uint64_t>(size);
}

std::array<double, 3> three(const Json& json) {
    if (json.array().size() != 3) throw JsonError("expected three numbers");
    return {json.array()[0].number(), json.array()[1].number(), json.array()[2].number()};
}

Preprocess preprocess_of(const Json& json) {
    for (const auto& [name, value] : json.object()) {
        static const std::string known[] = {"input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "exif"};
        if (std::find(std::begin(known), std::end(known), name) == std::end(known)) {
            throw Error(Exit::artifact, "preprocessing key " + json_quoted(name) + " is unknown to this program");
        }
    }
    Preprocess result;
    const auto& size = json.at("input_size").array();
    if (size.size() != 3 || size[0].integer() != 3) throw JsonError("expected input_size (3, height, width)");
    const auto side = [](const Json& value) { return static_cast<int>(std::clamp(value.integer(), 0L, 1L << 20)); };
    result.height = side(size[1]);
    result.width = side(size[2]);
    result.interpolation = json.at("interpolation").string();
    result.crop_pct = json.at("crop_pct").number();
    result.crop_mode = json.at("crop_mode").string();
    result.mean = three(json.at("mean"));
    if (const Json* exif = json.find("exif")) {
        if (exif->string() != "apply" && exif->string() != "ignore") {
            throw Error(Exit::artifact, "exif " + json_quoted(exif->string()) + " is unknown to this program");
        }
        result.turns = exif->string() == "apply";
    }
    result.std = three(json.at("std"));
    result.check();
    return result;
}

// Whether the artifact was verified with a Pillow that resizes tall images downwards first; see resize().
bool rows_first_when_tall(const Json& metadata) {
    const Json* versions = metadata.find("versions");
    const Json* pillow = versions ? versions->find("pillow") : nullptr;
    return !pillow || pillow->is_null() || std::atoi(pillow->string().c_str()) >= 13;
}

void read_metadata(const Json& metadata, Artifact& artifact) {
    const long found = metadata.at("schema").integer();
    if (found != schema && found != 1) {  // what is read here is the same in both
        throw Error(Exit::artifact, "metadata schema " + std::to_string(found) + "; this program reads 1 and " + std::to_string(schema));
    }
    const Json *preprocess = metadata.find("preprocess"), *names = metadata.find("class_names");
    if (!preprocess || preprocess->is_null()) throw Error(Exit::artifact, "carries no preprocessing. Export it with distill export");
    artifact.preprocess = preprocess_of(*preprocess);
    artifact.preprocess.rows_first_when_tall = rows_first_when_tall(metadata);
    if (names && !names->is_null()) {
        for (const Json& name : names->array()) artifact.class_names.push_back(name.string());
    }
}

// The JSON beside a plan, which must be about this plan and about TensorRT itself.
Json plan_metadata(Artifact& artifact, std::uint64_t plan_size) {
    const std::string& path = artifact.path;
    std::ifstream file(path + ".json", std::ios::binary);
    if (!file) {
        throw Error(Exit::artifact, path + ".json is not beside it, which holds preprocessing and class names. Copy both files");
    }
    const Json document = Json::parse(std::string((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>()));
    const Json& metadata = document.at(key);
    const Json& engine = metadata.at("engine");
    if (static_cast<std::uint64_t>(engine.at("plan_bytes").integer()) != plan_size) {
        throw Error(Exit::artifact, "has " + std::to_string(plan_size) + " bytes, and " + path + ".json is about a plan of " +
                                        std::to_string(engine.at("plan_bytes").integer()) + ". Copy both files again");
    }
    if (engine.at("flavor").string() != "tensorrt") {
        throw Error(Exit::artifact, "a plan of TensorRT for RTX; this program runs those of TensorRT. Build it with distill export trt");
    }
    if (const Json* flags = engine.find("flags")) {
        const Json *stripped = flags->find("strip_weights"), *compatible = flags->find("version_compat");
        if (stripped && !stripped->is_null() && stripped->boolean()) {
            throw Error(Exit::artifact,
                        "built without its weights, which this program cannot put back. Build it without --strip-weights");
        }
        artifact.version_compatible = compatible && !compatible->is_null() && compatible->boolean();
    }
    return metadata;
}

void fill(std::ifstream& file, Artifact& artifact) {
    const std::uint64_t size = size_of(file);
    if (artifact.is_plan) {
        read_metadata(plan_metadata(artifact, size), artifact);
        return;
    }
    const std::string text = onnx_metadata(file, size);
    if (text.empty()) throw Error(Exit::artifact, "carries no metadata of large2small. Export it with distill export onnx");
    read_metadata(Json::parse(text), artifact);
}

}  // namespace

Artifact read_artifact(const std::string& path) {
    Artifact artifact;
    artifact.path = path;
    const auto ends = [&path](const std::string& with) {
        return path.size() >= with.size() && path.compare(path.size() - with.size(), with.size(), with) == 0;
    };
    artifact.is_plan = ends(".plan");
    if (!artifact.is_plan && !ends(".onnx")) throw Error(Exit::usage, path + ": expected an .onnx or a .plan file");
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Error(Exit::usage, path + ": no such file");
    try {
        fill(file, artifact);
    } catch (const Error& error) {
        throw Error(error.code, path + ": " + error.what());
    } catch (const JsonError& error) {
        throw Error(Exit::artifact, path + ": its metadata is damaged (" + error.what() + "). Export it again");
    }
    return artifact;
}
