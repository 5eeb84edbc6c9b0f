// The driver and the runtime of GPUs that aren't there: memory, streams and events, modules.
//
// Every stream is as late as it may be: its work happens when somebody waits for it. (Or, with
// FAKEGPU_EAGER=1, only those made non-blocking, and the others are as early as they may be.) Copies from
// pageable memory read it at once, as the real ones may; those from page-locked memory read it late.
// What goes wrong in a kernel comes back from the next call that waits, in words.
#include "cudart.h"
#include "ptx.h"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <stdexcept>

struct CUmod_st { Module* module; int device; };
struct CUfunc_st { Kernel* kernel; int device; };
struct CUstream_st { bool blocking; int device; std::deque<std::function<void()>> work; long done = 0; };
struct CUevent_st { CUstream_st* stream = nullptr; long position = 0; };

namespace {

using Lock = std::lock_guard<std::recursive_mutex>;
std::recursive_mutex mutex;
std::map<uintptr_t, Allocation> device_memory;
std::map<uintptr_t, size_t> page_locked;
std::map<int, size_t> used;
std::set<CUstream_st*> streams;
long countdown = -1;        // calls that may still succeed where memory is needed; -1: all
std::string wrong;          // what a kernel did, until a call has said so
std::string said;           // for cudaGetErrorString
thread_local int current = 0;
const size_t GUARD = 512;

long setting(const char* name, long otherwise) {
    const char* value = getenv(name);
    return value ? atol(value) : otherwise;
}
int devices() { return (int)setting("FAKEGPU_DEVICES", 2); }
size_t capacity() { return (size_t)setting("FAKEGPU_MIB", 8192) << 20; }
int capability() { return (int)setting("FAKEGPU_CAPABILITY", 80); }

bool full() { return countdown == 0 || (countdown > 0 && --countdown < 0); }

CUstream_st* null_stream(int device) {
    static std::map<int, CUstream_st> all;
    auto [at, fresh] = all.try_emplace(device);
    if (fresh) { at->second.blocking = true; at->second.device = device; }
    return &at->second;
}

// Streams that block go in order with the null stream: here, they are that one.
CUstream_st* stream(cudaStream_t s) {
    if ((uintptr_t)s <= 2) return null_stream(current);
    return s->blocking ? null_stream(s->device) : s;
}

void run_to(CUstream_st* s, long position) {
    while (s->done < position && !s->work.empty()) {
        auto work = std::move(s->work.front());
        s->work.pop_front();
        ++s->done;
        work();
    }
}
void run_all(CUstream_st* s) { run_to(s, s->done + (long)s->work.size()); }

cudaError_t outcome() {
    if (wrong.empty()) return cudaSuccess;
    said = wrong;
    wrong.clear();
    return cudaErrorIllegalAddress;
}

void later(CUstream_st* s, std::function<void()> work) {
    s->work.push_back(std::move(work));
    if (s->blocking && setting("FAKEGPU_EAGER", 0)) run_all(s);
}

bool is_page_locked(const void* p) {
    auto at = page_locked.upper_bound((uintptr_t)p);
    return at != page_locked.begin() && (uintptr_t)p < (--at)->first + at->second;
}

// "" or what is wrong with this piece of memory, if it is a GPU's at all.
void check(const void* p, size_t n, const char* what) {
    const Allocation* a = allocation((uintptr_t)p);
    if (a && (uintptr_t)p + n > a->start + a->size) wrong = std::string(what) + " beyond an allocation";
}

void copy(void* to, const void* from, size_t n) {
    check(to, n, "copy");
    check(from, n, "copy");
    if (wrong.empty()) memcpy(to, from, n);
}

}  // namespace

Allocation* allocation(uintptr_t address) {
    auto at = device_memory.upper_bound(address);
    if (at == device_memory.begin()) return nullptr;
    --at;
    return address < at->first + at->second.size ? &at->second : nullptr;
}

