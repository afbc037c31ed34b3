// What examples/one_graph.cpp uses of ONNX Runtime's C interface, for building it without the
// official header, which no package in reach has.  Functions of that interface keep their places
// for ever; those in between are left unnamed.
#pragma once
#include <cstddef>
#include <cstdint>

#define ORT_API_VERSION 14

struct OrtEnv;
struct OrtMemoryInfo;
struct OrtRunOptions;
struct OrtSession;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL = 9
};
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_ERROR = 3 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };

struct OrtApi {
  void* places_0[2];
  const char* (*GetErrorMessage)(const OrtStatus*);                                      // 2
  OrtStatus* (*CreateEnv)(OrtLoggingLevel, const char*, OrtEnv**);                       // 3
  void* places_4[3];
  OrtStatus* (*CreateSession)(const OrtEnv*, const char*, const OrtSessionOptions*,
                              OrtSession**);                                             // 7
  void* places_8[1];
  OrtStatus* (*Run)(OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*,
                    std::size_t, const char* const*, std::size_t, OrtValue**);           // 9
  OrtStatus* (*CreateSessionOptions)(OrtSessionOptions**);                               // 10
  void* places_11[13];
  OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions*, int);                           // 24
  void* places_25[24];
  OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void*, std::size_t,
                                               const std::int64_t*, std::size_t,
                                               ONNXTensorElementDataType, OrtValue**);   // 49
  void* places_50[1];
  OrtStatus* (*GetTensorMutableData)(OrtValue*, void**);                                 // 51
  void* places_52[10];
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo*, std::int64_t*, std::size_t);  // 62
  void* places_63[2];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorTypeAndShapeInfo**);     // 65
  void* places_66[3];
  OrtStatus* (*CreateCpuMemoryInfo)(OrtAllocatorType, OrtMemType, OrtMemoryInfo**);      // 69
  void* places_70[22];
  void (*ReleaseEnv)(OrtEnv*);                                                           // 92
  void* places_93[1];
  void (*ReleaseMemoryInfo)(OrtMemoryInfo*);                                             // 94
  void (*ReleaseSession)(OrtSession*);                                                   // 95
  void (*ReleaseValue)(OrtValue*);                                                       // 96
  void* places_97[2];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo*);                     // 99
  void (*ReleaseSessionOptions)(OrtSessionOptions*);                                     // 100
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};

extern "C" const OrtApiBase* OrtGetApiBase();
