// What CuPy's binding of the runtime is compiled against: cudart.h, and the functions that it binds
// and no test calls.
#pragma once
#include "cudart.h"

static bool hip_environment = false;
#define UNSUPPORTED(NAME) template <class... T> static cudaError_t NAME(T...) { return cudaErrorNotSupported; }
UNSUPPORTED(cudaDeviceGetByPCIBusId) UNSUPPORTED(cudaDeviceEnablePeerAccess) UNSUPPORTED(cudaDeviceDisablePeerAccess)
UNSUPPORTED(cudaDeviceGetLimit) UNSUPPORTED(cudaDeviceSetLimit) UNSUPPORTED(cudaIpcCloseMemHandle)
UNSUPPORTED(cudaIpcGetEventHandle) UNSUPPORTED(cudaIpcGetMemHandle) UNSUPPORTED(cudaIpcOpenEventHandle)
UNSUPPORTED(cudaIpcOpenMemHandle) UNSUPPORTED(cudaMallocManaged) UNSUPPORTED(cudaMalloc3DArray) UNSUPPORTED(cudaMallocArray)
UNSUPPORTED(cudaMallocAsync) UNSUPPORTED(cudaMallocFromPoolAsync) UNSUPPORTED(cudaHostRegister) UNSUPPORTED(cudaHostUnregister)
UNSUPPORTED(cudaFreeArray) UNSUPPORTED(cudaFreeAsync) UNSUPPORTED(cudaMemcpy2DFromArray) UNSUPPORTED(cudaMemcpy2DFromArrayAsync)
UNSUPPORTED(cudaMemcpy2DToArray) UNSUPPORTED(cudaMemcpy2DToArrayAsync) UNSUPPORTED(cudaMemcpy2D) UNSUPPORTED(cudaMemcpy2DAsync)
UNSUPPORTED(cudaMemcpy3D) UNSUPPORTED(cudaMemcpy3DAsync) UNSUPPORTED(cudaMemPrefetchAsync) UNSUPPORTED(cudaMemAdvise)
UNSUPPORTED(cudaDeviceGetDefaultMemPool) UNSUPPORTED(cudaDeviceGetMemPool) UNSUPPORTED(cudaDeviceSetMemPool)
UNSUPPORTED(cudaMemPoolCreate) UNSUPPORTED(cudaMemPoolDestroy) UNSUPPORTED(cudaMemPoolTrimTo) UNSUPPORTED(cudaMemPoolGetAttribute)
UNSUPPORTED(cudaMemPoolSetAttribute) UNSUPPORTED(cudaStreamGetFlags) UNSUPPORTED(cudaStreamGetPriority)
UNSUPPORTED(cudaStreamAddCallback) UNSUPPORTED(cudaLaunchHostFunc) UNSUPPORTED(cudaStreamBeginCapture)
UNSUPPORTED(cudaStreamEndCapture) UNSUPPORTED(cudaCreateTextureObject) UNSUPPORTED(cudaDestroyTextureObject)
UNSUPPORTED(cudaGetChannelDesc) UNSUPPORTED(cudaGetTextureObjectResourceDesc) UNSUPPORTED(cudaGetTextureObjectTextureDesc)
UNSUPPORTED(cudaCreateSurfaceObject) UNSUPPORTED(cudaDestroySurfaceObject) UNSUPPORTED(cudaGraphDestroy)
UNSUPPORTED(cudaGraphExecDestroy) UNSUPPORTED(cudaGraphInstantiate) UNSUPPORTED(cudaGraphLaunch) UNSUPPORTED(cudaGraphUpload)
UNSUPPORTED(cudaGraphDebugDotPrint) UNSUPPORTED(cudaProfilerStart) UNSUPPORTED(cudaProfilerStop)
static inline cudaExtent make_cudaExtent(size_t w, size_t h, size_t d) { return {w, h, d}; }
static inline cudaPos make_cudaPos(size_t x, size_t y, size_t z) { return {x, y, z}; }
static inline cudaPitchedPtr make_cudaPitchedPtr(void* d, size_t p, size_t x, size_t y) { return {p, d, x, y}; }
