#include "json.hpp"

#include <charconv>
#include <cmath>
#include <cstdio>

class JsonParser {
public:
    explicit JsonParser(std::string_view text) : text_(text) {}

    Json document() {
        check_utf8();
        place_ = 0;
        Json value = read(0);
        skip_space();
        if (place_ != text_.size()) fail("something follows the value");
        return value;
    }

private:
    static constexpr int deepest = 200;  // a file of brackets must not exhaust the stack

    [[noreturn]] void fail(const std::string& what) const {
        throw JsonError("not JSON at byte " + std::to_string(place_) + ": " + what);
    }

    // Every character as short as it can be, below 0x110000, and none of the halves of surrogate pairs (RFC 3629).
    void check_utf8() {
        while (place_ < text_.size()) {
            const unsigned first = static_cast<unsigned char>(text_[place_]);
            const std::size_t more = first < 0x80 ? 0 : first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
            unsigned code = more ? first & (0x3F >> more) : first;
            bool good = first < 0x80 || (first >= 0xC2 && first < 0xF5);
            for (std::size_t i = 1; good && i <= more; ++i) {
                const unsigned next = place_ + i < text_.size() ? static_cast<unsigned char>(text_[place_ + i]) : 0;
                good = (next & 0xC0) == 0x80;
                code = code << 6 | (next & 0x3F);
            }
            constexpr unsigned least[] = {0, 0x80, 0x800, 0x10000};
            if (!good || code < least[more] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) fail("not UTF-8");
            place_ += more + 1;
        }
    }

    void skip_space() {
        while (place_ < text_.size() && std::string_view(" \t\n\r").find(text_[place_]) != std::string_view::npos) ++place_;
    }

    char peek() const { return place_ < text_.size() ? text_[place_] : '\0'; }

    bool take(char wanted) {
        if (peek() != wanted || place_ == text_.size()) return false;
        ++place_;
        return true;
    }

    void expect(char wanted) {
        skip_space();
        if (!take(wanted)) fail(std::string("expected ") + wanted);
    }

    Json read(int depth) {
        if (depth > deepest) fail("nested too deep");
        skip_space();
        Json json;
        switch (peek()) {
            case '{': json.value_ = object(depth); break;
            case '[': json.value_ = array(depth); break;
            case '"': json.value_ = string(); break;
            case 't': word("true"); json.value_ = true; break;
            case 'f': word("false"); json.value_ = false; break;
            case 'n': word("null"); break;
            default: json.value_ = number();
        }
        return json;
    }

    void word(std::string_view expected) {
        if (text_.substr(place_, expected.size()) != expected) fail("expected " + std::string(expected));
        place_ += expected.size();
    }

    Json::Object object(int depth) {
        Json::Object members;
        expect('{');
        skip_space();
        if (take('}')) return members;
        do {
            skip_space();
            std::string key = string();
            expect(':');
            if (!members.emplace(key, read(depth + 1)).second) fail("the key " + json_quoted(key) + " twice");
            skip_space();
        } while (take(','));
        expect('}');
        return members;
    }

    Json::Array array(int depth) {
        Json::Array items;
        expect('[');
        skip_space();
        if (take(']')) return items;
        do {
            items.push_back(read(depth + 1));
            skip_space();
        } while (take(','));
        expect(']');
        return items;
    }

    static bool is_digit(char c) { return c >= '0' && c <= '9'; }

    void digits() {
        if (!is_digit(peek())) fail("expected a digit");
        while (is_digit(peek())) ++place_;
    }

    double number() {
        const std::size_t start = place_;
        take('-');
        if (!take('0')) digits();  // no leading zeros
        if (take('.')) digits();
        if (take('e') || take('E')) {
            if (!take('+')) take('-');
            digits();
        }
        double value = 0;
        const auto done = std::from_chars(text_.data() + start, text_.data() + place_, value);
        if (done.ec != std::errc()) fail("a number out of range");
        return value;
    }

    unsigned hex4() {
        unsigned value = 0;
        const char* start = text_.data() + place_;
        if (place_ + 4 > text_.size() || std::from_chars(start, start + 4, value, 16).ptr != start + 4) fail("expected 4 hex digits");
        place_ += 4;
        return value;
    }

    // A \u escape, of a pair for what is beyond the first 65536 characters, as UTF-8.
    void unicode(std::string& out) {
        unsigned code = hex4();
        if (code >= 0xDC00 && code < 0xE000) fail("half of a surrogate pair");
        if (code >= 0xD800 && code < 0xDC00) {
            if (!take('\\') || !take('u')) fail("half of a surrogate pair");
            const unsigned low = hex4();
            if (low < 0xDC00 || low >= 0xE000) fail("half of a surrogate pair");
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        auto put = [&out](unsigned byte) { out += static_cast<char>(byte); };
        if (code < 0x80) {
            put(code);
        } else if (code < 0x800) {
            put(0xC0 | code >> 6), put(0x80 | (code & 0x3F));
        } else if (code < 0x10000) {
            put(0xE0 | code >> 12), put(0x80 | (code >> 6 & 0x3F)), put(0x80 | (code & 0x3F));
        } else {
            put(0xF0 | code >> 18), put(0x80 | (code >> 12 & 0x3F)), put(0x80 | (code >> 6 & 0x3F)), put(0x80 | (code & 0x3F));
        }
    }

    std::string string() {
        if (!take('"')) fail("expected a string");
        std::string out;
        while (!take('"')) {
            if (place_ == text_.size()) fail("a string without end");
            const char c = text_[place_++];
            if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
            if (c != '\\') {
                out += c;
                continue;
            }
            const char escape = peek();
            const auto which = std::string_view("\"\\/bfnrt").find(escape);
            ++place_;
            if (escape == 'u') {
                unicode(out);
            } else if (place_ <= text_.size() && which != std::string_view::npos) {
                out += "\"\\/\b\f\n\r\t"[which];
            } else {
                fail("an unknown escape");
            }
        }
        return out;
    }

    std::string_view text_;
    std::size_t place_ = 0;
};

Json Json::parse(std::string_view text) { return JsonParser(text).document(); }

long Json::integer() const {
    const double value = number();
    if (value != std::floor(value) || std::abs(value) > 9e15) throw JsonError("expected a whole number");
    return static_cast<long>(value);
}

const Json* Json::find(const std::string& key) const {
    const auto place = object().find(key);
    return place == object().end() ? nullptr : &place->second;
}

const Json& Json::at(const std::string& key) const {
    if (const Json* found = find(key)) return *found;
    throw JsonError("the key " + json_quoted(key) + " is missing");
}

std::string json_quoted(std::string_view text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        if (static_cast<unsigned char>(c) < 0x20) {
            char escaped[7];
            std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(static_cast<unsigned char>(c)));
            out += escaped;
        } else {
            out += c;
        }
    }
    return out + '"';
}
