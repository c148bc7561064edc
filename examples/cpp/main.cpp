// classify: labels for images from an exported artifact.
//
// In:  student.onnx or student.plan (with student.plan.json), image files.
// Out: one line for every image: path, then the most probable classes; `--json`: one JSON object a line.
// Exit codes: 0; 2 wrong usage or an image that cannot be read (the others are labeled); 3 an engine or library is missing;
// 4 the artifact cannot be used here.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <new>
#include <numeric>
#include <string>
#include <vector>

#include "artifact.hpp"
#include "engine.hpp"
#include "error.hpp"
#include "image.hpp"
#include "json.hpp"

namespace {

constexpr const char* usage =
    "usage: classify ARTIFACT [options] IMAGE...\n"
    "  --top N             guesses for every image (default 1)\n"
    "  --batch N           most images in one call of the engine (default 1)\n"
    "  --threads N         CPU threads of the engine\n"
    "  --json              one JSON object for every image\n"
    "  --dump-tensor FILE  write the preprocessed images, float32 (N, 3, H, W), and run nothing\n";

struct Arguments {
    std::string artifact, dump;
    std::vector<std::string> images;
    EngineOptions engine;
    int top = 1;
    bool json = false, help = false;
};

int positive(const std::string& flag, const std::string& text) {
    int value = 0;
    const char* end = text.data() + text.size();
    const auto done = std::from_chars(text.data(), end, value);
    if (done.ec != std::errc() || done.ptr != end || value < 1) throw Error(Exit::usage, flag + " " + text + ": expected 1 or more");
    return value;
}

Arguments read_arguments(const std::vector<std::string>& words) {
    Arguments given;
    std::vector<std::string> files;
    for (std::size_t i = 0; i < words.size(); ++i) {
        const std::string& word = words[i];
        const auto value = [&]() -> const std::string& {
            if (++i == words.size()) throw Error(Exit::usage, words[i - 1] + " needs a value. See classify --help");
            return words[i];
        };
        if (word == "--help" || word == "-h") given.help = true;
        else if (word == "--json") given.json = true;
        else if (word == "--top") given.top = positive(word, value());
        else if (word == "--batch") given.engine.batch = positive(word, value());
        else if (word == "--threads") given.engine.threads = positive(word, value());
        else if (word == "--dump-tensor") given.dump = value();
        else if (word.size() > 1 && word[0] == '-') throw Error(Exit::usage, "unknown flag " + word + ". See classify --help");
        else files.push_back(word);
    }
    if (given.help) return given;
    if (files.size() < 2) throw Error(Exit::usage, "expected an artifact and at least one image. See classify --help");
    given.artifact = files[0];
    given.images.assign(files.begin() + 1, files.end());
    return given;
}

struct Guess {
    int index;
    double probability;
};

// Softmax in double and the best of one row of logits; of equal scores the lower class comes first.
std::vector<Guess> best(const float* logits, int classes, int top) {
    const float highest = *std::max_element(logits, logits + classes);
    double sum = 0;
    for (int i = 0; i < classes; ++i) sum += std::exp(static_cast<double>(logits[i] - highest));
    std::vector<int> order(classes);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [logits](int a, int b) { return logits[a] > logits[b]; });
    std::vector<Guess> guesses;
    for (int i = 0; i < std::min(top, classes); ++i) {
        guesses.push_back({order[i], std::exp(static_cast<double>(logits[order[i]] - highest)) / sum});
    }
    return guesses;
}

std::string number(const char* format, double value) {
    char text[40];
    std::snprintf(text, sizeof text, format, value);
    return text;
}

void print(const std::string& path, const std::vector<Guess>& guesses, const std::vector<std::string>& names, bool json) {
    std::string line = json ? "{\"image\": " + json_quoted(path) + ", \"predictions\": [" : path;
    for (const Guess& guess : guesses) {
        const std::string label = names.empty() ? "class " + std::to_string(guess.index) : names[guess.index];
        if (json) {
            line += (&guess == &guesses.front() ? "" : ", ") + ("{\"label\": " + json_quoted(label)) + ", \"index\": " +
                    std::to_string(guess.index) + ", \"probability\": " + number("%.9g", guess.probability) + "}";
        } else {
            line += '\t' + label + ' ' + number("%.4f", guess.probability);
        }
    }
    std::cout << line << (json ? "]}\n" : "\n");
}

