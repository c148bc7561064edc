// A .plan on TensorRT 10.3 to 11, with the CUDA runtime.
//
// Names used here are those that the headers of 10.3 and 11.1 share.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "engine.hpp"
#include "error.hpp"

namespace {

using Version = std::array<int, 4>;

std::string text(const Version& version) {
    std::string result = std::to_string(version[0]);
    for (std::size_t i = 1; i < version.size(); ++i) result += "." + std::to_string(version[i]);
    return result;
}

Version installed() { return {getInferLibMajorVersion(), getInferLibMinorVersion(), getInferLibPatchVersion(), getInferLibBuildVersion()}; }

// TensorRT reports reasons only here; calls return null or false.
class Log : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override {
        try {
            if (severity <= Severity::kERROR) last_ = message;
        } catch (...) {
            last_.clear();  // no memory for a message
        }
    }
    std::string last() const { return last_.empty() ? "no reason given" : last_; }

private:
    std::string last_;
};

// Kept until the process ends: TensorRT allows one logger for all its objects.
Log& logger() {
    static Log log;
    return log;
}

void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw Error(Exit::missing, std::string(what) + ": " + cudaGetErrorString(status));
}

void check(bool worked, const char* what) {
    if (!worked) throw Error(Exit::artifact, std::string("TensorRT: ") + what + " failed (" + logger().last() + ")");
}

struct Unpin {
    void operator()(void* memory) const { cudaFreeHost(memory); }
};
struct Free {
    void operator()(void* memory) const { cudaFree(memory); }
};
struct DestroyStream {
    void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};

// The same bytes on the host, page-locked so that copies need no detour, and on the device.
class Buffer {
public:
    explicit Buffer(std::size_t floats) : size_(floats) {
        void* memory = nullptr;
        check(cudaMallocHost(&memory, size_ * sizeof(float)), "no page-locked memory");
        host_.reset(memory);
        check(cudaMalloc(&memory, size_ * sizeof(float)), "no GPU memory");
        device_.reset(memory);
    }
    float* host() const { return static_cast<float*>(host_.get()); }
    void* device() const { return device_.get(); }
    std::size_t size() const { return size_; }

private:
    std::size_t size_;
    std::unique_ptr<void, Unpin> host_;
    std::unique_ptr<void, Free> device_;
};

