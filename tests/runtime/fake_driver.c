/* The driver of the CUDA that computes nothing (fake_cuda.c): one GPU. */
#include <string.h>

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGetName(char *name, int n, int device) { strncpy(name, "fake", n); return 0; }
int cuDeviceTotalMem_v2(size_t *size, int device) { *size = (size_t)8 << 30; return 0; }
int cuDeviceGetAttribute(int *v, int which, int device) { *v = which == 75 ? 8 : 6; return 0; }