extern "C" {

// For tests: let so many more calls that need memory succeed; all, if negative.
void fakegpu_fail_after(long calls) { countdown = calls; }
long fakegpu_allocations() { return (long)device_memory.size(); }

// ---------------------------------------------------------------------------- errors, devices

const char* cudaGetErrorName(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : e == cudaErrorIllegalAddress ? "cudaErrorIllegalAddress" : "cudaErrorOfTheFakeGpu";
}
const char* cudaGetErrorString(cudaError_t e) {
    static thread_local std::string text;
    text = e == cudaErrorMemoryAllocation ? "out of memory" : e == cudaErrorIllegalAddress ? said : "error " + std::to_string(e) + " of the fake GPU";
    return text.c_str();
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* v) { *v = CUDA_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* v) { *v = CUDA_VERSION; return cudaSuccess; }
cudaError_t cudaGetDevice(int* d) { *d = current; return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* n) { *n = devices(); return cudaSuccess; }
cudaError_t cudaSetDevice(int d) {
    if (d < 0 || d >= devices()) return cudaErrorInvalidDevice;
    current = d;
    return cudaSuccess;
}
static void drain(int device) {
    run_all(null_stream(device));
    for (auto* s : std::set<CUstream_st*>(streams)) if (s->device == device) run_all(s);
}
cudaError_t cudaDeviceSynchronize() {
    Lock lock(mutex);
    drain(current);
    return outcome();
}
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) {
    const std::map<int, int> known = {{75, capability() / 10}, {76, capability() % 10}, {10, 32}, {16, 108}, {8, 49152}, {39, 2048}};
    auto at = known.find(a);
    *v = at == known.end() ? 1024 : at->second;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int n, int d) { snprintf(text, n, "0000:%02x:00.0", d + 1); return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { *can = 0; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int d) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "fake GPU, no A100");
    p->totalGlobalMem = capacity();
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->multiProcessorCount = 108;
    p->major = capability() / 10;
    p->minor = capability() % 10;
    p->pciBusID = d + 1;
    return cudaSuccess;
}

// ---------------------------------------------------------------------------- memory

cudaError_t cudaMalloc(void** p, size_t n) {
    Lock lock(mutex);
    if (full() || used[current] + n > capacity()) return cudaErrorMemoryAllocation;
    auto* block = (uint8_t*)aligned_alloc(512, GUARD + (n + 511) / 512 * 512 + GUARD);
    memset(block, 0xff, GUARD + n + GUARD);  // fresh memory holds nothing: NaNs
    *p = block + GUARD;
    device_memory[(uintptr_t)*p] = {(uintptr_t)*p, n, current, {}};
    used[current] += n;
    return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
    Lock lock(mutex);
    if (!p) return cudaSuccess;
    const auto at = device_memory.find((uintptr_t)p);
    if (at == device_memory.end()) return cudaErrorInvalidValue;
    drain(at->second.device);  // what went wrong is for a call to say that is looked at
    used[at->second.device] -= at->second.size;
    device_memory.erase(at);
    free((uint8_t*)p - GUARD);
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {
    Lock lock(mutex);
    if (full()) return cudaErrorMemoryAllocation;
    *p = aligned_alloc(4096, (n + 4095) / 4096 * 4096);
    page_locked[(uintptr_t)*p] = n;
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
    Lock lock(mutex);
    drain(current);
    page_locked.erase((uintptr_t)p);
    free(p);
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
    Lock lock(mutex);
    *total = capacity();
    *available = *total - used[current];
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind) {
    Lock lock(mutex);
    run_all(null_stream(current));
    copy(to, from, n);
    return outcome();
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t s) {
    Lock lock(mutex);
    const bool on_device = allocation((uintptr_t)from) != nullptr;
    if (on_device && !allocation((uintptr_t)to) && !is_page_locked(to)) {  // as the real one, it waits
        run_all(stream(s));
        copy(to, from, n);
        return outcome();
    }
    if (on_device || is_page_locked(from)) later(stream(s), [=] { copy(to, from, n); });
    else {
        std::vector<uint8_t> held((const uint8_t*)from, (const uint8_t*)from + n);
        later(stream(s), [=] { copy(to, held.data(), n); });
    }
    return cudaSuccess;
}
cudaError_t cudaMemcpyPeer(void* to, int, const void* from, int, size_t n) { return cudaMemcpy(to, from, n, 4); }
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t n, cudaStream_t s) { return cudaMemcpyAsync(to, from, n, 4, s); }
cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t s) {
    Lock lock(mutex);
    later(stream(s), [=] { check(p, n, "memset"); if (wrong.empty()) memset(p, v, n); });
    return cudaSuccess;
}
cudaError_t cudaMemset(void* p, int v, size_t n) { return cudaMemsetAsync(p, v, n, nullptr); }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
    Lock lock(mutex);
    const Allocation* at = allocation((uintptr_t)p);
    *a = {at ? 2 : 0, at ? at->device : -1, (void*)p, nullptr};
    return cudaSuccess;
}