std::vector<char> plan_of(const Artifact& artifact) {
    std::ifstream file(artifact.path, std::ios::binary);
    std::vector<char> plan((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (plan.size() < 28) throw Error(Exit::artifact, "too short for a plan. Copy it again");
    // Bytes 24 to 27 of a plan are the version that wrote it; a plan built to run on later versions begins differently.
    if (std::equal(plan.begin(), plan.begin() + 4, "ftrt")) {
        Version built{};
        for (std::size_t i = 0; i < built.size(); ++i) built[i] = static_cast<unsigned char>(plan[24 + i]);
        if (built[0] != installed()[0]) {
            throw Error(Exit::artifact, "built with TensorRT " + text(built) + ", and here is " + text(installed()) +
                                            ". Build it again here: distill export trt --rebuild PLAN");
        }
    }
    return plan;
}

class TensorRt : public Engine {
public:
    TensorRt(const Artifact& artifact, const EngineOptions& options) : pixels_(artifact.preprocess.size()) {
        int devices = 0;  // before anything of TensorRT, which may crash without a driver
        check(cudaGetDeviceCount(&devices), "no NVIDIA GPU that CUDA can use");
        check(cudaGetDeviceProperties(&gpu_, 0), "the GPU cannot be asked");
        const std::vector<char> plan = plan_of(artifact);
        runtime_.reset(nvinfer1::createInferRuntime(logger()));
        check(runtime_ != nullptr, "createInferRuntime");
        runtime_->setEngineHostCodeAllowed(artifact.version_compatible);
        engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
        check(engine_ != nullptr, "opening the plan");
        find_tensors(artifact.preprocess);
        context_.reset(engine_->createExecutionContext());
        check(context_ != nullptr, "createExecutionContext");
        cudaStream_t stream = nullptr;
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "no CUDA stream");
        stream_.reset(stream);
        allocate(options.batch);
    }

    std::string description() const override { return "TensorRT " + text(installed()) + " on " + gpu_.name; }

    int fixed_batch() const override { return fixed_batch_; }

    std::vector<float> run(const std::vector<float>& batch, int images) override {
        shape_.d[0] = images;
        check(context_->setInputShape(input_.c_str(), shape_), "setInputShape");
        const std::size_t count = batch.size(), results = std::size_t{1} * images * classes_;
        if (count != pixels_ * images || count > in_->size()) throw std::logic_error("a batch of another size than its images");
        std::memcpy(in_->host(), batch.data(), count * sizeof(float));
        copy(in_->device(), in_->host(), count, cudaMemcpyHostToDevice);
        check(context_->enqueueV3(stream_.get()), "enqueueV3");
        copy(out_->host(), out_->device(), results, cudaMemcpyDeviceToHost);
        check(cudaStreamSynchronize(stream_.get()), "the GPU failed");
        return {out_->host(), out_->host() + results};
    }

private:
    // One float image input, one float output (N, K), both on the device in plain order.
    void find_tensors(const Preprocess& pixels) {
        for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
            const char* name = engine_->getIOTensorName(i);
            const bool plain = engine_->getTensorDataType(name) == nvinfer1::DataType::kFLOAT &&
                engine_->getTensorLocation(name) == nvinfer1::TensorLocation::kDEVICE &&
                engine_->getTensorFormat(name) == nvinfer1::TensorFormat::kLINEAR;
            std::string& place = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT ? input_ : output_;
            if (!plain || !place.empty()) throw Error(Exit::artifact, "expected one float input and one float output");
            place = name;
        }
        if (input_.empty() || output_.empty()) throw Error(Exit::artifact, "expected one float input and one float output");
        shape_ = engine_->getTensorShape(input_.c_str());
        const nvinfer1::Dims logits = engine_->getTensorShape(output_.c_str());
        if (shape_.nbDims != 4 || shape_.d[1] != 3 || shape_.d[2] != pixels.height || shape_.d[3] != pixels.width) {
            throw Error(Exit::artifact, "does not take (N, 3, " + std::to_string(pixels.height) + ", " + std::to_string(pixels.width) +
                                            ") as its preprocessing says");
        }
        if (logits.nbDims != 2 || logits.d[1] < 1) throw Error(Exit::artifact, "expected logits (N, K)");
        classes_ = static_cast<int>(logits.d[1]);
        fixed_batch_ = shape_.d[0] > 0 ? static_cast<int>(shape_.d[0]) : 0;
    }

    // Buffers for the largest batch, once, and their addresses, which do not change.
    void allocate(int batch) {
        using nvinfer1::OptProfileSelector;
        int most = fixed_batch_;
        if (!most) {  // the first profile, in which every new context starts
            const auto least = engine_->getProfileShape(input_.c_str(), 0, OptProfileSelector::kMIN).d[0];
            const auto limit = engine_->getProfileShape(input_.c_str(), 0, OptProfileSelector::kMAX).d[0];
            if (least > 1 || batch > limit) {
                throw Error(Exit::usage, "takes " + std::to_string(least) + " to " + std::to_string(limit) + " images at a time. Give " +
                                             "--batch " + std::to_string(limit) + " or less, or build it with --dynamic 1,OPT,MAX");
            }
            most = batch;
        }
        in_ = std::make_unique<Buffer>(pixels_ * most);
        out_ = std::make_unique<Buffer>(std::size_t{1} * classes_ * most);
        check(context_->setTensorAddress(input_.c_str(), in_->device()), "setTensorAddress");
        check(context_->setTensorAddress(output_.c_str(), out_->device()), "setTensorAddress");
    }

    void copy(void* to, const void* from, std::size_t floats, cudaMemcpyKind kind) {
        check(cudaMemcpyAsync(to, from, floats * sizeof(float), kind, stream_.get()), "copying failed");
    }

    // Freed from the last to the first: buffers and stream, context, engine, runtime.
    cudaDeviceProp gpu_{};
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::unique_ptr<CUstream_st, DestroyStream> stream_;
    std::unique_ptr<Buffer> in_, out_;
    std::string input_, output_;
    nvinfer1::Dims shape_{};
    std::size_t pixels_;
    int classes_ = 0, fixed_batch_ = 0;
};

}  // namespace

std::unique_ptr<Engine> open_tensorrt(const Artifact& artifact, const EngineOptions& options) {
    try {
        return std::make_unique<TensorRt>(artifact, options);
    } catch (const Error& error) {
        throw Error(error.code, artifact.path + ": " + error.what());
    }
}