void warn(const Error& error) { std::cerr << "error: " << error.what() << '\n'; }

// Reads images into one batch as they are wanted; those that cannot be read are named and left out.
class Reader {
public:
    Reader(const Artifact& artifact, const std::vector<std::string>& paths) : preprocess_(artifact.preprocess), paths_(paths) {}

    // Up to `most` images, one after the other in `pixels`; empty at the end.
    std::vector<std::string> next(int most, std::vector<float>& pixels) {
        std::vector<std::string> read;
        pixels.resize(preprocess_.size() * most);
        for (; next_ < paths_.size() && read.size() < static_cast<std::size_t>(most); ++next_) {
            try {
                add(paths_[next_], pixels.data() + preprocess_.size() * read.size());
                read.push_back(paths_[next_]);
            } catch (const Error& error) {
                leave_out(error);
            } catch (const std::bad_alloc&) {
                leave_out(Error(Exit::usage, paths_[next_] + ": does not fit into memory"));
            }
        }
        return read;
    }

    int worst() const { return worst_; }  // exit code of the images that could not be read

private:
    void leave_out(const Error& error) {
        warn(error);
        worst_ = std::max(worst_, static_cast<int>(error.code));
    }

    void add(const std::string& path, float* out) const {
        Image image = read_image(path);
        try {
            preprocess_.apply(std::move(image), out);
        } catch (const Error& error) {
            throw Error(error.code, path + ": " + error.what());
        }
    }

    const Preprocess& preprocess_;
    const std::vector<std::string>& paths_;
    std::size_t next_ = 0;
    int worst_ = 0;
};

int dump(const Artifact& artifact, const Arguments& given) {
    std::ofstream file(given.dump, std::ios::binary);
    Reader reader(artifact, given.images);
    std::vector<float> pixels;
    while (!reader.next(1, pixels).empty()) {
        file.write(reinterpret_cast<const char*>(pixels.data()), static_cast<std::streamsize>(pixels.size() * sizeof(float)));
    }
    file.close();
    if (!file) throw Error(Exit::usage, given.dump + ": cannot be written");
    return reader.worst();
}

int classify(const Artifact& artifact, const Arguments& given) {
    const auto engine = open_engine(artifact, given.engine);
    const int fixed = engine->fixed_batch();
    const int most = fixed ? std::min(fixed, given.engine.batch) : given.engine.batch;
    Reader reader(artifact, given.images);
    std::vector<float> pixels;
    for (auto paths = reader.next(most, pixels); !paths.empty(); paths = reader.next(most, pixels)) {
        const int read = static_cast<int>(paths.size()), images = fixed ? fixed : read;
        pixels.resize(artifact.preprocess.size() * images);  // a fixed batch that is not full ends in whatever is there
        const std::vector<float> logits = engine->run(pixels, images);
        const int classes = static_cast<int>(logits.size()) / images;
        if (classes < 1 || (!artifact.class_names.empty() && static_cast<int>(artifact.class_names.size()) != classes)) {
            throw Error(Exit::artifact, artifact.path + ": " + std::to_string(classes) + " outputs and " +
                                            std::to_string(artifact.class_names.size()) + " class names. Export it again");
        }
        for (int i = 0; i < read; ++i) {
            print(paths[i], best(logits.data() + std::size_t{1} * i * classes, classes, given.top), artifact.class_names, given.json);
        }
    }
    return reader.worst();
}

}  // namespace

int main(int argc, char** argv) {
    try {
        const Arguments given = read_arguments({argv + 1, argv + argc});
        if (given.help) {
            std::cout << usage;
            return 0;
        }
        const Artifact artifact = read_artifact(given.artifact);
        return given.dump.empty() ? classify(artifact, given) : dump(artifact, given);
    } catch (const Error& error) {
        warn(error);
        return static_cast<int>(error.code);
    } catch (const std::exception& error) {
        std::cerr << "internal error: " << error.what() << '\n';
        return 70;
    }
}
