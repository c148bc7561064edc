// A small strict JSON reader (RFC 8259), and the one thing that writing needs: a quoted string.
//
// In:  UTF-8 text, the whole document.
// Out: a `Json` value; what is not JSON (NaN, comments, trailing commas, other encodings), a key twice, or deeper than 200 throws
//      JsonError.
#pragma once

#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

struct JsonError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Json {
public:
    using Array = std::vector<Json>;
    using Object = std::map<std::string, Json>;

    static Json parse(std::string_view text);

    bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
    // Each throws JsonError when the value is of another kind.
    bool boolean() const { return as<bool>("true or false"); }
    double number() const { return as<double>("a number"); }
    long integer() const;  // a number without a fraction
    const std::string& string() const { return as<std::string>("a string"); }
    const Array& array() const { return as<Array>("an array"); }
    const Object& object() const { return as<Object>("an object"); }
    const Json& at(const std::string& key) const;    // throws when the key is not there
    const Json* find(const std::string& key) const;  // nullptr when the key is not there

private:
    friend class JsonParser;

    template <typename T>
    const T& as(const char* expected) const {
        if (const T* found = std::get_if<T>(&value_)) return *found;
        throw JsonError(std::string("expected ") + expected);
    }

    std::variant<std::nullptr_t, bool, double, std::string, Array, Object> value_{nullptr};
};

// "..." with quotes, backslashes and control characters escaped.
std::string json_quoted(std::string_view text);