// ---------------------------------------------------------------------------- streams, events

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) {
    Lock lock(mutex);
    if (full()) return cudaErrorMemoryAllocation;
    *s = new CUstream_st{!(flags & 1), current, {}};
    streams.insert(*s);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithFlags(s, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int) { return cudaStreamCreateWithFlags(s, flags); }
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    Lock lock(mutex);
    run_all(s);
    streams.erase(s);  // it is not deleted: an event may know it
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    Lock lock(mutex);
    run_all(stream(s));
    return outcome();
}
cudaError_t cudaStreamQuery(cudaStream_t s) { return cudaStreamSynchronize(s); }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    Lock lock(mutex);
    const CUevent_st at = *e;
    if (at.stream && at.stream != stream(s)) later(stream(s), [=] { run_to(at.stream, at.position); });
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* c) { *c = 0; return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
    if (full()) return cudaErrorMemoryAllocation;
    *e = new CUevent_st;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { delete e; return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    Lock lock(mutex);
    e->stream = stream(s);
    e->position = e->stream->done + (long)e->stream->work.size();
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    Lock lock(mutex);
    if (e->stream) run_to(e->stream, e->position);
    return outcome();
}
cudaError_t cudaEventQuery(cudaEvent_t e) { return cudaEventSynchronize(e); }
cudaError_t cudaEventElapsedTime(float* t, cudaEvent_t, cudaEvent_t) { *t = 1; return cudaSuccess; }

// ---------------------------------------------------------------------------- the driver

static CUctx_st* context(int device) { return (CUctx_st*)(uintptr_t)(device + 1); }
static std::string driver_said;

CUresult cuGetErrorName(CUresult e, const char** s) { *s = e == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_THE_FAKE_GPU"; return 0; }
CUresult cuGetErrorString(CUresult e, const char** s) { *s = e == 2 ? "out of memory" : driver_said.c_str(); return 0; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return 0; }
CUresult cuCtxGetCurrent(CUcontext* c) { *c = context(current); return 0; }
CUresult cuCtxSetCurrent(CUcontext c) { current = (int)(uintptr_t)c - 1; return 0; }
CUresult cuCtxGetDevice(CUdevice* d) { *d = current; return 0; }
CUresult cuStreamGetCtx(CUstream s, CUcontext* c) { *c = context(stream(s)->device); return 0; }
CUresult cuModuleLoadData(CUmodule* m, const void* image) {
    Lock lock(mutex);
    if (full()) return cudaErrorMemoryAllocation;
    if (!memcmp(image, "\x7f" "ELF", 4)) { driver_said = "a cubin: CUPY_COMPILE_WITH_PTX=1 asks for PTX"; return 209; }
    try {
        Module* module = parse((const char*)image);
        for (auto& [name, data] : module->variables)
            device_memory[(uintptr_t)data.data()] = {(uintptr_t)data.data(), data.size(), -1, {}};
        *m = new CUmod_st{module, current};
        return 0;
    } catch (const std::exception& e) { driver_said = e.what(); return 218; }
}
CUresult cuModuleUnload(CUmodule) { return 0; }
CUresult cuModuleGetFunction(CUfunction* f, CUmodule m, const char* name) {
    const auto at = m->module->kernels.find(name);
    if (at == m->module->kernels.end()) { driver_said = std::string("no kernel ") + name; return 500; }
    *f = new CUfunc_st{&at->second, m->device};
    return 0;
}
CUresult cuModuleGetGlobal_v2(CUdeviceptr* p, size_t* n, CUmodule m, const char* name) {
    const auto at = m->module->variables.find(name);
    if (at == m->module->variables.end()) return 500;
    *p = at->second.data();
    *n = at->second.size();
    return 0;
}
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream s, void** parameters, void**) {
    Lock lock(mutex);
    if (full()) return cudaErrorMemoryAllocation;
    const Kernel& k = *f->kernel;
    driver_said = k.name + ": ";
    if (f->device != current) { driver_said += "loaded on another GPU"; return cudaErrorInvalidResourceHandle; }
    if (!gx || !gy || !gz || gx > 2147483647u || gy > 65535 || gz > 65535 || !bx || !by || !bz || bz > 64 ||
        (uint64_t)bx * by * bz > (uint64_t)k.threads) { driver_said += "a grid or block of a wrong size"; return cudaErrorInvalidValue; }
    if (k.shared_bytes + shared > 48 * 1024) { driver_said += "too much shared memory"; return cudaErrorInvalidValue; }
    Launch launch{{gx, gy, gz}, {bx, by, bz}, shared, current, std::vector<uint8_t>(k.parameter_bytes + 16)};
    for (size_t i = 0; i < k.parameters.size(); ++i)
        memcpy(launch.parameters.data() + k.parameters[i].offset, parameters[i], k.parameters[i].size);
    later(stream(s), [launch = std::move(launch), &k] { if (wrong.empty()) wrong = run(k, launch); });
    return 0;
}
CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction f) {
    *v = a == 0 ? f->kernel->threads : a == 1 ? f->kernel->shared_bytes : a == 4 ? 32 : 0;
    return 0;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return 0; }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction, int, size_t) { *n = 2; return 0; }
CUresult cuOccupancyMaxPotentialBlockSize(int* g, int* b, CUfunction, void*, size_t, int) { *g = 16; *b = 256; return 0; }

}  // extern "C"
