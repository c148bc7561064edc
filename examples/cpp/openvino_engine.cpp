// An .onnx file on OpenVINO's CPU plugin.
#include <algorithm>
#include <stdexcept>

#include <openvino/runtime/core.hpp>
#include <openvino/runtime/properties.hpp>

#include "engine.hpp"
#include "error.hpp"

namespace {

// The reason of an exception on one line.
std::string reason(const std::exception& error) {
    std::string text = std::string(error.what()).substr(0, 300);
    std::replace(text.begin(), text.end(), '\n', ' ');
    return text;
}

class OpenVino : public Engine {
public:
    OpenVino(const Artifact& artifact, const EngineOptions& options) {
        const auto model = core_.read_model(artifact.path);
        const Preprocess& pixels = artifact.preprocess;
        const auto whole = ov::PartialShape{ov::Dimension(), 3, pixels.height, pixels.width};
        if (model->inputs().size() != 1 || model->input().get_element_type() != ov::element::f32 ||
            !model->input().get_partial_shape().compatible(whole)) {
            throw Error(Exit::artifact, "does not take one float input (N, 3, " + std::to_string(pixels.height) + ", " +
                                            std::to_string(pixels.width) + ") as its preprocessing says");
        }
        const ov::Dimension images = model->input().get_partial_shape()[0];
        fixed_batch_ = images.is_dynamic() ? 0 : static_cast<int>(images.get_length());
        shape_ = {1, 3, static_cast<std::size_t>(pixels.height), static_cast<std::size_t>(pixels.width)};
        // float32 as the network was verified: where the CPU has bf16 the plugin would use that for layers that are not int8.
        ov::AnyMap settings{ov::hint::inference_precision(ov::element::f32),
                            ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY)};
        if (options.threads > 0) settings.insert(ov::inference_num_threads(options.threads));
        auto compiled = core_.compile_model(model, "CPU", settings);
        if (compiled.get_property(ov::hint::inference_precision) != ov::element::f32) {
            throw Error(Exit::missing, "OpenVINO does not compute in float32 here");
        }
        request_ = compiled.create_infer_request();
    }

    std::string description() const override { return std::string("OpenVINO ") + ov::get_openvino_version().buildNumber + " CPU f32"; }

    int fixed_batch() const override { return fixed_batch_; }

    std::vector<float> run(const std::vector<float>& batch, int images) override {
        shape_[0] = static_cast<std::size_t>(images);
        if (batch.size() != ov::shape_size(shape_)) throw std::logic_error("a batch of another size than its images");
        ov::Tensor input(ov::element::f32, shape_, const_cast<float*>(batch.data()));  // only read
        request_.set_input_tensor(input);
        request_.infer();
        const ov::Tensor logits = request_.get_output_tensor(0);
        return {logits.data<float>(), logits.data<float>() + logits.get_size()};
    }

private:
    ov::Core core_;
    ov::InferRequest request_;
    ov::Shape shape_;
    int fixed_batch_ = 0;
};

}  // namespace

std::unique_ptr<Engine> open_openvino(const Artifact& artifact, const EngineOptions& options) {
    try {
        return std::make_unique<OpenVino>(artifact, options);
    } catch (const ov::Exception& error) {
        throw Error(Exit::artifact, artifact.path + ": OpenVINO cannot open it (" + reason(error) + ")");
    } catch (const Error& error) {
        throw Error(error.code, artifact.path + ": " + error.what());
    }
}
