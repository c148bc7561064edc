// What an exported file says about itself: preprocessing and class names, from the file alone.
//
// In:  student.onnx (its metadata_props entry "large2small"), or student.plan with student.plan.json beside it.
// Out: an `Artifact`.
// The schema is written down in large2small's runtime/artifact.py and runtime/preprocess.py.
#pragma once

#include <string>
#include <vector>

#include "preprocess.hpp"

struct Artifact {
    std::string path;
    bool is_plan = false;
    bool version_compatible = false;  // of a plan: it brings a runtime of its own, which must be allowed to run
    Preprocess preprocess;
    std::vector<std::string> class_names;
};

// Throws Error: usage when there is no such file, artifact when it is damaged, incomplete or of another version.
Artifact read_artifact(const std::string& path);
