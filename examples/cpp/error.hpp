// Every failure a user can cause: one line that says what was wrong and how to fix it, and the process's exit code.
#pragma once

#include <stdexcept>
#include <string>

enum class Exit { usage = 2, missing = 3, artifact = 4 };

struct Error : std::runtime_error {
    Error(Exit code_, const std::string& message) : std::runtime_error(message), code(code_) {}
    Exit code;
};
