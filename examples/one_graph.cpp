// A whole model as one graph in C++, with ONNX Runtime's C interface: samples in, tokens out.
//
//     mt3 export default --single-file -o model
//     c++ -std=c++17 one_graph.cpp -I ONNXRUNTIME/include -L ONNXRUNTIME/lib -lonnxruntime -o one_graph
//     ./one_graph model/complete.cpu.onnx song.wav        (16 kHz, mono, 16 bits)
//
// Prints the tokens of each segment.  The default model reads samples, index and last; Magenta's
// reads samples and frames: bundle.json lists the inputs of a graph, docs/web.md says what they are.
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

namespace {

constexpr std::int64_t kSize = 32768;  // samples of a segment
constexpr std::int64_t kRows = 8;      // segments decoded in one call
const OrtApi* api = nullptr;

void check(OrtStatus* status) {
  if (status == nullptr) return;
  std::fprintf(stderr, "%s\n", api->GetErrorMessage(status));
  std::exit(1);
}

std::vector<float> read_wave(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  std::vector<float> samples;
  for (std::size_t i = 44; i + 1 < bytes.size(); i += 2) {
    const auto low = static_cast<std::uint8_t>(bytes[i]);
    const auto value = static_cast<std::int16_t>(low | (static_cast<std::uint8_t>(bytes[i + 1]) << 8));
    samples.push_back(static_cast<float>(value) / 32768.0F);
  }
  return samples;
}

template <typename T>
OrtValue* tensor(const OrtMemoryInfo* memory, T* data, std::int64_t count, std::int64_t width,
                 ONNXTensorElementDataType type) {
  const std::array<std::int64_t, 2> shape{count, width};
  OrtValue* value = nullptr;
  const std::size_t bytes = static_cast<std::size_t>(count * std::max<std::int64_t>(width, 1)) * sizeof(T);
  check(api->CreateTensorWithDataAsOrtValue(memory, data, bytes, shape.data(), width ? 2 : 1, type, &value));
  return value;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return std::fprintf(stderr, "usage: one_graph GRAPH.onnx SONG.wav\n"), 2;
  api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  OrtEnv* environment = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  OrtMemoryInfo* memory = nullptr;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "mt3", &environment));
  check(api->CreateSessionOptions(&options));
  check(api->SetIntraOpNumThreads(options, 1));
  check(api->CreateSession(environment, arguments[1], options, &session));
  check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));

  std::vector<float> samples = read_wave(arguments[2]);
  const auto segments = (static_cast<std::int64_t>(samples.size()) + kSize - 1) / kSize;
  samples.resize(static_cast<std::size_t>(segments * kSize));  // zeros behind the end
  for (std::int64_t at = 0; at < segments; at += kRows) {
    const std::int64_t rows = std::min(kRows, segments - at);
    std::array<std::int64_t, kRows> index{};
    std::array<bool, kRows> last{};
    for (std::int64_t row = 0; row < rows; ++row) {
      index[row] = at + row;
      last[row] = at + row + 1 == segments;
    }
    const std::array<OrtValue*, 3> inputs{
        tensor(memory, samples.data() + at * kSize, rows, kSize, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
        tensor(memory, index.data(), rows, 0, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
        tensor(memory, last.data(), rows, 0, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL)};
    const std::array<const char*, 3> names{"samples", "index", "last"};
    const std::array<const char*, 1> wanted{"tokens"};
    OrtValue* tokens = nullptr;
    check(api->Run(session, nullptr, names.data(), inputs.data(), 3, wanted.data(), 1, &tokens));

    OrtTensorTypeAndShapeInfo* shape = nullptr;
    std::array<std::int64_t, 2> size{};
    std::int64_t* data = nullptr;
    check(api->GetTensorTypeAndShape(tokens, &shape));
    check(api->GetDimensions(shape, size.data(), size.size()));
    check(api->GetTensorMutableData(tokens, reinterpret_cast<void**>(&data)));
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t step = 0; step < size[1] && data[row * size[1] + step] >= 0; ++step) {
        std::printf(step ? " %lld" : "%lld", static_cast<long long>(data[row * size[1] + step]));
      }
      std::printf("\n");
    }
    api->ReleaseTensorTypeAndShapeInfo(shape);
    api->ReleaseValue(tokens);
    for (OrtValue* value : inputs) api->ReleaseValue(value);
  }
  api->ReleaseSession(session);
  api->ReleaseSessionOptions(options);
  api->ReleaseMemoryInfo(memory);
  api->ReleaseEnv(environment);
}
