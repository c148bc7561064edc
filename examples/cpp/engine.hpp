// The one interface an application needs of an inference engine.
//
// In:  an Artifact whose network takes float32 (N, 3, H, W).
// Out: logits, float32 (N, K) row by row. What was asked for is what runs, or an Error.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "artifact.hpp"

struct EngineOptions {
    int threads = 0;  // CPU threads, 0: the engine's choice
    int batch = 1;    // most images in one call
};

class Engine {
public:
    virtual ~Engine() = default;
    virtual std::string description() const = 0;  // engine, version, device
    virtual int fixed_batch() const = 0;          // images that every call must have, 0: any number
    virtual std::vector<float> run(const std::vector<float>& batch, int images) = 0;
};

// Throws Error: missing when the engine for this kind of file was not built in, or its device is not here; artifact when it
// refuses the file.
std::unique_ptr<Engine> open_engine(const Artifact& artifact, const EngineOptions& options);

// One for every engine that was built in.
std::unique_ptr<Engine> open_openvino(const Artifact& artifact, const EngineOptions& options);
std::unique_ptr<Engine> open_tensorrt(const Artifact& artifact, const EngineOptions& options);
