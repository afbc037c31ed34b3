/* A CUDA runtime without a GPU: device memory is host memory, kernels do nothing.
 *
 * ONNX Runtime's CUDA provider loads over this and does all but arithmetic for real: it assigns
 * nodes, binds buffers, copies, records graphs.  What tests look at is printed to stderr, a line
 * per copy and per step of a graph's life.  Functions that are not here return 0 (see the test).
 */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAY(...) fprintf(stderr, "cuda: " __VA_ARGS__)

static void *make(void) { return calloc(1, 64); }

/* Bytes of the device: FAKE_CUDA_BYTES of the environment, or 8 GiB. */
static size_t taken;
static size_t everything(void) {
    const char *said = getenv("FAKE_CUDA_BYTES");
    return said ? strtoull(said, NULL, 10) : (size_t)8 << 30;
}
/* Garbage, not zeros: what nobody cleared must not look clean.  The size stands before it. */
cudaError_t cudaMalloc(void **p, size_t n) {
    char *whole = taken + n <= everything() ? aligned_alloc(256, (n / 256 + 2) * 256) : NULL;
    *p = NULL;
    if (!whole) return cudaErrorMemoryAllocation;
    *(size_t *)whole = n;
    __atomic_add_fetch(&taken, n, __ATOMIC_RELAXED);
    *p = memset(whole + 256, 0xA5, n);
    return cudaSuccess;
}
cudaError_t cudaFree(void *p) {
    if (!p) return cudaSuccess;
    __atomic_sub_fetch(&taken, *(size_t *)((char *)p - 256), __ATOMIC_RELAXED);
    free((char *)p - 256);
    return cudaSuccess;
}
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return cudaFree(p); }
cudaError_t cudaMallocFromPoolAsync(void **p, size_t n, cudaMemPool_t pool, cudaStream_t s) {
    return cudaMalloc(p, n);
}
cudaError_t cudaMallocHost(void **p, size_t n) {
    *p = malloc(n + 256);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) {
    cudaError_t made = cudaMallocHost(p, n);
    SAY("pinned %zu\n", (size_t)*p);
    return made;
}
cudaError_t cudaFreeHost(void *p) { free(p); return cudaSuccess; }

static const char *way[] = {"host to host", "to device", "to host", "on device", "anywhere"};
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) {
    SAY("copy %s %zu\n", way[kind], n);
    memmove(to, from, n);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind,
                            cudaStream_t s) {
    return cudaMemcpy(to, from, n, kind);
}
cudaError_t cudaMemset(void *p, int v, size_t n) { memset(p, v, n); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s) { return cudaMemset(p, v, n); }

cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *n) { *n = 0; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *n) { *n = 13000; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *n) { *n = 13000; return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t *left, size_t *all) {
    *all = everything();
    *left = *all - taken;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr which, int device) {
    *v = which == cudaDevAttrComputeCapabilityMajor ? 8
       : which == cudaDevAttrComputeCapabilityMinor ? 6 : 32;
    return cudaSuccess;
}
#undef cudaGetDeviceProperties
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "fake");
    p->major = 8, p->minor = 6, p->multiProcessorCount = 16, p->warpSize = 32;
    p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 1536, p->regsPerBlock = 65536;
    p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = 101376;
    p->totalGlobalMem = (size_t)8 << 30;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    memset(a, 0, sizeof *a);
    a->type = cudaMemoryTypeDevice;
    a->devicePointer = (void *)p;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *n, const void *f, int block, size_t dynamic, unsigned flags) {
    *n = 2;
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = make(); return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { return cudaStreamCreate(s); }
cudaError_t cudaStreamDestroy(cudaStream_t s) { free(s); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = make(); return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { return cudaEventCreate(e); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
    *ms = 1;
    return cudaSuccess;
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t *p, const struct cudaMemPoolProps *q) {
    *p = make();
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) {
    SAY("record\n");
    return cudaSuccess;
}
/* FAKE_CUDA_BROKEN of the environment: so many recordings are lost, as if others had allocated. */
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
    static int lost;
    const char *said = getenv("FAKE_CUDA_BROKEN");
    int broken = said && lost < atoi(said);
    lost += broken;
    *g = broken ? NULL : make();
    return broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long flags) {
    *e = make();
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) { free(g); return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { free(e); return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
    SAY("replay\n");
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t e) { return "an error of the fake"; }
const char *cudaGetErrorName(cudaError_t e) { return "fake"; }
void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[8];
    return handle;
}
