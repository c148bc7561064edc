#include "engine.hpp"

#include "error.hpp"

std::unique_ptr<Engine> open_engine(const Artifact& artifact, const EngineOptions& options) {
    if (artifact.is_plan) {
#ifdef WITH_TENSORRT
        return open_tensorrt(artifact, options);
#else
        throw Error(Exit::missing, artifact.path + ": needs TensorRT, and this program was built without it. "
                                                   "Build it where NvInfer.h and the CUDA toolkit are");
#endif
    }
#ifdef WITH_OPENVINO
    return open_openvino(artifact, options);
#else
    (void)options;
    throw Error(Exit::missing, artifact.path + ": needs OpenVINO, and this program was built without it. "
                                               "Build it with -DOpenVINO_DIR=..., or give a .plan");
#endif
}
